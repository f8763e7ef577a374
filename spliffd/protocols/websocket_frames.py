"""The frame layer of WebSocket (RFC 6455 section 5): headers, masks, and finding frames again behind a loss.

Pure functions. ``read_header`` takes the bytes at a position and says what frame begins there; ``unmask``
undoes the client's masking; ``find`` looks for frames where boundaries are lost. A header is two bytes with
little in them that could be wrong, so one is never enough: frames are believed where each of several ends
exactly where the next plausible one begins.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NAMES: Final = {
    CONTINUATION: "continuation",
    TEXT: "text",
    BINARY: "binary",
    CLOSE: "close",
    PING: "ping",
    PONG: "pong",
}

FIN: Final = 0x80
RSV1: Final = 0x40
RSV: Final = 0x70
MASKED: Final = 0x80
MAX_CONTROL: Final = 125
"""Longest payload of a control frame (section 5.5)."""
LONGEST_HEADER: Final = 14

CHAIN: Final = 4
"""Plausible headers in a row that are believed: random bytes make one in 30, so four once in a million."""
SPAN: Final = 64 << 10
"""Three are enough where they are this far apart: random bytes seldom make long lengths."""
MAX_SEARCH: Final = 1 << 20
"""Frames further apart are not found again; also the most bytes kept of a direction while searching."""

SHORT: Final = 1024
"""Payloads below it are unmasked as one large number, longer ones byte by byte of the key."""

NOT_WHOLE: Final = 0
"""``size`` of a header of which not all bytes are there."""


class FrameHeader(NamedTuple):
    """What the first bytes of a frame say. ``size`` is the header's own."""

    size: int
    first: int
    opcode: int
    length: int
    key: bytes
    """Masking key, b"" when the payload is not masked."""


INCOMPLETE: Final = FrameHeader(NOT_WHOLE, 0, 0, 0, b"")


def read_header(data: bytes, pos: int) -> FrameHeader:
    """The header at ``pos``; INCOMPLETE when more bytes are needed."""
    have = len(data) - pos
    if have < 2:
        return INCOMPLETE
    first, second = data[pos], data[pos + 1]
    length = second & 0x7F
    size = 2
    if length == 126:
        size = 4
    elif length == 127:
        size = 10
    masked = second & MASKED
    whole = size + 4 if masked else size
    if have < whole:
        return INCOMPLETE
    if size > 2:
        length = int.from_bytes(data[pos + 2 : pos + size])
    key = data[pos + size : pos + whole] if masked else b""
    return FrameHeader(whole, first, first & 15, length, key)


def is_legal(header: FrameHeader, allowed_rsv: int) -> bool:
    """Whether RFC 6455 allows such a header; who masks is not looked at, nor the form of the length."""
    if header.opcode not in NAMES or header.first & RSV & ~allowed_rsv or header.length >> 63:
        return False
    if header.opcode >= CLOSE:
        return header.length <= MAX_CONTROL and header.first & (FIN | RSV) == FIN
    return True


_TABLES: dict[int, bytes] = {}


def _table(byte: int) -> bytes:
    table = _TABLES.get(byte)
    if table is None:
        table = _TABLES[byte] = bytes([value ^ byte for value in range(256)])
    return table


def unmask(data: bytes, key: bytes) -> bytes:
    """``data`` without its mask (section 5.3); ``key`` begins with the byte for ``data[0]``."""
    size = len(data)
    if size < SHORT:
        mask = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(data) ^ int.from_bytes(mask)).to_bytes(size)
    out = bytearray(size)
    for index in range(4):
        out[index::4] = data[index::4].translate(_table(key[index]))
    return bytes(out)


def find(data: bytes, *, from_server: bool, allowed_rsv: int) -> tuple[int, int]:
    """Where frames begin in ``data``: (start, 0), or (-1 - start, wanted) while that cannot be said.

    Before more can be said, ``data`` from that start on must have grown to ``wanted`` bytes. What comes out
    does not depend on how the bytes were cut: every position is decided by what follows it.
    """
    size = len(data)
    pos = 0
    while pos < size:
        wanted = _chain(data, pos, from_server=from_server, allowed_rsv=allowed_rsv)
        if not wanted:
            return pos, 0
        if wanted > 0:
            return -1 - pos, wanted - pos
        pos += 1
    return -1 - size, 2


def _chain(data: bytes, pos: int, *, from_server: bool, allowed_rsv: int) -> int:
    """0: frames begin at ``pos``; -1: they do not; else as many bytes as must be there to tell."""
    at = pos
    size = len(data)
    last = -1  # first byte of the data frame before
    key = b""
    for count in range(CHAIN):
        if at - pos > MAX_SEARCH:
            return -1
        if at + 2 > size:
            return at + 2
        first = data[at]
        if first & RSV & ~allowed_rsv or first & 15 not in NAMES:
            return -1
        if bool(data[at + 1] & MASKED) is from_server:
            return -1
        header = read_header(data, at)
        if not header.size:
            return size + 1
        length = header.length
        lengthened = header.size - (0 if from_server else 4)
        if (lengthened == 4 and length < 126) or (lengthened == 10 and length < 1 << 16):
            return -1  # the shortest form is a must (section 5.2)
        if not is_legal(header, allowed_rsv) or not (length or first & FIN):
            return -1  # nobody sends a fragment of nothing, but zeros look like one
        if key and header.key == key and any(key):
            return -1  # masked zeros repeat the key for ever; two frames have different ones (section 5.3)
        key = header.key
        if first & 15 < CLOSE:
            continues = first & 15 == CONTINUATION
            if last >= 0 and continues is (last & FIN != 0):
                return -1  # a message begins only where the last one has ended (section 5.4)
            last = first
        if count == CHAIN - 2 and at - pos >= SPAN:
            return 0
        at += header.size + length
    return 0
