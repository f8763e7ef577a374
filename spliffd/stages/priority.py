"""What the scheduler is asked for: a share of the processors for each process, and to be woken at once.

Takes process ids and numbers; best effort, a host that refuses is slower and not wrong. Never asks for
real-time scheduling: what watches a host must not take it over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}[platform.machine()]
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")

SLICE_NS = 100_000
"""The least that the scheduler takes; by default it lets whoever runs go on for 3 ms when somebody wakes."""


def wake_at_once(nice: int) -> None:
    """Asks for short slices, which come first (6.12), for this thread and those it starts; best effort.

    What it gets in all stays as it was: ``nice`` decides that. Source: sched_setattr(2), and sched_runtime of
    SCHED_OTHER in Documentation/scheduler/sched-eevdf.rst.
    """
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def set_priority(pid: int, nice: int) -> None:
    """Sets a process's priority, also against other sessions; best effort.

    With autogroup scheduling (sched(7)) nice counts within a session only, and each child is a session of
    its own: the session's value is set as well. Never that of a session that others began: a daemon started
    from a shell would raise every program of that shell. In a cgroup with a CPU weight, that decides instead.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    if os.getsid(pid) != pid:
        return
    with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
        file.write(str(nice))
