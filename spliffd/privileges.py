"""Gives up root for good: what every process but the supervisor does before it sees a captured byte.

Takes the ids to become; returns nothing; raises OSError when the kernel refuses, and RuntimeError when
root could be had back. No new privileges, no core dump or ptrace by the same user, no capabilities.
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 4, 38, 1


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent() -> None:
    """Asks for SIGKILL when the supervisor dies: kill -9 of it must leave nothing running."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def forbid_new_privileges() -> None:
    """From here on no execve gives back what is dropped."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop(uid: int, gid: int) -> None:
    """Becomes ``uid``/``gid`` in all threads, without capabilities, core dumps, or a way back.

    Changing ids clears the parent-death signal, so it is asked for again here. When the process is not
    root (tests), only what needs no root is done.
    """
    forbid_new_privileges()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if uid and os.getresuid() != (uid, uid, uid):
            raise RuntimeError(f"still uids {os.getresuid()} after dropping to {uid}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    die_with_parent()
    os.chdir("/")
