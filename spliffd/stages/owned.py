"""What somebody may be told who may know of one user's processes only.

Takes flows and entries of the ledger, and leaves those of processes that run as that user: by the effective
user of the process that had the pid when the flow began, never by whoever has that pid now. Where it is not
known whose something is, it is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable

from spliffd.attribution.processes import Processes
from spliffd.kernel.flows import Flow
from spliffd.stages.ledger import Entry, Key, Owners


class Owned:
    """Questions about users; ``processes`` knows who ran as whom."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def flows(self, uid: int, flows: Iterable[tuple[int, Flow]]) -> list[tuple[int, Flow]]:
        """The flows (by cookie) of this user's processes."""
        owners = Owners(self._processes)
        known: dict[Key, bool] = {}
        found = []
        for cookie, flow in flows:
            if not flow.tgid:
                continue
            key = owners.of(flow)
            if key not in known:
                known[key] = self._runs_as(uid, key)
            if known[key]:
                found.append((cookie, flow))
        return found

    def pids(self, uid: int, pids: Iterable[int]) -> frozenset[int]:
        """Those that are live processes of this user."""
        return frozenset(pid for pid in pids if self._runs_as(uid, (pid, self._start(pid))))

    def entries(self, uid: int, entries: Iterable[Entry]) -> list[Entry]:
        """The lines of the ledger that are about this user's processes."""
        return [entry for entry in entries if self._runs_as(uid, (entry.book.pid, entry.book.start_ns))]

    def _start(self, pid: int) -> int:
        start = self._processes.start_of(pid)
        return self._processes.exact(pid, start) if start else 0

    def _runs_as(self, uid: int, key: Key) -> bool:
        pid, start_ns = key
        if not start_ns:
            return False
        facts, known = self._processes.facts(pid, start_ns)
        return known and facts.uid == uid
