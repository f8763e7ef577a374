"""Puts header blocks together from their frames and has them decoded (RFC 9113 section 4.3).

Takes the payloads of HEADERS, PUSH_PROMISE and CONTINUATION frames; hands decoded fields to ``streams``,
together with why they may not be all. A block that is too long, that a gap cut or that no CONTINUATION
finished is decoded as far as it goes; the dynamic table behind it is unknown then, and the next block is
tried as ever.
"""

from __future__ import annotations

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.http2_frames import HEADER_SIZE, Side
from spliffd.protocols.http2_streams import Streams
from spliffd.protocols.messages import GAP, TRUNCATED, HttpExchange


class Blocks:
    """State of a connection."""

    def __init__(self, *, joined: bool) -> None:
        self.oversized_blocks = 0
        """Header blocks beyond MAX_BLOCK; they and the table that they would have changed are lost."""
        self.oversized_lists = 0
        """Header blocks that decode to more than is kept (HPACK bombs)."""
        self.broken_blocks = 0
        """Header blocks that were no valid ones, or that no CONTINUATION finished."""
        self.unknown_fields = 0
        """Fields named ``(unknown)``: they refer to what was sent before we joined, or in a gap."""
        self.continuation_floods = 0
        """Header blocks in more than MAX_FRAGMENTS frames."""
        self._out: list[HttpExchange] = []
        self.streams = Streams(self._out, joined=joined)
        """Counts ``reaped``, ``resets``, ``stray_frames`` and ``stray_bytes``."""
        self._sides = (Side(is_response=False, joined=joined), Side(is_response=True, joined=joined))

    def _begin_block(
        self,
        side: Side,
        payload: bytes,
        kind: int,
        flags: int,
        stream_id: int,
        length: int,
        flaw: str,
        now: int,
    ) -> None:
        """A frame with a header block or a part of one. ``flaw``: its end is missing, and this is why."""
        if kind == frames.CONTINUATION:
            if not side.in_block or stream_id != side.block_stream_id:
                # The rest of a block whose beginning is lost.
                if side.in_block:
                    self._break_block(side, TRUNCATED)
                self.streams.stray_frames += 1
                side.decoder.lose()
                return
            side.block_overhead += HEADER_SIZE + length
            side.block_fragments += 1
            if side.block_fragments == frames.MAX_FRAGMENTS + 1:
                self.continuation_floods += 1
        else:
            if side.in_block:
                self._break_block(side, TRUNCATED)
            side.block_stream_id = stream_id
            side.block_ends = kind == frames.HEADERS and flags & frames.END_STREAM != 0
            side.block_overhead = HEADER_SIZE + length
            side.block_start_ns = side.frame_ns or now
            side.block_promised = 0
            side.block_broken = ""
            side.block_fragments = 0
            if kind == frames.PUSH_PROMISE or flags & (frames.PADDED | frames.WITH_PRIORITY):
                fragment = _unwrap(side, payload, kind, flags, length)
                if fragment is None:
                    flaw = flaw or TRUNCATED
                payload = fragment or b""
            if flags & frames.END_HEADERS and not flaw:
                self._decode_block(side, payload, now)
                return
            side.in_block = True
        if not side.block_broken:
            side.block_broken = flaw
            if len(side.block) + length > frames.MAX_BLOCK:
                self.oversized_blocks += 1
                side.block_broken = flaw or TRUNCATED
            else:
                side.block += payload
        if flags & frames.END_HEADERS:
            self._end_block(side, now)

    def _break_block(self, side: Side, flaw: str) -> None:
        """The rest of the block will not come."""
        side.block_broken = side.block_broken or flaw
        self._end_block(side, side.block_start_ns)

    def _end_block(self, side: Side, now: int) -> None:
        block = bytes(side.block)
        side.block.clear()
        side.in_block = False
        self._decode_block(side, block, now)

    def _decode_block(self, side: Side, block: bytes, now: int) -> None:
        decoder = side.decoder
        fields = decoder.decode(block)
        flaw = side.block_broken
        streams = self.streams
        if flaw:
            self.broken_blocks += 1
            decoder.lose()
            if side.cut[1]:
                streams.loss[side.is_response] = GAP
        elif decoder.broken:
            self.broken_blocks += 1
            flaw = TRUNCATED
        if decoder.unknown:
            self.unknown_fields += decoder.unknown
            flaw = flaw or streams.loss[side.is_response] or TRUNCATED
        if decoder.cut:
            self.oversized_lists += 1
            flaw = flaw or TRUNCATED
        start_ns = side.block_start_ns
        overhead = side.block_overhead
        if not side.is_response:
            ends = side.block_ends
            stream = streams.request(side.block_stream_id, fields, flaw, start_ns, now, overhead, ends=ends)
            if ends and stream is not None:
                streams.end(stream, is_response=False)
        elif not side.block_promised:
            ends = side.block_ends
            stream = streams.response(side.block_stream_id, fields, flaw, start_ns, now, overhead, ends=ends)
            if ends and stream is not None:
                streams.end(stream, is_response=True)
        elif side.block_promised > 0:
            stream = streams.request(side.block_promised, fields, flaw, start_ns, now, overhead, ends=True)
            if stream is not None:
                streams.end(stream, is_response=False)
        else:  # a promise of which stream, a gap or the padding hides
            streams.stray_frames += 1
        if side.cut[1]:
            side.cut = streams.cut = (0, 0)


def _unwrap(side: Side, payload: bytes, kind: int, flags: int, length: int) -> bytes | None:
    """Takes padding, priority and promised stream off a payload of which the end may be missing."""
    start = 0
    end = len(payload)
    if flags & frames.PADDED:
        if payload:
            end = min(end, length - payload[0])
        start = 1
    if kind == frames.PUSH_PROMISE:
        side.block_promised = int.from_bytes(payload[start : start + 4]) & 0x7FFFFFFF
        start += 4
        if end < start:
            side.block_promised = -1
    elif flags & frames.WITH_PRIORITY:
        start += 5
    return payload[start:end] if start <= end else None
