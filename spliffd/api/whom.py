"""Whose connections a filter can match: what the kernel is told, so that others cost little.

Takes the filters of all watchers; returns an ``ipc.Whom``, or None for everybody. A watcher's conditions
must all hold, so one of them is enough to tell who is of no interest; taken is the narrowest that the
kernel can decide by facts which a connection keeps for its whole life (pid, name of the process, user).
Whatever it cannot decide (patterns, units, hosts, descendants) means everybody: what comes too much is
held back by the filter itself. Never leaves out what a filter would let through.
"""

from __future__ import annotations

from collections.abc import Sequence

from spliffd import ipc
from spliffd.pb import spliff_pb2 as pb

MAX_WHOM = 2048
"""Values of all watchers together that are worth looking up for each connection: beyond it, everybody."""

COMM_BYTES = 15
"""The kernel's names of processes are as long at most (TASK_COMM_LEN with its zero)."""

MAX_UID = (1 << 32) - 1


def of(request: pb.Filter) -> ipc.Whom | None:
    """Whose connections ``request`` can match."""
    if request.ppids:
        return None  # descendants are learnt from everybody's exchanges
    if request.pids:
        return ipc.Whom(pids=list(request.pids))
    if request.comms and all(_plain(comm) for comm in request.comms):
        return ipc.Whom(comms=list(request.comms))
    if request.users and all(user.isascii() and user.isdigit() for user in request.users):
        # By name it is the user of the process's start, who may have become another since.
        return ipc.Whom(uids=[int(user) for user in request.users if int(user) <= MAX_UID])
    return None


def union(wanted: Sequence[ipc.Whom | None]) -> ipc.Whom | None:
    """Whoever is wanted by any watcher; None when that is everybody, or there is no watcher."""
    pids: set[int] = set()
    uids: set[int] = set()
    comms: set[str] = set()
    for one in wanted:
        if one is None:
            return None
        pids.update(one.pids)
        uids.update(one.uids)
        comms.update(one.comms)
    if not wanted or len(pids) + len(uids) + len(comms) > MAX_WHOM:
        return None
    return ipc.Whom(sorted(pids), sorted(uids), sorted(comms))


def _plain(comm: str) -> bool:
    """Whether it is a name that can be compared byte by byte."""
    return comm.isascii() and 0 < len(comm) <= COMM_BYTES and not any(mark in comm for mark in "*?[")
