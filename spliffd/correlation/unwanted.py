"""What nobody wants of a connection: the kernel is told, and says what it then left out.

Of HTTP/1 it is told up to which offset a body of known length reaches, and the next record's offset shows
what is missing. Of HTTP/2 it is told whose bodies nobody wants; it follows the frames itself, and a record
says which of them it left out. Neither is a loss, unless somebody wants bodies by now.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Final

from spliffd.correlation.connection import HTTP1, NOTHING, Connection
from spliffd.kernel import records
from spliffd.kernel.unwanted import STREAMS
from spliffd.protocols.http1 import REQUEST, RESPONSE
from spliffd.protocols.http2_unwanted import Part, Skipped
from spliffd.protocols.messages import HttpExchange

SPARED_REST: Final = 256 << 10
"""Rest of a body that is worth telling that nobody wants it: what comes until the kernel knows is copied."""


class Unwanted:
    """Tells the kernel, for all connections of an engine."""

    def __init__(self) -> None:
        self.tell_until: Callable[[bytes, int, int], None] | None = None
        """Up to which offsets (sent, received) nobody wants a connection's bytes; 0, 0: it wants all."""
        self.tell_streams: Callable[[bytes, Sequence[int], Sequence[int]], None] | None = None
        """Of which of its streams (sent, received) nobody wants the bodies."""

    def look(self, connection: Connection, direction: int) -> None:
        """A large piece of a connection came, and nobody wants its bodies: tells what of the rest it can."""
        if self.tell_until is None:
            return
        if connection.http2 is not None:
            if self.tell_streams is not None and _choose_stream(connection, direction):
                assert connection.unwanted_streams is not None
                self.tell_streams(connection.key, *connection.unwanted_streams)
            return
        sent, received = _rest(connection, direction)
        if sent or received:
            self.tell_until(connection.key, sent, received)

    def take_back(self, connection: Connection) -> None:
        """Watchers have changed: somebody may want its bodies now."""
        if connection.on_body is None:
            return
        told = any(connection.unwanted) or connection.unwanted_streams is not None
        if told and self.tell_until is not None:
            self.tell_until(connection.key, 0, 0)
            connection.unwanted_streams = None


def _rest(connection: Connection, direction: int) -> list[int]:
    """Offsets of both directions up to which nobody wants what comes, while nobody wants bodies.

    The last byte of a body is wanted: it tells when the message has ended.
    """
    http1 = connection.http1
    if http1 is not None and connection.state == HTTP1:
        left = http1.body_left(_side(connection, direction))
        if left >= SPARED_REST:
            connection.unwanted[direction] = connection.expect[direction] + left - 1
    return connection.unwanted


def _choose_stream(connection: Connection, direction: int) -> bool:
    """Whether the kernel is to be told of ``unwanted_streams``: what came last is of a large body.

    There is room for a few each way; a stream that is over gives its place to another.
    """
    http2 = connection.http2
    stream = http2.unwanted_stream(_side(connection, direction)) if http2 is not None else 0
    if http2 is None or not stream:
        return False
    if connection.unwanted_streams is None:
        connection.unwanted_streams = ([0] * STREAMS, [0] * STREAMS)
    told = connection.unwanted_streams[direction]
    if stream in told:
        return True  # it still comes: another connection may have taken the slot
    for place, old in enumerate(told):
        if old not in http2.streams.open:
            told[place] = stream
            return True
    return False


def skipped(connection: Connection, ring: mmap.mmap, at: int) -> Sequence[HttpExchange]:
    """Goes on behind what the kernel left out of HTTP/2: the RECORD_SKIPPED at ``at``."""
    _, direction, _, captured, end, offset, size, start = records.HEAD.unpack_from(ring, at)
    direction &= 1
    if captured != records.SKIPPED_BYTES:
        return NOTHING  # no program writes that; the next offset tells what is missing
    if not connection.method:
        connection.note(direction, start, end)
    now = end if direction else start
    expected = connection.expect[direction]
    connection.expect[direction] = offset + size
    if expected < 0:
        return NOTHING
    finished = connection.missing(direction, expected, offset, now) if expected < offset else NOTHING
    parts, left, current = records.unpack_skipped(ring, at + records.HEADER_BYTES)
    what = Skipped(size, tuple(Part(*part) for part in parts), left, current)
    http2 = connection.http2
    if http2 is not None and expected <= offset and http2.skip(_side(connection, direction), what, now):
        return finished
    return [*finished, *connection.gap(direction, size, now)]


def _side(connection: Connection, direction: int) -> int:
    return REQUEST if direction == connection.request_direction else RESPONSE
