"""What the daemon weighs, and how long it takes to come up.

RSS and PSS of every process of it: when it is ready (the process that reads ELF files still there), at
rest (that one gone), under load and when that is over, with one watcher. Start is from exec to "ready" in the
log, when everything is attached; it includes compiling the eBPF programs.
"""

from __future__ import annotations

import time

from bench.processes import descendants, memory_kib, ring_kib
from bench.report import Figure, median
from bench.watched import Watched, Watcher
from bench.web import Web
from spliffd.resident import CALM_SECONDS
from spliffd.targets.inspector import IDLE_SECONDS
from tests.support.lab import Lab, say, wait_for

STARTS = 4
LOAD_SECONDS = 6.0


class Weight:
    """Memory of all processes at one moment, by name."""

    def __init__(self, daemon: Watched) -> None:
        self.by_name: dict[str, tuple[int, int]] = {"supervisor": memory_kib(daemon.process.pid)}
        for pid, command in descendants(daemon.process.pid).items():
            name = "inspector" if "inspector" in command else command.removeprefix("spliffd: ").strip()
            if any(weight := memory_kib(pid)):  # a process that has just ended weighs nothing
                self.by_name[name] = weight
        self.rings = sum(ring_kib(pid) for pid in (daemon.process.pid, *descendants(daemon.process.pid)))

    def figures(self, part: str, when: str, target: str = "") -> list[Figure]:
        """RSS, with each process in the note, and PSS."""
        note = ", ".join(
            f"{name} {rss / 1024:.1f}/{pss / 1024:.1f}" for name, (rss, pss) in self.by_name.items()
        )
        rss = sum(rss for rss, _ in self.by_name.values()) / 1024
        pss = sum(pss for _, pss in self.by_name.values()) / 1024
        say(f"   {when}: RSS {rss:.1f} MiB, PSS {pss:.1f} MiB")
        return [
            Figure(part, f"RSS {when}", rss, "MiB", target=target, note=f"RSS/PSS: {note}"),
            Figure(
                part, f"RSS {when}, without the rings", rss - self.rings / 1024, "MiB", target=target,
                note=f"ring buffers mapped into the worker: {self.rings / 1024:.1f} MiB of RSS",
            ),
            Figure(part, f"PSS {when}", pss, "MiB"),
        ]  # fmt: skip


def measure() -> list[Figure]:
    """Several starts, then one long life."""
    part = "memory and start: all processes of spliffd together"
    rows: list[Figure] = []
    starts: list[float] = []
    with Lab("bench-memory") as lab:
        web = Web(lab)
        for number in range(STARTS):
            daemon = Watched(lab)
            starts.append(daemon.start_seconds)
            say(f"   start {number + 1} of {STARTS}: {daemon.start_seconds:.2f} s")
            if number < STARTS - 1:
                daemon.stop()
        rows.append(median(part, "start: exec to ready, compiling included", starts, "s", target="< 1.5"))
        rows += Weight(daemon).figures(part, "when ready (inspector alive)")
        say(f"   waits {IDLE_SECONDS:.0f} s for the inspector to leave")
        wait_for(
            lambda: not any("inspector" in command for command in descendants(daemon.process.pid).values()),
            IDLE_SECONDS + 10, "end of the inspector",
        )  # fmt: skip
        rows += Weight(daemon).figures(part, "idle", target="< 120")
        watcher = Watcher(daemon)
        web.load(LOAD_SECONDS)
        loaded = Weight(daemon)
        rows += loaded.figures(part, f"right after {LOAD_SECONDS:.0f} s of wrk", target="< 120")
        daemon.settle()
        watcher.stop()
        time.sleep(2 * CALM_SECONDS + 1)
        rows += Weight(daemon).figures(part, "after load, watcher gone", target="< 120")
        daemon.stop()
    return rows
