"""How many exchanges one worker sustains: from a real ring to serialised messages on a socket.

The worker is the real process (``python -m spliffd.worker``): ring reader, engine, parser, encoder,
output, with a watcher's demand. Around it, in processes of their own, the load (``generator``: records
written by the kernel, 529 + 569 B of plaintext an exchange, no two alike, 256 connections) and a sink in the
api's place. The worker has one CPU for itself, the others share the rest. The offered rate climbs until
records are lost or the worker falls behind; then one run far beyond that shows what it does at most.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from bench.generator import open_flows
from bench.processes import cpu_ns, pinned
from bench.report import Figure
from spliffd import ipc
from spliffd.counters import Area
from spliffd.kernel.maps import Maps
from tests.support.lab import REPOSITORY, say, stop

FIXED = (1_000, 10_000, 50_000)
"""Rates at which the cost of an exchange is asked for: quiet, busy, the target."""

LADDER = (1_000, *range(10_000, 50_001, 5_000), 51_000, 55_000, 60_000, 70_000, 80_000)
LOSING = 2
"""So many losing steps in a row end the climb: one may be another program's doing."""

SECONDS = 2.5
RING_MIB = 32
"""The daemon's default."""

SATURATION = 200_000
BEHIND_SECONDS = 0.1
"""A worker whose ring is not empty this long after the load stopped had fallen behind."""

_SO_SNDBUFFORCE = 32


@dataclass
class Rung:
    """One offered rate, and what became of it."""

    asked: int
    offered: float
    """Exchanges a second, as really made."""
    made: int
    seen: int
    lost_records: int
    behind: float
    """Seconds until the ring was empty after the load stopped."""
    cpu_us: float
    """The worker's CPU time for one exchange."""
    load: float
    """Share of one CPU that the worker took."""
    producer_ns: float
    handled: float
    """Exchanges a second that the worker finished while the load lasted."""


class Bench:
    """The worker with its surroundings."""

    def __init__(self) -> None:
        self.maps = Maps(1, RING_MIB << 20)
        open_flows(self.maps.fd["flows"])
        self.area = Area.create()
        self.area.supervisor.set("interfaces_TC_tcx", 1)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        user = pwd.getpwnam("nobody")
        arguments = {
            "number": 0, "ring-fd": self.maps.rings[0], "ring-bytes": RING_MIB << 20,
            "armed-fd": self.maps.fd["armed"], "shards": 1, "control-fd": theirs.fileno(),
            "counters-fd": self.area.fd, "kernel-counters-fd": self.maps.fd["counters"],
            "conns-fd": self.maps.fd["conns"], "speakers-fd": self.maps.fd["speakers"],
            "flows-fd": self.maps.fd["flows"], "hellos-fd": self.maps.fd["hellos"],
            "unwanted-fd": self.maps.fd["unwanted"],
            "uid": user.pw_uid, "gid": user.pw_gid,
        }  # fmt: skip
        options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        self.worker = _start(
            pinned(0), "spliffd.worker", options,
            [value for name, value in arguments.items() if name.endswith("-fd")],
        )  # fmt: skip
        theirs.close()
        self._ready = threading.Event()
        threading.Thread(target=self._supervise, daemon=True).start()
        if not self._ready.wait(20):
            raise RuntimeError("the worker did not come up")
        self.sink = self._link()
        self.generator = self._generate()

    def _supervise(self) -> None:
        """Answers the worker as the supervisor would."""
        while data := self._control.recv(1 << 20):
            message = ipc.decode_from_child(data)
            if isinstance(message, ipc.Ready):
                self._control.send(ipc.encode(ipc.Interfaces({1: "lo"})))
                self._ready.set()
            elif isinstance(message, ipc.WhoIs):
                known = ipc.ProcessFacts(
                    message.pid, message.start_ns, "/usr/sbin/nginx", "nginx: worker process", "www-data",
                    "/system.slice/nginx.service", "nginx.service", "",
                )  # fmt: skip
                self._control.send(ipc.encode(known))

    def _link(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ipc.SEND_BUFFER)
        socket.send_fds(self._control, [ipc.encode(ipc.Link(0))], [ours.fileno()])
        sink = _start(pinned(1), "bench.sink", [str(theirs.fileno())], [theirs.fileno()])
        ours.close()
        theirs.close()
        return sink

    def _generate(self) -> subprocess.Popen[bytes]:
        fds = self.maps.fd
        names = "{" + ", ".join(f'"{name}": {fd}' for name, fd in fds.items()) + "}"
        process = _start(pinned(1), "bench.generator", [names, "vary"], list(fds.values()))
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise RuntimeError("the load generator did not come up")
        return process

    def rung(self, rate: int) -> Rung:
        """Offers ``rate`` for ``SECONDS``."""
        assert self.generator.stdin is not None
        assert self.generator.stdout is not None
        seen, lost, cpu = self._seen(), self._lost(), cpu_ns([self.worker.pid])
        self.generator.stdin.write(b"%d %f\n" % (rate, SECONDS))
        self.generator.stdin.flush()
        words = self.generator.stdout.readline().split()
        ended, seen_at_end = time.monotonic(), self._seen() - seen
        made, took, producer = int(words[0]), float(words[1]), float(words[2])
        while not self._rested():
            time.sleep(0.005)
        behind = time.monotonic() - ended
        busy = cpu_ns([self.worker.pid]) - cpu
        seen = self._seen() - seen
        return Rung(
            rate, made / took, made, seen, self._lost() - lost, behind, busy / 1000 / max(1, seen),
            busy / 1e9 / (took + behind), producer, seen_at_end / took,
        )  # fmt: skip

    def _rested(self) -> bool:
        """Whether the worker has slept since: its ring is empty and its output sent."""
        worker = self.area.workers[0]
        before = worker.get("sleep_cycles"), worker.get("records")
        time.sleep(0.02)
        return worker.get("sleep_cycles") >= before[0] and worker.get("records") == before[1]

    def _seen(self) -> int:
        worker = self.area.workers[0]
        return sum(value for name, value in worker.values().items() if name.startswith("exchanges/"))

    def _lost(self) -> int:
        worker = self.area.workers[0]
        return self.maps.counters.get("ring_full_data_records") + worker.get("output_dropped_frames")

    def close(self) -> None:
        """Ends the processes that were started."""
        for process in (self.generator, self.worker, self.sink):
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            stop(process)
        self.maps.close()


def _start(prefix: list[str], module: str, options: list[str], fds: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", module, *options],
        pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def measure() -> list[Figure]:
    """Climbs the ladder, then saturates."""
    bench = Bench()
    rungs: list[Rung] = []
    try:
        bench.rung(1000)  # opens the connections
        for rate in LADDER:
            rung = bench.rung(rate)
            say(
                f"   {rung.offered:9,.0f}/s offered, {rung.cpu_us:5.1f} us each,"
                f" {100 * rung.load:5.1f} % of a CPU, {rung.lost_records} records lost,"
                f" {rung.behind * 1000:.0f} ms behind"
            )
            rungs.append(rung)
            if [r.lost_records > 0 for r in rungs[-LOSING:]] == [True] * LOSING:
                break
        most = bench.rung(SATURATION)
    finally:
        bench.close()
    return figures(rungs, most)


def figures(rungs: list[Rung], most: Rung) -> list[Figure]:
    """The highest rung without loss, the cost of an exchange, the ceiling."""
    part = "worker: one process on one CPU, ring to serialised message on a socket"
    clean = [rung for rung in rungs if not rung.lost_records and rung.behind <= BEHIND_SECONDS]
    if not clean:
        raise RuntimeError(f"records were lost at the lowest rate: {rungs}")
    best = clean[-1]
    rows = [
        Figure(
            part, "sustained without loss (highest step of the ladder)", best.offered, "exchanges/s",
            target=">= 50000",
            note=f"{best.made:,} made, {best.seen:,} seen, 0 lost; {100 * best.load:.0f} % of one CPU",
        ),
        Figure(
            part, "finished in one second of CPU time, when saturated", 1e6 / most.cpu_us, "exchanges",
            note="not disturbed by what else runs here, as the ladder is",
        ),
        Figure(
            part, "finished per second when far more is offered", most.handled, "exchanges/s",
            note=f"{most.offered:,.0f}/s offered; {most.lost_records:,} of {2 * most.made:,} records lost, "
            f"all counted; {100 * most.load:.0f} % of one CPU",
        ),
    ]  # fmt: skip
    rows += [
        Figure(part, f"CPU of one exchange at {rung.offered:,.0f}/s", rung.cpu_us, "us")
        for rung in rungs
        if rung.asked in FIXED
    ]
    rows.append(Figure(part, "CPU of one exchange at saturation", most.cpu_us, "us", target="<= 25"))
    rows.append(Figure(part, "CPU of two records in the kernel (producer)", best.producer_ns, "ns"))
    return rows
