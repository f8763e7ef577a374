"""What the scheduler is asked for: a share of the processors for each process, and to be woken at once.

The interpreter is asked for the same: threads that wait for each other do so briefly. Takes process ids and
numbers; best effort, a host that refuses is slower and not wrong. Never asks for real-time scheduling: what
watches a host must not take it over.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import struct
import sys

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}[platform.machine()]
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")

SLICE_NS = 100_000
"""The least that the scheduler takes; by default it lets whoever runs go on for 3 ms when somebody wakes."""

SWITCH_SECONDS = 0.0005
"""How long a thread of Python may run while another waits. By default 5 ms, and a new library is probed by
threads that wait for each other several times; a short-lived program needs 10 ms from mapping it to its first
request."""


def wait_for_nobody() -> None:
    """Lets this process's threads take turns soon, and collects garbage among less.

    What the process has by now is kept out of it: a collection took 13 to 22 ms of a supervisor with 1,000
    libraries, while new ones waited.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def wake_at_once(nice: int) -> None:
    """Asks for short slices, which come first (6.12), for this thread and those it starts; best effort.

    What it gets in all stays as it was: ``nice`` decides that. Source: sched_setattr(2), and sched_runtime of
    SCHED_OTHER in Documentation/scheduler/sched-eevdf.rst.
    """
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def set_priority(pid: int, nice: int) -> None:
    """Sets a process's priority, also against other sessions; best effort.

    With autogroup scheduling (sched(7)) nice counts within a session only: where the process began its
    session, as a service's supervisor does for itself and its children, the session's value is set as well.
    Never that of a session that others began: a daemon started from a shell would raise every program of that
    shell. In a cgroup with a CPU weight, that decides instead.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    if os.getsid(pid) != pid:
        return
    with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
        file.write(str(nice))
