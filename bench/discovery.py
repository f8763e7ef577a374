"""What many processes cost at the daemon's start: time to ready, memory, and what a look at one takes.

503 and 2,003 idle processes of the lab, each with a private copy of libssl mapped, against none; then the
scan alone, without a daemon, for each of them.
"""

from __future__ import annotations

import statistics
import time

from bench.processes import memory_kib
from bench.report import Figure
from bench.watched import Watched
from spliffd.targets import discovery
from tests.support.idlers import idle
from tests.support.lab import Lab, say, stop

COUNTS = (0, 503, 2_003)
STARTS = 3
PART = "discovery: processes with libssl mapped when the daemon starts"


def measure() -> list[Figure]:
    """For each count of processes."""
    figures: list[Figure] = []
    for count in COUNTS:
        with Lab("bench-discovery") as lab:
            idlers = idle(lab, count, lab.libraries / "libssl.so.3") if count else None
            if count:
                figures.append(_scan(lab, count))
            starts, weights = [], []
            for number in range(STARTS):
                daemon = Watched(lab)
                starts.append(daemon.start_seconds)
                weights.append(memory_kib(daemon.process.pid)[0] / 1024)
                say(f"   {count} processes, start {number + 1} of {STARTS}: {starts[-1]:.2f} s")
                daemon.stop()
            figures.append(
                Figure(PART, f"{count:,}: exec to ready", statistics.median(starts), "s", samples=starts)
            )
            figures.append(
                Figure(
                    PART,
                    f"{count:,}: RSS of the supervisor",
                    statistics.median(weights),
                    "MiB",
                    samples=weights,
                )
            )
            if idlers is not None:
                if idlers.stdin is not None:
                    idlers.stdin.close()
                idlers.wait(60)
                stop(idlers)
    return figures


def _scan(lab: Lab, count: int) -> Figure:
    pids = discovery.pids_in_scope([str(lab.cgroup)])
    spent = []
    for _ in range(5):
        began = time.thread_time()
        found = list(discovery.scan(pids, [f"{lab.folder}/*"]))
        spent.append((time.thread_time() - began) / len(pids) * 1e6)
        if [one.path for one in found] != [
            str(lab.libraries / name) for name in ("libssl.so.3", "libcrypto.so.3")
        ]:
            raise RuntimeError(f"found {found}")
    return Figure(
        PART, f"{count:,}: CPU of the scan, a process", statistics.median(spent), "us", samples=spent
    )
