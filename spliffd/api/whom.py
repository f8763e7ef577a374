"""Whose connections a filter can match: what the kernel is told, so that others cost little.

Takes the filters of all watchers; returns an ``ipc.Whom``, or None for everybody. A watcher's conditions
must all hold, so one of them is enough to tell who is of no interest; taken is the narrowest that the
kernel can decide: by facts which a connection keeps for its whole life (pid, name of the process, user), or
by the cgroup of its process (container, unit).
Whatever it cannot decide (patterns, hosts, descendants) means everybody: what comes too much is held back by
the filter itself. Never leaves out what a filter would let through, but for a process that has been moved to
another cgroup since its facts were read: its connections are told by where it is.
"""

from __future__ import annotations

import fnmatch
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
    if request.containers:
        return ipc.Whom(containers=[prefix.lower() for prefix in request.containers])
    if request.units and not any(fnmatch.fnmatchcase("", unit) for unit in request.units):
        # One that no unit matches lets through also those of whom nothing is known.
        return ipc.Whom(units=list(request.units))
    return None


def union(wanted: Sequence[ipc.Whom | None]) -> ipc.Whom | None:
    """Whoever is wanted by any watcher; None when that is everybody, or there is no watcher."""
    pids: set[int] = set()
    uids: set[int] = set()
    comms: set[str] = set()
    units: set[str] = set()
    containers: set[str] = set()
    for one in wanted:
        if one is None:
            return None
        pids.update(one.pids)
        uids.update(one.uids)
        comms.update(one.comms)
        units.update(one.units)
        containers.update(one.containers)
    values = (pids, uids, comms, units, containers)
    if not wanted or sum(len(kind) for kind in values) > MAX_WHOM:
        return None
    return ipc.Whom(sorted(pids), sorted(uids), sorted(comms), sorted(units), sorted(containers))


def _plain(comm: str) -> bool:
    """Whether it is a name that can be compared byte by byte."""
    return comm.isascii() and 0 < len(comm) <= COMM_BYTES and not any(mark in comm for mark in "*?[")
