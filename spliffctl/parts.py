"""Joins the parts of large bodies with the exchange that they belong to.

Takes ``BodyPart`` and ``Discard`` items as they come and, when the exchange arrives, gives its two bodies:
bytes in the order of their offsets, with every hole known. Parts wait in memory until their exchange or a
Discard arrives; past ``MAX_WAITING_BYTES`` a new part is dropped, which ``take_loss`` reports and the body
shows as a hole. Never fills a hole with bytes that nobody sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_WAITING_BYTES = 1 << 30
"""1 GiB of parts in total: the size of the largest single body worth joining on a workstation."""

PART_OVERHEAD = 160
"""Bytes of memory that a part costs beside its data (bytes object, tuple, list slot), so that a flood
of empty parts meets the bound as well."""

Segment = tuple[int, bytes]
"""Offset in the body, and the bytes from there on."""


@dataclass(frozen=True, slots=True)
class Body:
    """What arrived of one body: segments in order, none overlapping."""

    segments: tuple[Segment, ...] = ()
    holes: tuple[tuple[int, int], ...] = ()
    """(offset, length) of what lies before, between or behind the segments and did not arrive."""

    @property
    def missing(self) -> int:
        """Bytes in all holes."""
        return sum(length for _, length in self.holes)

    @property
    def data(self) -> bytes:
        """All bytes that arrived; holes are left out."""
        return self.segments[0][1] if len(self.segments) == 1 else b"".join(data for _, data in self.segments)


def join(parts: list[Segment], body: bytes, body_offset: int, limit: int) -> Body:
    """One body from its parts and the rest that came with the exchange.

    Parts that overlap (sent twice) count once. What lies behind ``limit`` (0: none) was not asked for
    and is no hole.
    """
    segments: list[Segment] = []
    holes: list[tuple[int, int]] = []
    end = 0
    for offset, data in [*sorted(parts, key=lambda part: part[0]), (body_offset, body)]:
        fresh = data
        start = offset
        if offset < end:
            fresh, start = data[end - offset :], end
        elif offset > end and not (limit and end >= limit):
            holes.append((end, offset - end))
        if fresh:
            segments.append((start, fresh))
            end = start + len(fresh)
        elif start > end:
            end = start
    return Body(tuple(segments), tuple(holes))


class PartStore:
    """Parts that wait for their exchange, by part key and direction."""

    def __init__(self, *, limit: int = 0, capacity: int = MAX_WAITING_BYTES) -> None:
        self._limit = limit
        self._capacity = capacity
        self._waiting: dict[int, tuple[list[Segment], list[Segment]]] = {}
        self._bytes = 0
        self._lost_parts = 0
        self._lost_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait now, overhead included."""
        return self._bytes

    def __contains__(self, part_key: int) -> bool:
        return part_key in self._waiting

    def add(self, part: pb.BodyPart) -> None:
        """Keeps a part, or counts it as lost when there is no room."""
        data = part.data
        cost = len(data) + PART_OVERHEAD
        if self._bytes + cost > self._capacity:
            self._lost_parts += 1
            self._lost_bytes += len(data)
            self._mark_end(part, part.offset + len(data))
            return
        self._bytes += cost
        self._waiting.setdefault(part.part_key, ([], []))[part.response].append((part.offset, data))

    def _mark_end(self, part: pb.BodyPart, end: int) -> None:
        """Remembers how far a body went of which a part was dropped: an empty segment behind it.

        One marker for parts dropped in a row, so a flood of them needs no memory.
        """
        waiting = self._waiting.setdefault(part.part_key, ([], []))[part.response]
        if waiting and not waiting[-1][1]:
            waiting[-1] = (max(end, waiting[-1][0]), b"")
        else:
            self._bytes += PART_OVERHEAD
            waiting.append((end, b""))

    def discard(self, part_keys: list[int]) -> None:
        """Forgets the parts of exchanges that turned out not to match."""
        for key in part_keys:
            self._pop(key)

    def take_response(self, part_key: int) -> list[Segment]:
        """What waits of a response's body; it waits no longer."""
        parts = self._waiting.get(part_key)
        if parts is None:
            return []
        waiting = parts[1]
        self._waiting[part_key] = (parts[0], [])
        self._bytes -= sum(len(data) + PART_OVERHEAD for _, data in waiting)
        return waiting

    def clear(self) -> None:
        """Forgets all parts: their exchanges will not come."""
        self._waiting.clear()
        self._bytes = 0

    def take(self, exchange: pb.Exchange) -> tuple[Body, Body]:
        """The bodies of request and response of an exchange; its parts wait no longer."""
        of_request, of_response = self._pop(exchange.part_key)
        request, response = exchange.request, exchange.response
        return (
            join(of_request, request.body, request.body_offset, self._limit),
            join(of_response, response.body, response.body_offset, self._limit),
        )

    def take_loss(self) -> tuple[int, int]:
        """Parts and bytes dropped since the last call."""
        lost = (self._lost_parts, self._lost_bytes)
        self._lost_parts = self._lost_bytes = 0
        return lost

    def _pop(self, key: int) -> tuple[list[Segment], list[Segment]]:
        parts = self._waiting.pop(key, None)
        if parts is None:
            return [], []
        for waiting in parts:
            self._bytes -= sum(len(data) + PART_OVERHEAD for _, data in waiting)
        return parts
