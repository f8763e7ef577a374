"""Gives up root for good: what every process but the supervisor does before it sees a captured byte.

Takes the ids to become; returns nothing; raises OSError when the kernel refuses or anything is left.
No capabilities (nor a bounding set to get them from), no new privileges, no core dumps, no ptrace by the
same user. Sources: capabilities(7), prctl(2), capset(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def die_with_parent() -> None:
    """Asks for SIGKILL when the supervisor dies: kill -9 of it must leave nothing running."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def forbid_new_privileges() -> None:
    """From here on no execve of this thread, or of one that it starts, gives back what is dropped."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0:
        for capability in range(_LAST_CAPABILITY + 1):
            # Fails for numbers that the kernel lacks, and for want of CAP_SETPCAP in the unit.
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def drop(uid: int, gid: int) -> None:
    """Becomes ``uid``/``gid`` in all threads, without capabilities, core dumps, or a way back.

    Changing ids clears the parent-death signal, so it is asked for again here. Without root (tests)
    there is nothing to drop but the way back: the limits apply all the same.
    """
    forbid_new_privileges()
    if os.geteuid() == 0:
        if uid == 0 or gid == 0:
            raise PermissionError("must not run as root: set [access] user to another user")
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
            raise PermissionError("user and group did not change")
    nothing = struct.pack("=6I", 0, 0, 0, 0, 0, 0)
    if _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), nothing):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    die_with_parent()
    os.chdir("/")
