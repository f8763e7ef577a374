"""The frame layer of HTTP/2 (RFC 9113 sections 4 and 6): numbers, a direction's state, plausible headers.

``Side`` takes and returns nothing by itself: it is the state that ``http2_reader`` moves. All bytes that the
parser holds between two calls are in its ``buffer`` and ``block``, bounded by the limits below.
``plausible`` says whether nine bytes can be a frame header, for whoever must find frames again.
"""

from __future__ import annotations

import struct
from typing import Final

from spliffd.protocols.hpack import Decoder
from spliffd.protocols.http2_table import Stream

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113 section 3.4)."""

FRAME_HEADER: Final = struct.Struct(">HBBBI")
"""Length in two parts, type, flags, stream with a reserved bit."""
HEADER_SIZE: Final = 9

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
PRIORITY_UPDATE: Final = 16
"""RFC 9218 section 7.1."""
LONGEST_PRIORITY: Final = 256
"""Real ones take some 20 bytes."""

BLOCK_FRAMES: Final = (HEADERS, PUSH_PROMISE, CONTINUATION)

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

SETTINGS_HEADER_TABLE_SIZE: Final = 1

# Phases: what the next byte of a direction belongs to.
START: Final = 0
"""The client's preface."""
FRAME: Final = 1
"""A frame, of which the beginning is kept."""
BODY: Final = 2
"""The data of a DATA frame."""
SKIP: Final = 3
"""Padding, or the rest of a frame that nobody needs."""
SEARCH: Final = 4
"""Where frames begin is lost."""
CLOSED: Final = 5
"""Behind the end of the direction."""

MAX_BLOCK: Final = 256 * 1024
"""Longest header block kept, CONTINUATION included, as an HTTP/1 head. Servers stop at 8 KiB to 1 MiB of
decoded fields; what is longer cannot be decoded, so the table of the direction is lost with it."""
MAX_FRAGMENTS: Final = 64
"""CONTINUATION frames of one block beyond which it counts as a flood: MAX_BLOCK takes 16 of usual size."""
MAX_SETTINGS: Final = 16 * 1024
"""Longest SETTINGS, GOAWAY read: the largest frame that everybody must accept. Longer ones are skipped."""
USUAL_FRAME: Final = 16 * 1024
"""Largest frame unless the receiver allows more (SETTINGS_MAX_FRAME_SIZE). Trust in a frame found by search
begins there; Go allows 1 MiB, and one larger than this is believed only behind others."""
LARGE_FRAME: Final = 1024 * 1024
"""Largest frame that a connection joined in the middle may begin with (what Go's server allows)."""
TRUSTED: Final = 3
"""Plausible frame headers in a row, behind a search, after which the boundaries are believed."""

# By type: flags that are defined, shortest and longest payload, stream (0: none, 1: one, 2: either).
_FLAGS: Final = (0x09, 0x2D, 0, 0, 0x01, 0x0C, 0x01, 0, 0, 0x04)
_SHORTEST: Final = (0, 1, 5, 4, 0, 5, 8, 8, 4, 0)
_LONGEST: Final = (LARGE_FRAME, LARGE_FRAME, 5, 4, 1024, USUAL_FRAME, 8, USUAL_FRAME, 4, LARGE_FRAME)
_STREAM: Final = (1, 1, 1, 1, 0, 1, 0, 0, 2, 1)


def plausible(length: int, kind: int, flags: int, stream_id: int, *, is_response: bool) -> bool:
    """Whether a real peer would send such a frame; of the extensions, only the one that browsers use."""
    if kind == PRIORITY_UPDATE:
        return not stream_id and not flags and 4 < length < LONGEST_PRIORITY
    if kind > CONTINUATION or flags & ~_FLAGS[kind]:
        return False
    if length < _SHORTEST[kind] or length > _LONGEST[kind] or stream_id >> 31:
        return False
    where = _STREAM[kind]
    if stream_id:
        if where == 0 or (kind in (DATA, HEADERS, CONTINUATION) and not is_response and not stream_id & 1):
            return False
    elif where == 1:
        return False
    if kind == SETTINGS:
        return length % 6 == 0 and not (flags and length)
    if kind == PUSH_PROMISE:
        return is_response
    return True


def read_header(data: bytes | bytearray, pos: int) -> tuple[int, int, int, int]:
    """Length, type, flags and stream (with its reserved bit) of the frame at ``pos``."""
    high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, pos)
    return high << 8 | low, kind, flags, stream_id


class Side:
    """State of one direction."""

    __slots__ = (
        "block",
        "block_broken",
        "block_ends",
        "block_fragments",
        "block_overhead",
        "block_promised",
        "block_start_ns",
        "block_stream_id",
        "buffer",
        "cut",
        "decoder",
        "ends_stream",
        "frame_ns",
        "in_block",
        "is_response",
        "latest",
        "need",
        "offset",
        "phase",
        "remaining",
        "skip",
        "stream",
        "trust",
    )

    def __init__(self, *, is_response: bool, joined: bool) -> None:
        self.is_response = is_response
        self.phase: int = SEARCH if joined else FRAME if is_response else START
        self.offset = 0
        """Bytes of the direction so far, lost ones included."""
        self.buffer = bytearray()
        """Kept bytes: the beginning of a frame."""
        self.need = 0
        """No decision is possible before ``buffer`` is that long."""
        self.decoder = Decoder(joined=joined)
        self.frame_ns = 0
        """When the first byte in ``buffer`` came."""
        self.trust = 0 if joined else TRUSTED - 1
        """Plausible frame headers since a search, up to TRUSTED. At the very beginning one is asked for:
        a server may answer in another protocol."""
        # BODY and SKIP
        self.stream: Stream | None = None
        """BODY: whose data this is."""
        self.latest: Stream | None = None
        """The stream of the last DATA frame."""
        self.remaining = 0
        """BODY: data bytes left of the frame."""
        self.skip = 0
        """BODY, SKIP: bytes left behind the data."""
        self.ends_stream = False
        # A header block between its first and its last frame
        self.in_block = False
        self.block = bytearray()
        self.block_broken = ""
        """The state to mark the message with, when a part of the block is missing; else ""."""
        self.block_stream_id = 0
        self.block_promised = 0
        """The stream that a PUSH_PROMISE opens; 0 for HEADERS, -1 where it is not known."""
        self.cut = (0, 0)
        """Offset and size of the gap in the block."""
        self.block_ends = False
        self.block_fragments = 0
        self.block_overhead = 0
        self.block_start_ns = 0

    def keep(self, data: bytes, pos: int, need: int, now: int) -> int:
        """Keeps ``data`` from ``pos`` on until ``need`` bytes are there; returns the end of ``data``."""
        if not self.frame_ns:
            self.frame_ns = now
        self.buffer += memoryview(data)[pos:]
        self.need = need
        return len(data)

    def gather(self, data: bytes) -> bytes | None:
        """Joins kept bytes with ``data``; None while no decision is possible (then all is kept)."""
        buffer = self.buffer
        if len(buffer) + len(data) < self.need:
            buffer += data
            return None
        whole = bytes(buffer) + data
        buffer.clear()
        return whole

    def take(self) -> bytes:
        """Hands out and forgets the kept bytes."""
        data = bytes(self.buffer)
        self.buffer.clear()
        self.frame_ns = 0
        return data
