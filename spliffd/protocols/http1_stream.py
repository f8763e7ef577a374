"""One direction of an HTTP/1.1 connection: where in a message its reader stands, and what it keeps.

Takes and returns nothing by itself: it is the state that ``http1`` moves and ``http1_chunked`` shares.
All bytes that the parser holds between two calls are in ``buffer``, bounded by the limits below.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.messages import HttpExchange, HttpMessage

# Phases: what the next byte of this direction belongs to.
HEAD: Final = 0
"""Between messages, or in a head of which the beginning is kept."""
LENGTH: Final = 1
"""A body of known length."""
CHUNK_LINE: Final = 2
CHUNK_DATA: Final = 3
CHUNK_END: Final = 4
TRAILERS: Final = 5
UNTIL_CLOSE: Final = 6
"""A response body that ends with its direction."""
SEARCH: Final = 7
"""Message boundaries are lost; the next plausible start line is looked for."""
HOLD: Final = 8
"""Behind a request to switch protocols: whose bytes these are, the response will say."""
TUNNEL: Final = 9
"""Another protocol."""
CLOSED: Final = 10
"""Behind the end of the direction."""

MAX_HEAD: Final = 256 * 1024
"""Longest head (or trailer section). Servers stop at 8 KiB (Apache, nginx) to 64 KiB; a spectator must
see what they refuse, yet not be filled up by it."""
MAX_HEADERS: Final = 2000
"""Most fields kept of one message; Apache refuses more than 100."""
QUICK_HEAD: Final = 2 * MAX_HEADERS
"""Heads below this take the short path; they cannot hold more than MAX_HEADERS lines."""
MAX_START_LINE: Final = 64 * 1024
"""Longest start line; eight times what servers accept. Also the most garbage kept unrecognised."""
MAX_CHUNK_LINE: Final = 16 * 1024
"""Longest chunk-size line with its extensions; h11 and nginx stop at less."""
MAX_HOLD: Final = 64 * 1024
"""Most bytes kept behind a request to switch protocols: four TLS records of early data."""

_LINE_LIMITS: Final = {HEAD: MAX_START_LINE, CHUNK_LINE: MAX_CHUNK_LINE}


class Stream:
    """State of one direction."""

    __slots__ = (
        "buffer",
        "cut",
        "exchange",
        "is_response",
        "line_checked",
        "line_start",
        "message",
        "offset",
        "phase",
        "remaining",
        "start_ns",
        "switching",
    )

    def __init__(self, is_response: bool, joined: bool) -> None:
        self.is_response = is_response
        self.phase: int = SEARCH if joined else HEAD
        self.offset = 0
        """Bytes of the direction so far, lost ones included."""
        self.buffer = bytearray()
        """Kept bytes: the beginning of what cannot be decided yet."""
        self.line_checked = False
        """HEAD: the start line in ``buffer`` is whole and plausible."""
        self.line_start = joined
        """SEARCH: what comes next is the beginning of a line."""
        self.cut = False
        """HEAD: the head just read had more fields than are kept."""
        self.start_ns = 0
        """HEAD: when the first byte in ``buffer`` came."""
        self.exchange: HttpExchange | None = None
        """The exchange whose message is being read."""
        self.message: HttpMessage | None = None
        """The message being read; None between messages and in heads."""
        self.remaining = 0
        """LENGTH, CHUNK_DATA: bytes left."""
        self.switching = b""
        """The protocol that the last request asks to switch to."""

    def current(self) -> tuple[HttpExchange, HttpMessage]:
        """The message being read, and its exchange; only between its head and its end."""
        exchange, message = self.exchange, self.message
        assert exchange is not None
        assert message is not None
        return exchange, message

    def keep(self, data: bytes, pos: int) -> int:
        """Keeps ``data`` from ``pos`` on for the next call; returns the end of ``data``."""
        self.buffer += memoryview(data)[pos:]
        return len(data)

    def gather(self, data: bytes) -> bytes | None:
        """Joins kept bytes with ``data``; None while no decision is possible (then all is kept).

        Keeps long heads that come in small pieces from being read again for each piece.
        """
        buffer = self.buffer
        before = len(buffer)
        buffer += data
        if self.phase == TRAILERS or (self.phase == HEAD and self.line_checked):
            tail = buffer[max(0, before - 2) :]
            # One byte can be the CR of the empty line that ends a trailer section.
            if len(buffer) < MAX_HEAD + 3 and before > 1 and b"\n\n" not in tail and b"\n\r\n" not in tail:
                return None
        elif self.phase == HOLD:
            if len(buffer) <= MAX_HOLD:
                return None
        elif len(buffer) < _LINE_LIMITS.get(self.phase, 0) and b"\n" not in data:
            return None
        return self.take()

    def take(self) -> bytes:
        """Hands out and forgets the kept bytes."""
        data = bytes(self.buffer)
        self.buffer.clear()
        return data
