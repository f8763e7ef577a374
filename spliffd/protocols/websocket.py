"""WebSocket as a spectator reads it: two byte streams in, finished messages out (RFC 6455, RFC 7692).

``WebSocket`` takes the plaintext of both directions behind the 101 as it was captured, cut anywhere, and the
losses between, and returns messages as they finish: fragments joined, masks undone, inflated; control frames
between fragments come out at once. It does no I/O, reads no clock, never raises on any input. Of a message at
most ``MAX_KEPT`` bytes are kept, of all messages under way what ``Room`` has; the sizes told are always those
of the whole message. Where bytes are cut makes no difference to what comes out, but for times, and for how
much is kept of a message that cannot be inflated to its end.

What happens where an endpoint would give up:

* a gap inside a payload: reading goes on behind it, the message is marked ``gap``. Of a compressed message
  what stands before the gap is kept; the messages behind it come out as soon as they do not refer to what
  was lost.
* a gap that hides where frames begin: the messages under way are marked, and frames are looked for again; the
  first message found is marked too.
* what cannot be inflated, or is a bomb: the message is ``truncated``.
* a header that breaks the rules: frames are looked for again.
* a connection that ends inside a message: ``aborted``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spliffd.protocols import websocket_frames as frames
from spliffd.protocols.messages import ABORTED, COMPLETE, GAP, TRUNCATED, HttpExchange
from spliffd.protocols.websocket_deflate import Agreed, Inflater
from spliffd.protocols.websocket_frames import find, is_legal, read_header, unmask
from spliffd.protocols.websocket_message import Room, WebSocketMessage

CLIENT: Final = 0
SERVER: Final = 1
"""Directions by who speaks."""

MAX_KEPT: Final = 256 << 10
"""Bytes kept of one message: with its unmasked twin it fits a datagram between worker and api."""

_HEADER: Final = 0
_PAYLOAD: Final = 1
_SEARCH: Final = 2
_CLOSED: Final = 3


NOTHING: Final[Sequence[WebSocketMessage]] = ()


class _Side:
    """One direction: where in a frame its reader stands, and what it keeps."""

    __slots__ = (
        "buffer",
        "data_message",
        "fin",
        "from_server",
        "inflater",
        "joined_by",
        "kept",
        "key",
        "message",
        "offset",
        "phase",
        "pieces",
        "remaining",
        "wanted",
    )

    def __init__(self, inflater: Inflater | None, *, from_server: bool) -> None:
        self.from_server = from_server
        self.inflater = inflater
        self.phase: int = _HEADER
        self.offset = 0
        self.buffer = bytearray()
        """The beginning of a header, or what is searched."""
        self.wanted = 0
        """Bytes that ``buffer`` must hold before anything can be said."""
        self.message: WebSocketMessage | None = None
        """The message whose frame is being read."""
        self.data_message: WebSocketMessage | None = None
        """The message that is not over, when control frames come between."""
        self.fin = False
        self.key = b""
        self.remaining = 0
        self.pieces: list[bytes] = []
        """Kept bytes of ``data_message``."""
        self.kept = 0
        self.joined_by = COMPLETE
        """Why the next message may lack its beginning, or be none: what a search finds may end by chance
        where the first true frame begins."""


class WebSocket:
    """One upgraded connection. ``room`` is shared with the others, ``exchange`` is what upgraded it."""

    def __init__(self, agreed: Agreed, room: Room, exchange: HttpExchange | None = None) -> None:
        self._room = room
        self._exchange = exchange
        self._rsv = frames.RSV if agreed.others else frames.RSV1 if agreed.deflate else 0
        client = Inflater(keep=agreed.keep_client) if agreed.deflate else None
        server = Inflater(keep=agreed.keep_server) if agreed.deflate else None
        self._sides = (_Side(client, from_server=False), _Side(server, from_server=True))
        self._out: list[WebSocketMessage] = []
        self.resyncs = 0
        """How often frame boundaries were lost and had to be searched."""
        self.garbage_bytes = 0
        """Bytes that belong to no frame."""

    def feed(self, direction: int, data: bytes, now: int) -> Sequence[WebSocketMessage]:
        """Takes the next bytes of a direction (CLIENT or SERVER); returns the messages that they finished."""
        side = self._sides[direction]
        side.offset += len(data)
        if side.buffer:
            side.buffer += data
            if len(side.buffer) < side.wanted:
                return NOTHING
            data = bytes(side.buffer)
            side.buffer.clear()
        pos = 0
        size = len(data)
        while pos < size:
            phase = side.phase
            if phase == _HEADER:
                pos = self._read_header(side, data, pos, now)
            elif phase == _PAYLOAD:
                pos = self._read_payload(side, data, pos, now)
            elif phase == _SEARCH:
                pos = self._search(side, data, pos)
            else:
                self.garbage_bytes += size - pos
                break
        return self._finished()

    def gap(self, direction: int, size: int, now: int) -> Sequence[WebSocketMessage]:
        """``size`` bytes of the direction are lost here; returns the messages that this ended."""
        side = self._sides[direction]
        if size <= 0 or side.phase == _CLOSED:
            return NOTHING
        message = side.message
        if side.phase == _PAYLOAD and message is not None and size <= side.remaining:
            self._lose_bytes(side, message, size)
            message.wire_size += size
            side.remaining -= size
            side.key = side.key[size % 4 :] + side.key[: size % 4]
            if not side.remaining:
                self._end_frame(side, now)
        else:
            if side.phase == _PAYLOAD and message is not None:
                self._lose_bytes(side, message, side.remaining)
            unfinished = side.data_message
            if unfinished is not None and unfinished is not message:
                self._lose_bytes(side, unfinished, size)
            self._lose_boundaries(side, GAP, now)
        side.offset += size
        return self._finished()

    def lose(self, direction: int, now: int) -> Sequence[WebSocketMessage]:
        """Nobody knows how many bytes of the direction are lost here."""
        side = self._sides[direction]
        if side.phase == _CLOSED:
            return NOTHING
        self._lose_boundaries(side, GAP, now)
        return self._finished()

    def eof(self, direction: int, now: int) -> Sequence[WebSocketMessage]:
        """The direction has ended: what is unfinished comes out, marked."""
        side = self._sides[direction]
        if side.phase != _CLOSED:
            self._give_up(side, ABORTED, now)
            self.garbage_bytes += len(side.buffer)
            side.buffer.clear()
            side.phase = _CLOSED
        return self._finished()

    def close(self, now: int) -> Sequence[WebSocketMessage]:
        """The connection is gone."""
        return [*self.eof(CLIENT, now), *self.eof(SERVER, now)]

    def held(self) -> int:
        """Bytes kept."""
        return sum(len(side.buffer) + side.kept for side in self._sides)

    def _finished(self) -> Sequence[WebSocketMessage]:
        if not self._out:
            return NOTHING
        out, self._out = self._out, []
        for message in out:
            message.exchange = self._exchange
        return out

    # ---- frames -------------------------------------------------------------------------------

    def _read_header(self, side: _Side, data: bytes, pos: int, now: int) -> int:
        header = read_header(data, pos)
        if not header.size:
            side.buffer += data[pos:]
            side.wanted = 0
            return len(data)
        if not is_legal(header, self._rsv):
            self._lose_boundaries(side, TRUNCATED, now)
            self.garbage_bytes += 1
            return pos + 1
        opcode = header.opcode
        if opcode >= frames.CLOSE:
            message = WebSocketMessage(opcode, from_server=side.from_server, compressed=False)
        else:
            message = self._data_message(side, header.first, now)
        if side.joined_by is not COMPLETE:
            message.mark(side.joined_by)
            side.joined_by = COMPLETE
        message.frames += 1
        message.wire_size += header.size
        message.end_ns = now
        side.message = message
        side.fin = header.first & frames.FIN != 0
        side.key = header.key
        side.remaining = header.length
        side.phase = _PAYLOAD
        if not header.length:
            self._end_frame(side, now)
        return pos + header.size

    def _data_message(self, side: _Side, first: int, now: int) -> WebSocketMessage:
        """The message that a data frame belongs to."""
        opcode = first & 15
        message = side.data_message
        if opcode == frames.CONTINUATION and message is not None:
            return message
        if message is not None:  # the last one was not ended
            self._end_message(side, message, TRUNCATED, now)
        compressed = first & frames.RSV1 != 0 and side.inflater is not None
        message = WebSocketMessage(opcode, from_server=side.from_server, compressed=compressed)
        if opcode == frames.CONTINUATION:
            message.mark(side.joined_by if side.joined_by is not COMPLETE else TRUNCATED)
        elif compressed and side.inflater is not None:
            side.inflater.begin()
        side.data_message = message
        return message

    def _read_payload(self, side: _Side, data: bytes, pos: int, now: int) -> int:
        message = side.message
        assert message is not None
        take = min(side.remaining, len(data) - pos)
        piece = data[pos : pos + take]
        key = side.key
        if key:
            piece = unmask(piece, key)
            turn = take % 4
            if turn:
                side.key = key[turn:] + key[:turn]
        message.wire_size += take
        message.end_ns = now
        side.remaining -= take
        if message is not side.data_message:
            message.data += piece
            message.size += take
        elif message.compressed and side.inflater is not None:
            for inflated in side.inflater.feed(piece):
                self._keep(side, message, inflated)
        else:
            self._keep(side, message, piece)
        if not side.remaining:
            self._end_frame(side, now)
        return pos + take

    def _keep(self, side: _Side, message: WebSocketMessage, piece: bytes) -> None:
        size = len(piece)
        message.size += size
        room = min(MAX_KEPT - side.kept, self._room.left)
        if room <= 0:
            return
        if size > room:
            piece = piece[:room]
            size = room
        side.pieces.append(piece)
        side.kept += size
        self._room.left -= size

    def _end_frame(self, side: _Side, now: int) -> None:
        message = side.message
        side.message = None
        side.phase = _HEADER
        if message is None:
            return
        if message is side.data_message:
            if side.fin:
                self._end_message(side, message, COMPLETE, now)
            return
        if message.opcode == frames.CLOSE:
            if len(message.data) >= 2 and not 0 <= message.gap_at < 2:
                message.close_code = int.from_bytes(message.data[:2])
            self._give_up(side, ABORTED, now)
            side.phase = _CLOSED
        self._out.append(message)

    def _end_message(self, side: _Side, message: WebSocketMessage, state: str, now: int) -> None:
        inflater = side.inflater
        if message.compressed and inflater is not None:
            if state is COMPLETE and not inflater.problem:
                for inflated in inflater.end():
                    self._keep(side, message, inflated)
            if inflater.problem:
                message.mark(TRUNCATED)
        if state is not COMPLETE:
            message.mark(state)
        if message.compressed and inflater is not None and message.state is not COMPLETE:
            inflater.lose()
        message.data = side.pieces[0] if len(side.pieces) == 1 else b"".join(side.pieces)
        message.end_ns = message.end_ns or now
        self._room.left += side.kept
        side.pieces = []
        side.kept = 0
        side.data_message = None
        self._out.append(message)

    # ---- losses -------------------------------------------------------------------------------

    def _lose_bytes(self, side: _Side, message: WebSocketMessage, size: int) -> None:
        message.mark(GAP)
        message.missing_bytes += size
        if message.gap_offset is None:
            message.gap_offset = side.offset
            message.gap_at = side.kept if message is side.data_message else len(message.data)
        if message.compressed and side.inflater is not None:
            side.inflater.lose()

    def _lose_boundaries(self, side: _Side, state: str, now: int) -> None:
        """Where frames begin is not known any more."""
        self._give_up(side, state, now)
        self.resyncs += 1
        self.garbage_bytes += len(side.buffer)
        side.buffer.clear()
        side.joined_by = state
        side.phase = _SEARCH
        if side.inflater is not None:
            side.inflater.lose()

    def _give_up(self, side: _Side, state: str, now: int) -> None:
        """What is under way ends here."""
        message, data_message = side.message, side.data_message
        side.message = None
        if message is not None and message is not data_message:
            message.mark(state)
            self._out.append(message)
        if data_message is not None:
            self._end_message(side, data_message, state, now)

    def _search(self, side: _Side, data: bytes, pos: int) -> int:
        rest = data[pos:] if pos else data
        start, wanted = find(rest, from_server=side.from_server, allowed_rsv=self._rsv)
        if start < 0:
            start = -1 - start
            self.garbage_bytes += start
            side.buffer += rest[start:]
            side.wanted = wanted
            return len(data)
        self.garbage_bytes += start
        side.phase = _HEADER
        return pos + start
