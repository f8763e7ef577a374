"""Giving up root for good.

Takes numeric ids; afterwards every thread of the process runs as that user, with no supplementary
group and no capability, cannot gain any again by executing a file, and cannot be traced or dumped by
others of that user. Checks the result instead of trusting it, and raises ``FailedError`` otherwise.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from spliffd.errors import FailedError

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
"""prctl(2), from linux/prctl.h."""

CAPABILITY_LINES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def forbid_new_privileges() -> None:
    """Sets no_new_privs; call it before the first thread starts, each thread inherits it."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop(uid: int, gid: int) -> None:
    """Becomes ``uid``/``gid``. Without root this is possible only if the process is that user already."""
    if os.geteuid() == 0 and uid != 0:
        # glibc applies these to all threads (nptl(7)), gRPC's included.
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise FailedError(
            f"the api cannot become uid {uid}, gid {gid}",
            "start spliffd as root, and set [access] user to an existing user",
        )
    # A change of user makes the process dumpable again where fs.suid_dumpable says so.
    _prctl(PR_SET_DUMPABLE, 0)
    if uid != 0:
        _check_threads()


def _check_threads() -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            status = (thread / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
        lines = dict(line.partition(":")[::2] for line in status.splitlines())
        if any(int(lines[name], 16) for name in CAPABILITY_LINES):
            raise FailedError(
                f"thread {thread.name} of the api still holds capabilities",
                "report this together with the output of `uname -a` and `ldd --version`",
            )


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise FailedError(f"prctl({option}) failed: {os.strerror(number)}", "this kernel is too old")
