"""HTTP/2 bodies that nobody wants: which streams' they are, and what the kernel then left out of a direction.

The kernel walks the frames itself and leaves out calls that hold nothing but DATA of such streams, neither
padded nor the last of its stream; it tells how many frames and bytes of each, and where in which frame it
stands behind them. ``skip`` believes that only where it fits what was read before, to the byte: else nothing
is touched, and what is missing is a gap.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.http2_frames import HEADER_SIZE, Side
from spliffd.protocols.http2_table import Stream, StreamTable

LARGE_BODY: Final = 64 << 10
"""As much of a body must have come before it is called large: how long it will be, nobody says."""
LONGEST_FRAME: Final = (1 << 24) - 1
EVENTS: Final = "text/event-stream"
"""Goes on for hours in small pieces: when each came is what is worth knowing of it."""


class Part(NamedTuple):
    """What was left out of one stream."""

    stream_id: int
    frames: int
    """Whose headers ended in it."""
    payload: int


class Skipped(NamedTuple):
    """What was left out in one piece; ``left`` bytes of a frame of stream ``current`` follow."""

    size: int
    parts: tuple[Part, ...]
    left: int
    current: int


def unwanted_stream(side: Side) -> int:
    """The stream whose large body is being read, if its bytes are of no use but for what they are; else 0."""
    stream = side.latest
    if stream is None or not stream.open or stream.websocket is not None:
        return 0
    exchange = stream.exchange
    message = exchange.response if side.is_response else exchange.request
    if message is None or message.finished or message.body_size < LARGE_BODY or exchange.grpc is not None:
        return 0
    request = exchange.request
    if request is None or request.method == "CONNECT" or message.content_type.startswith(EVENTS):
        return 0
    return stream.id


def skip(side: Side, streams: StreamTable, skipped: Skipped, now: int, *, wanted: bool) -> bool:
    """Goes on behind what was left out; False: it does not fit. ``wanted``: by now somebody wants bodies."""
    under = _under_way(side, streams, skipped)
    if under < 0 or not _fits(side, skipped, under):
        return False
    first = side.stream if side.phase == frames.BODY else None
    side.take()
    for stream_id, begun, payload in skipped.parts:
        if not begun and not payload:
            continue
        stream = first if first is not None and first.id == stream_id else streams.open.get(stream_id)
        message = None
        if stream is not None and stream.open:
            message = stream.exchange.response if side.is_response else stream.exchange.request
        if stream is None or message is None:
            # reset while the frames were on their way: they are counted when they begin
            counted = min(side.skip, payload) if stream_id == under and side.phase == frames.SKIP else 0
            more = skipped.left if begun and skipped.current == stream_id else 0
            streams.stray_frames += begun
            streams.stray_bytes += payload + more - counted
            continue
        if wanted and payload:
            stream.exchange.mark_gap(side.offset, payload)
        counter = stream.response_messages if side.is_response else stream.request_messages
        if counter is not None:
            counter.skip(payload)
        message.body_size += payload
        message.overhead_size += HEADER_SIZE * begun
        message.end_ns = now
    side.offset += skipped.size
    _stand(side, streams, skipped, first)
    return True


def _under_way(side: Side, streams: StreamTable, skipped: Skipped) -> int:
    """The stream of the frame that is under way, 0 between frames; -1 where nothing can be left out."""
    if side.in_block or side.trust < frames.TRUSTED:
        return -1
    if side.phase == frames.FRAME:
        kept = side.buffer
        return -1 if len(kept) >= HEADER_SIZE or (len(kept) > 3 and kept[3] != frames.DATA) else 0
    if side.phase == frames.BODY and side.stream is not None:
        return -1 if side.skip or side.ends_stream or side.stream.websocket is not None else side.stream.id
    if side.phase == frames.SKIP:  # of a stream that was reset: it can be told by that
        stray = [
            part.stream_id for part in skipped.parts if part.payload and part.stream_id not in streams.open
        ]
        return stray[0] if len(stray) == 1 else -1
    return -1


def _fits(side: Side, skipped: Skipped, under: int) -> bool:
    """Whether the numbers agree with each other and with what was read before."""
    rest = side.remaining if side.phase == frames.BODY else side.skip if side.phase == frames.SKIP else 0
    parts = {part.stream_id: part for part in skipped.parts if part.frames or part.payload}
    begun = sum(part.frames for part in parts.values())
    payload = sum(part.payload for part in parts.values())
    kept = len(side.buffer)
    if 0 in parts or skipped.size != payload + HEADER_SIZE * begun - kept or (kept and not begun):
        return False
    if not 0 <= skipped.left <= LONGEST_FRAME or (skipped.left and skipped.current not in parts):
        return False
    if not begun:
        only = parts.get(under)
        if only is None or len(parts) != 1 or skipped.size > rest:
            return False
        return skipped.left == rest - skipped.size and (not skipped.left or skipped.current == under)
    if skipped.left and not parts[skipped.current].frames:
        return False
    if rest and (under not in parts or parts[under].payload < rest):
        return False
    return all(part.frames or (part.stream_id == under and part.payload == rest) for part in parts.values())


def _stand(side: Side, streams: StreamTable, skipped: Skipped, first: Stream | None) -> None:
    """Puts the direction into the frame that is under way behind what was left out."""
    begun = any(part.frames for part in skipped.parts)
    stray = side.phase == frames.SKIP and not begun
    stream = None
    if skipped.left and not stray:
        stream = streams.open.get(skipped.current) if begun else first
    if stream is not None and begun:
        message = stream.exchange.response if side.is_response else stream.exchange.request
        stream = None if message is None else stream
    side.remaining = skipped.left if stream is not None else 0
    side.skip = skipped.left - side.remaining
    side.stream = stream
    side.ends_stream = False
    side.phase = frames.BODY if stream is not None else frames.SKIP if skipped.left else frames.FRAME
