"""Whose exchanges anybody wants to see: those of others are counted, and never serialised.

Takes a ``Demand``; says of a connection's facts whether somebody may want it. The kernel leaves out most
of what nobody wants; what still comes is there for the metrics (a sample), or because it must be followed
(HTTP/2). Never less than what the watchers' filters let through: it asks what they are made of
(``spliffd.api.whom``).
"""

from __future__ import annotations

from spliffd import ipc
from spliffd.correlation.facts import ConnectionFacts


class Wanted:
    """Of ``demand``; with history or a condition that only the supervisor can decide, everybody's are."""

    def __init__(self, demand: ipc.Demand) -> None:
        whom = demand.whom
        self.nobodys = not (demand.watchers or demand.history)
        self.everybodys = not self.nobodys and (
            demand.history or whom is None or bool(whom.units or whom.containers)
        )
        self._pids: frozenset[int] = frozenset(whom.pids if whom is not None else ())
        self._uids: frozenset[int] = frozenset(whom.uids if whom is not None else ())
        self._comms: frozenset[str] = frozenset(whom.comms if whom is not None else ())

    def wants(self, facts: ConnectionFacts) -> bool:
        """Whether exchanges of such a connection may be wanted."""
        return self.everybodys or (
            not self.nobodys
            and (facts.comm in self._comms or facts.pid in self._pids or facts.uid in self._uids)
        )
