"""What the daemon costs when nothing happens: CPU of all its processes, with one watcher attached.

A keep-alive connection is open and known, a watcher reads, nothing is said for the measured time. The
watcher's own CPU is not the daemon's and is not counted.
"""

from __future__ import annotations

import time

from bench.processes import CPU_RESOLUTION, cpu_ns, descendants
from bench.report import Figure
from bench.watched import Watched, Watcher
from bench.web import Web
from tests.support.lab import Lab, say

SECONDS = 30.0
SETTLE_SECONDS = 3.0


def measure() -> list[Figure]:
    """One stretch of silence."""
    part = f"idle: {SECONDS:.0f} s with one watcher, nothing said ({CPU_RESOLUTION})"
    with Lab("bench-idle") as lab:
        daemon = Watched(lab)
        web = Web(lab)
        watcher = Watcher(daemon)
        web.load(1.0)
        daemon.settle()
        time.sleep(SETTLE_SECONDS)
        names = {daemon.process.pid: "supervisor", **descendants(daemon.process.pid)}
        before = {pid: cpu_ns([pid]) for pid in names}
        say(f"   {SECONDS:.0f} s of silence")
        began = time.monotonic()
        time.sleep(SECONDS)
        took = time.monotonic() - began
        spent = {pid: cpu_ns([pid]) - before[pid] for pid in names}
        watcher.stop()
        daemon.stop()
    note = ", ".join(
        f"{'inspector' if 'inspector' in names[pid] else names[pid].removeprefix('spliffd: ').strip()}"
        f" {max(0, ns) / 1e6:.1f} ms"
        for pid, ns in spent.items()
    )
    share = sum(max(0, ns) for ns in spent.values()) / 1e7 / took
    return [Figure(part, "CPU of all processes", share, "% of a CPU", target="<= 0.1", note=note)]
