"""HTTP/2 as a spectator reads it: two byte streams in, finished exchanges out (RFC 9113).

``Http2`` takes the plaintext of both directions as it was captured, cut anywhere, and the losses between,
and returns exchanges as they finish. It does no I/O, reads no clock (``now`` comes with the bytes), never
raises on any input, and keeps no more than one header block and one frame of it a direction (``held``), and
``MAX_STREAMS`` open exchanges. Where bytes are cut makes no difference to what comes out, times aside.

Below it: ``http2_reader`` goes through the frames, ``hpack`` decodes header blocks, ``http2_streams`` says
what belongs to which exchange, ``http2_search`` finds frames again when boundaries are lost, ``grpc`` reads
what calls add.

What happens where an endpoint would give up:

* a connection joined in the middle: from the first frame on, all new requests; fields that refer to what was
  sent before are named ``(unknown)`` and the exchange is marked ``joined_mid_stream``.
* a gap inside DATA: reading goes on behind it, the exchange is marked ``gap``. A gap inside a header block:
  what stands before it is decoded, the message is marked, frames go on where the length says.
* a gap that hides a frame header: the exchanges whose messages were under way in that direction are
  marked, and the next frame is looked for. Messages that begin behind it are whole; fields that refer to
  what the gap hid are ``(unknown)``.
* blocks that do not decode: the fields before the fault are kept, the exchange is ``truncated``.
* a reset, or an end before the end of a message: ``aborted``; NO_ERROR behind a whole response is no abort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.http2_frames import HEADER_SIZE, Side, read_header
from spliffd.protocols.http2_reader import REQUEST, RESPONSE, Reader
from spliffd.protocols.http2_search import Search
from spliffd.protocols.http2_unwanted import Skipped, skip, unwanted_stream
from spliffd.protocols.messages import GAP, TRUNCATED, HttpExchange

__all__ = ["NOTHING", "REQUEST", "RESPONSE", "Http2"]

NOTHING: Final[Sequence[HttpExchange]] = ()


UNKNOWN_CODE: Final = -1
"""Of a RST_STREAM whose error code is lost."""


class Http2(Reader):
    """One connection. ``joined``: its beginning was not seen.

    ``on_body(exchange, is_response, data)`` is handed body bytes in order, framing and padding removed; while
    it runs, ``body_size`` of the half is the offset of ``data`` (a gap makes it jump). It may be None, and be
    changed at any time.
    """

    def feed(self, direction: int, data: bytes, now: int) -> Sequence[HttpExchange]:
        """Takes the next bytes of a direction; returns the exchanges that they finished."""
        side = self._sides[direction]
        side.offset += len(data)
        if side.buffer:
            whole = side.gather(data)
            if whole is None:
                return NOTHING
            data = whole
        self._run(side, data, now)
        return self._finished() if self._out else NOTHING

    def gap(self, direction: int, size: int, now: int) -> Sequence[HttpExchange]:
        """``size`` bytes of the direction are lost here; returns the exchanges that this ended."""
        side = self._sides[direction]
        if size <= 0 or side.phase == frames.CLOSED:
            return NOTHING
        left = self._gap_known(side, size, now)
        if left:
            self._gap_unknown(side, size, left)
        side.offset += size
        return self._finished()

    def unwanted_stream(self, direction: int) -> int:
        """The stream whose large body is being read, if nothing but its size is of use; else 0."""
        return unwanted_stream(self._sides[direction])

    def skip(self, direction: int, skipped: Skipped, now: int) -> bool:
        """DATA frames that nobody wanted were left out here; False: that cannot be what stood here.

        Nothing is lost by that, unless somebody wants bodies by now.
        """
        return skip(self._sides[direction], self.streams, skipped, now, wanted=self.on_body is not None)

    def eof(self, direction: int, now: int) -> Sequence[HttpExchange]:  # noqa: ARG002 - as in Http1
        """The direction ended properly (close_notify); later bytes of it are garbage."""
        side = self._sides[direction]
        if side.phase != frames.CLOSED:
            if side.in_block:
                self._break_block(side, TRUNCATED)
            if side.phase == frames.BODY and side.stream is not None and side.stream.open:
                side.stream.exchange.missing_bytes += side.remaining
            self._give_up_kept(side)
            side.phase = frames.CLOSED
            if side.is_response:
                self.streams.end_responses()
            else:
                self.streams.end_requests()
        return self._finished()

    def close(self, now: int) -> Sequence[HttpExchange]:
        """The connection is gone: everything pending comes out, marked."""
        first = [*self.eof(REQUEST, now), *self.eof(RESPONSE, now)]
        self.streams.end_responses()  # also what came behind the end of the responses
        return [*first, *self._finished()]

    def under_way(self) -> Sequence[HttpExchange]:
        """Exchanges that are not finished."""
        return [stream.exchange for stream in self.streams.open.values()]

    def held(self) -> int:
        """Bytes kept: beginnings of frames and of header blocks."""
        kept = sum(len(side.buffer) + len(side.block) for side in self._sides)
        return kept + sum(len(search.buffer) for search in self._searches)

    def _finished(self) -> Sequence[HttpExchange]:
        if not self._out:
            return NOTHING
        out = self._out[:]
        self._out.clear()
        return out

    # ---- losses -------------------------------------------------------------------------------

    def _gap_known(self, side: Side, size: int, now: int) -> int:
        """Counts a gap through what is known to stand there; returns how much of it lies behind."""
        if side.phase == frames.START:
            left = len(frames.PREFACE) - len(side.take())
            side.phase = frames.FRAME
            return self._count_through(side, left, size)
        if side.phase == frames.FRAME and len(side.buffer) >= HEADER_SIZE:
            return self._gap_in_frame(side, size, now)
        if side.phase == frames.BODY and side.stream is not None:
            lost = min(size, side.remaining)
            self._gap_in_body(side, lost)
            side.remaining -= lost
            size -= lost
            if not side.remaining:
                self._end_data(side)
        if size and side.phase == frames.SKIP:
            left, side.skip = side.skip, 0
            side.phase = frames.FRAME
            return self._count_through(side, left, size)
        return size

    def _count_through(self, side: Side, left: int, size: int) -> int:
        """``left`` bytes of the frame at hand are missing or of no use, ``size`` of all are lost."""
        if size < left:
            self._skip(side, 0, left - size)
            return 0
        return size - left

    def _gap_in_body(self, side: Side, size: int) -> None:
        stream = side.stream
        is_response = side.is_response
        if not size or stream is None or not stream.open:
            return
        message = stream.exchange.response if is_response else stream.exchange.request
        if message is not None:
            stream.exchange.mark_gap(side.offset, size)
            message.body_size += size
        counter = stream.response_messages if is_response else stream.request_messages
        if counter is not None:
            counter.skip(size)
        if stream.websocket is not None:
            self.streams.messages += stream.websocket.gap(is_response, size, 0)

    def _gap_in_frame(self, side: Side, size: int, now: int) -> int:
        """The frame's header is here, the end of its payload is lost."""
        kept = side.take()
        length, kind, flags, stream_id = read_header(kept, 0)
        stream_id &= 0x7FFFFFFF
        left = HEADER_SIZE + length - len(kept)
        if kind in frames.BLOCK_FRAMES:
            side.cut = self.streams.cut = (side.offset, min(left, size))
            self._begin_block(side, kept[HEADER_SIZE:], kind, flags, stream_id, length, GAP, now)
        elif kind == frames.RST_STREAM:
            self.streams.reset(stream_id, UNKNOWN_CODE, is_response=side.is_response)
        elif kind == frames.DATA:  # only its padding length is missing: how much of it is data is lost
            stream = self.streams.data(stream_id, length, now, is_response=side.is_response)
            if stream is not None:
                side.stream = stream
                side.ends_stream = flags & frames.END_STREAM != 0
                stream.exchange.mark_gap(side.offset, min(left, size))
                counter = stream.response_messages if side.is_response else stream.request_messages
                if counter is not None:
                    counter.lose()
                self._end_data(side)
        return self._count_through(side, left, size)

    def _gap_unknown(self, side: Side, size: int, left: int) -> None:
        """A gap of which the last ``left`` bytes hide frame headers."""
        offset = side.offset + size - left
        if side.in_block:
            side.cut = self.streams.cut = (offset, left)
            self._break_block(side, GAP)
        self._give_up_kept(side)
        self.resyncs += 1
        side.phase = frames.SEARCH
        search = Search(side.offset + size, self.streams, is_response=side.is_response, fresh=True)
        self._searches[side.is_response] = search
        side.trust = 0
        side.decoder.lose()
        self.streams.lose(offset, left, is_response=side.is_response)

    def _give_up_kept(self, side: Side) -> None:
        """What is kept of the direction becomes no frame any more."""
        if side.phase == frames.SEARCH:
            search = self._searches[side.is_response]
            self.garbage_bytes += side.offset - search.start
            search.buffer.clear()
        self.garbage_bytes += len(side.take())
