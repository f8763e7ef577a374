"""Which of exchanges that came together a filter lets through: runs of those that follow one another.

Takes ``Entries``; returns (start, end) of each run, in order. What a filter says of a connection is asked
once and remembered by what the summaries of its exchanges begin with: most filters ask for nothing else (a
process, a unit, a port), and then no exchange is taken apart. A filter that learns from what it sees
(descendants) is asked for each exchange. Never looks into messages: a filter with an expression is asked
one by one (``Delivery``).
"""

from __future__ import annotations

from collections.abc import Callable

from spliffd import ipc
from spliffd.api.filter import Filter
from spliffd.entries import Entries

MOST_REMEMBERED = 1024
"""Connections of which an answer is remembered, some 300 bytes each; with more, all are forgotten at once."""


class Chosen:
    """A filter without an expression, and what it has said of connections so far."""

    def __init__(self, chosen: Filter) -> None:
        self._filter = chosen
        self._told: dict[bytes, bool] = {}

    def runs(self, entries: Entries) -> list[tuple[int, int]]:
        """Places of exchanges that are wanted, from start to before end."""
        chosen = self._filter
        if chosen.descendants is not None:
            return _runs(bytes(chosen.match(entries.summary(index)) for index in range(len(entries))))
        of_connection = bytes(map(self._wants, entries.connections))
        if 1 not in of_connection:
            return []
        if chosen.match_own is not None:
            return _runs(_each(chosen.match_own, of_connection, entries))
        if 0 not in of_connection:
            return [(0, len(entries))]
        return _runs(bytes(of_connection[place] for place in entries.of))

    def _wants(self, connection: bytes) -> bool:
        known = self._told.get(connection)
        if known is None:
            if len(self._told) >= MOST_REMEMBERED:
                self._told.clear()
            summary = ipc.summary_of(connection + ipc.NO_EXCHANGE)
            known = self._told[connection] = self._filter.match_lasting(summary)
        return known


def _each(match: Callable[[ipc.Summary], bool], of_connection: bytes, entries: Entries) -> bytes:
    return bytes(
        of_connection[place] and match(entries.summary(index)) for index, place in enumerate(entries.of)
    )


def _runs(wanted: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    end = 0
    while (start := wanted.find(1, end)) >= 0:
        end = wanted.find(0, start)
        if end < 0:
            end = len(wanted)
        found.append((start, end))
    return found
