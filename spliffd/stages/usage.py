"""What the daemon itself costs: CPU time and memory of its processes, as numbers in shared memory.

Takes the children and the supervisor's counters; ``look`` reads /proc/PID/stat of each, and of itself, 40 us
apiece, and writes ``cpu_ms_*`` and ``rss_kib_*``, workers summed up. A process that was restarted begins at 0
again, as counters may. Source: proc(5), /proc/PID/stat.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from spliffd.counters import KINDS_OF_PROCESS, Region
from spliffd.stages.children import Child

_TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10


def look(children: Iterable[Child], counters: Region) -> None:
    """Workers and api, and this process; one that has just ended counts nothing."""
    processes = [("supervisor", os.getpid())]
    processes += [("api" if child.name == "api" else "worker", child.pid) for child in children]
    cpu = dict.fromkeys(KINDS_OF_PROCESS, 0)
    resident = dict.fromkeys(KINDS_OF_PROCESS, 0)
    for kind, pid in processes:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            continue
        # Behind the command name: field 14 and 15 are user and system time in ticks, 24 resident pages.
        cpu[kind] += (int(fields[11]) + int(fields[12])) * _TICK_MS
        resident[kind] += int(fields[21]) * _PAGE_KIB
    for kind in KINDS_OF_PROCESS:
        counters.set(f"cpu_ms_{kind}", cpu[kind])
        counters.set(f"rss_kib_{kind}", resident[kind])
