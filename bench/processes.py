"""What processes cost: CPU time and memory, as the kernel accounts them.

CPU comes from /proc/PID/task/*/schedstat: nanoseconds on the CPU, exact to the context switch, so that
an idle process's microseconds are not lost in 10 ms ticks. Threads that have ended are not in it; the
daemon's processes keep theirs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

CPU_RESOLUTION = "schedstat, 1 ns"


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of all threads of these processes so far; a process that is gone counts 0."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return total


def memory_kib(pid: int) -> tuple[int, int]:
    """RSS and PSS in KiB; (0, 0) for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    values = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:] if ":" in line}
    return values["Rss"], values["Pss"]


def ring_kib(pid: int) -> int:
    """RSS of the ring buffer's mapping, in KiB: its memory, and 32 KiB that are mapped twice."""
    found, inside = 0, False
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
            for line in file:
                if re.match(r"[0-9a-f]+-", line):
                    inside = line.rstrip().endswith("anon_inode:bpf-map")
                elif inside and line.startswith("Rss:"):
                    found += int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return found


def descendants(pid: int) -> dict[int, str]:
    """Pids below ``pid`` with their command lines."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is ending just now
            for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
                for child in map(int, task.read_text().split()):
                    found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    todo.append(child)
    return found


def pinned(cpu: int) -> list[str]:
    """A command prefix that keeps a process on one CPU; empty where there is only one."""
    return ["taskset", "-c", str(cpu)] if (os.cpu_count() or 1) > 1 else []
