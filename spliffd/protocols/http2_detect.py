"""Tells HTTP/2 in the middle of a connection, where no preface says so, and which end speaks.

Takes the bytes of one direction from a point where writers may begin a frame (the beginning of a record), and
returns one of the constants below. Keeps nothing, never raises. ``detect`` knows the preface; this is for
connections that were there before us.

Evidence is a row of plausible frame headers. Which end speaks is told by a header block (requests begin with
a method, responses with a status), by PUSH_PROMISE, and by nothing else; where there is none, the caller
asks again with a later record, or knows it from the socket.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.http2_frames import HEADER_SIZE, plausible, read_header
from spliffd.protocols.http2_search import MAX_TRIAL, is_head, strip_padding

OTHER: Final = 0
"""No HTTP/2, or not enough of it to say so."""
FROM_CLIENT: Final = 1
FROM_SERVER: Final = 2
EITHER: Final = 3
"""HTTP/2, from an end that these bytes do not tell."""

MAX_FRAMES: Final = 16
"""Frames looked at: a record of small ones is not worth more."""
ENOUGH: Final = 2
"""Plausible headers in a row that no other protocol has; of anything but DATA one that ends the record."""


def detect_frames(data: bytes) -> int:
    """What ``data`` is, a record or the beginning of one."""
    if data.startswith(frames.PREFACE):
        return FROM_CLIENT
    pos = 0
    row = 0
    for _ in range(MAX_FRAMES):
        if len(data) - pos < HEADER_SIZE:
            break
        length, kind, flags, stream_id = read_header(data, pos)
        client = plausible(length, kind, flags, stream_id, is_response=False)
        if not client and not plausible(length, kind, flags, stream_id, is_response=True):
            return OTHER
        if kind == frames.DATA and not length and not flags:
            return OTHER  # zeros look like that
        start = pos + HEADER_SIZE
        pos = start + length
        row += 1
        if kind == frames.HEADERS and flags & frames.END_HEADERS and length <= MAX_TRIAL and pos <= len(data):
            block = strip_padding(data[start:pos], flags)
            if client and is_head(block, is_response=False):
                return FROM_CLIENT
            if is_head(block, is_response=True):
                return FROM_SERVER
        elif kind == frames.PUSH_PROMISE and row >= ENOUGH:
            return FROM_SERVER
    whole = pos == len(data) and data[3:4] != b"\x00"
    return EITHER if row >= ENOUGH or (row and whole) else OTHER
