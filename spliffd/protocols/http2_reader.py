"""Reads both directions of an HTTP/2 connection, frame by frame (RFC 9113).

Takes the bytes of one direction and goes through them; hands header blocks, data, resets to ``streams``,
where finished exchanges collect. ``http2`` adds what comes from outside: calls, losses and ends.

DATA goes out as it comes, copied once. All other frames are read whole; nothing is kept beyond one frame
header, one header block and one frame of it a direction. The length of frames is always believed, also of
those that break the rules: a spectator loses more by searching than by reading on. Only nine bytes that no
peer could have meant as a header (DATA on stream 0, RST_STREAM of six bytes) mean that boundaries are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.http2_blocks import Blocks
from spliffd.protocols.http2_frames import FRAME_HEADER, HEADER_SIZE, Side
from spliffd.protocols.http2_search import Search, believable
from spliffd.protocols.messages import TRUNCATED, HttpExchange

REQUEST: Final = 0
RESPONSE: Final = 1

OnBody = Callable[[HttpExchange, bool, bytes], None]

# By type: what this reader does with a frame.
_STREAM_FRAMES: Final = (frames.DATA, frames.HEADERS, frames.PRIORITY, frames.RST_STREAM, frames.CONTINUATION)
_READ_FRAMES: Final = (frames.SETTINGS, frames.GOAWAY, frames.RST_STREAM)
_FIXED: Final = {frames.PRIORITY: 5, frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}

SEARCH_STEP: Final = 4096
"""Bytes searched at a time: the next frame is rarely far, and what was searched is copied."""


class Reader(Blocks):
    """The way through the bytes of a connection."""

    def __init__(self, on_body: OnBody | None, *, joined: bool = False) -> None:
        Blocks.__init__(self, joined=joined)
        self.on_body = on_body
        self.resyncs = 0
        """How often frame boundaries were lost and had to be searched."""
        self.garbage_bytes = 0
        """Bytes that belong to no frame."""
        self._searches = [
            Search(0, self.streams, is_response=side.is_response, fresh=True) for side in self._sides
        ]
        """By direction; meant only while its phase is SEARCH."""
        self.control_frames = 0
        """SETTINGS, PING, PRIORITY, WINDOW_UPDATE, GOAWAY and extension frames; floods show here."""

    def _run(self, side: Side, data: bytes, now: int) -> None:
        pos = 0
        size = len(data)
        while pos < size:
            phase = side.phase
            if phase == frames.FRAME:
                pos = self._read_frame(side, data, pos, now)
                if side.trust < frames.TRUSTED and not side.buffer and side.phase != frames.SEARCH:
                    side.trust += 1  # once a frame, also when it came in pieces
            elif phase == frames.BODY:
                pos = self._read_body(side, data, pos, now)
            elif phase == frames.SKIP:
                take = min(side.skip, size - pos)
                pos += take
                side.skip -= take
                if not side.skip:
                    side.phase = frames.FRAME
            elif phase == frames.SEARCH:
                earlier, pos = self._search(side, data, pos)
                if earlier:
                    data = earlier + data
                    size = len(data)
            elif phase == frames.START:
                pos = self._read_preface(side, data, pos, now)
            else:
                self.garbage_bytes += size - pos
                return

    def _read_frame(self, side: Side, data: bytes, pos: int, now: int) -> int:
        size = len(data)
        if size - pos < HEADER_SIZE:
            return side.keep(data, pos, HEADER_SIZE, now)
        high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, pos)
        length: int = high << 8 | low
        if side.trust < frames.TRUSTED and not believable(
            self.streams, length, kind, flags, stream_id, is_response=side.is_response
        ):
            return self._lose(side, pos, size)
        stream_id &= 0x7FFFFFFF
        if not stream_id and kind in _STREAM_FRAMES:
            return self._lose(side, pos, size)
        if kind == frames.DATA:
            if side.in_block:
                self._break_block(side, TRUNCATED)
            return self._begin_data(side, data, pos, length, flags, stream_id, now)
        if _FIXED.get(kind, length) != length:
            return self._lose(side, pos, size)
        start = pos + HEADER_SIZE
        if kind in frames.BLOCK_FRAMES:
            if length > frames.MAX_BLOCK:
                self._begin_block(side, b"", kind, flags, stream_id, length, TRUNCATED, now)
                return self._skip(side, start, length)
            if size - start < length:
                return side.keep(data, pos, HEADER_SIZE + length, now)
            payload = data[start : start + length]
            self._begin_block(side, payload, kind, flags, stream_id, length, "", now)
            side.frame_ns = 0
            return start + length
        if side.in_block:
            self._break_block(side, TRUNCATED)
        if kind not in _READ_FRAMES or length > frames.MAX_SETTINGS:
            self.control_frames += 1
            side.frame_ns = 0
            return self._skip(side, start, length)
        if size - start < length:
            return side.keep(data, pos, HEADER_SIZE + length, now)
        side.frame_ns = 0
        if kind == frames.RST_STREAM:
            code = int.from_bytes(data[start : start + 4])
            self.streams.reset(stream_id, code, is_response=side.is_response)
            return start + length
        self.control_frames += 1
        if kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._read_settings(side, data[start : start + length])
        elif side.is_response and length >= 8:
            last = int.from_bytes(data[start : start + 4]) & 0x7FFFFFFF
            self.streams.goaway(last, int.from_bytes(data[start + 4 : start + 8]))
        return start + length

    def _skip(self, side: Side, pos: int, length: int) -> int:
        if length:
            side.skip = length
            side.phase = frames.SKIP
        return pos

    # ---- data ---------------------------------------------------------------------------------

    def _begin_data(
        self, side: Side, data: bytes, pos: int, length: int, flags: int, stream_id: int, now: int
    ) -> int:
        start = pos + HEADER_SIZE
        padding = 0
        overhead = HEADER_SIZE
        if flags & frames.PADDED and length:
            if start == len(data):
                return side.keep(data, pos, HEADER_SIZE + 1, now)
            # More padding than frame is against the rules; all of it is padding then.
            padding = min(data[start], length - 1)
            start += 1
            length -= 1 + padding
            overhead += 1 + padding
        is_response = side.is_response
        stream = self.streams.data(stream_id, length, side.frame_ns or now, is_response=is_response)
        side.frame_ns = 0
        if stream is None:
            return self._skip(side, start, length + padding)
        message = stream.exchange.response if is_response else stream.exchange.request
        if message is not None:
            message.overhead_size += overhead
            message.end_ns = now
        side.stream = side.latest = stream
        side.remaining = length
        side.skip = padding
        side.ends_stream = flags & frames.END_STREAM != 0
        side.phase = frames.BODY
        if not length:
            self._end_data(side)
            return start
        return self._read_body(side, data, start, now) if start < len(data) else start

    def _read_body(self, side: Side, data: bytes, pos: int, now: int) -> int:
        stream = side.stream
        assert stream is not None
        size = len(data)
        take = min(side.remaining, size - pos)
        is_response = side.is_response
        message = stream.exchange.response if is_response else stream.exchange.request
        if stream.open and message is not None:
            counter = stream.response_messages if is_response else stream.request_messages
            websocket = stream.websocket
            if counter is not None or self.on_body is not None or websocket is not None:
                piece = data if take == size else data[pos : pos + take]
                if counter is not None:
                    counter.feed(piece)
                if websocket is not None:
                    self.streams.messages += websocket.feed(is_response, piece, now)
                elif self.on_body is not None:
                    self.on_body(stream.exchange, is_response, piece)
            message.body_size += take
            message.end_ns = now
        else:  # reset while the frame was on its way
            self.streams.stray_bytes += take
        side.remaining -= take
        if not side.remaining:
            self._end_data(side)
        return pos + take

    def _end_data(self, side: Side) -> None:
        """The data of a frame is over; padding may follow."""
        stream = side.stream
        side.stream = None
        side.phase = frames.SKIP if side.skip else frames.FRAME
        if side.ends_stream and stream is not None and stream.open:
            self.streams.end(stream, is_response=side.is_response)

    # ---- settings, preface, search ------------------------------------------------------------

    def _read_settings(self, side: Side, payload: bytes) -> None:
        """What a peer announces binds the other direction's encoder."""
        for pos in range(0, len(payload) - 5, 6):
            if int.from_bytes(payload[pos : pos + 2]) == frames.SETTINGS_HEADER_TABLE_SIZE:
                self._sides[1 - side.is_response].decoder.limit = int.from_bytes(payload[pos + 2 : pos + 6])

    def _read_preface(self, side: Side, data: bytes, pos: int, now: int) -> int:
        preface = frames.PREFACE
        if len(data) - pos < len(preface):
            return side.keep(data, pos, len(preface), now)
        if data.startswith(preface, pos):
            side.phase = frames.FRAME
            side.frame_ns = 0
            return pos + len(preface)
        return self._lose(side, pos, len(data))

    def _lose(self, side: Side, pos: int, size: int) -> int:
        """What stands at ``pos`` is no frame: the next one is looked for."""
        if side.in_block:
            self._break_block(side, TRUNCATED)
        self.resyncs += 1
        side.phase = frames.SEARCH
        side.trust = 0
        side.frame_ns = 0
        side.decoder.lose()
        offset = side.offset - (size - pos)
        self.streams.lose(offset, 0, is_response=side.is_response)
        self.garbage_bytes += 1
        self._searches[side.is_response] = Search(
            offset + 1, self.streams, is_response=side.is_response, fresh=False
        )
        return pos + 1

    def _search(self, side: Side, data: bytes, pos: int) -> tuple[bytes, int]:
        """Looks for a frame; returns kept bytes to be read before ``data``, and where to read on in both."""
        search = self._searches[side.is_response]
        size = len(data)
        start = side.offset - size
        found = -1
        while pos < size and found < 0:
            found = search.feed(data[pos : pos + SEARCH_STEP])
            pos += SEARCH_STEP
        if found < 0:
            return b"", size
        self.garbage_bytes += found - search.start
        pos = found - search.base
        side.phase = frames.FRAME
        if search.fresh and search.buffer.startswith(frames.PREFACE, pos):
            side.phase = frames.START
            side.trust = frames.TRUSTED - 1
            self.streams.begin()
        earlier = bytes(search.buffer[pos : start - search.base]) if found < start else b""
        search.buffer.clear()
        return earlier, max(0, found - start)
