"""What the WebSocket parser hands out: one message; and the memory that messages under way share.

Plain objects that ``websocket`` fills in as it reads. Sizes are bytes, times what its caller passed (ns).
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.messages import COMPLETE, HttpExchange

MAX_HELD: Final = 32 << 20
"""Bytes kept of all messages under way on all connections, as for bodies; beyond it only sizes are."""


class Room:
    """Memory that the messages under way of many connections share."""

    def __init__(self, size: int = MAX_HELD) -> None:
        self.left = size


class WebSocketMessage:
    """One message, or as much of it as there will ever be."""

    __slots__ = (
        "close_code",
        "compressed",
        "data",
        "end_ns",
        "exchange",
        "frames",
        "from_server",
        "gap_at",
        "gap_offset",
        "missing_bytes",
        "opcode",
        "size",
        "state",
        "wire_size",
    )

    def __init__(self, opcode: int, *, from_server: bool, compressed: bool) -> None:
        self.exchange: HttpExchange | None = None
        """The exchange that made the connection one of WebSocket; set by whoever knows."""
        self.opcode = opcode
        """TEXT, BINARY, CLOSE, PING, PONG; CONTINUATION where its beginning was not seen."""
        self.from_server = from_server
        self.compressed = compressed
        self.data = b""
        """The payload unmasked and inflated, MAX_KEPT bytes of it at most; lost bytes are left out."""
        self.size = 0
        """Bytes of the payload unmasked and inflated, lost ones not counted."""
        self.wire_size = 0
        """Bytes of its frames on the wire, headers and lost bytes of the payload included."""
        self.frames = 0
        self.end_ns = 0
        """When its last byte was seen."""
        self.state = COMPLETE
        self.missing_bytes = 0
        """Bytes on the wire known to be lost."""
        self.gap_offset: int | None = None
        """Offset in its direction's stream of the first gap in it."""
        self.gap_at = -1
        """Where in ``data`` the first gap is, -1 for none: what follows has lost its context."""
        self.close_code = 0
        """Of a CLOSE: why (RFC 6455 section 7.4); 0 when it does not say."""

    def mark(self, state: str) -> None:
        """The first reason stays: it is nearest to the cause."""
        if self.state is COMPLETE:
            self.state = state
