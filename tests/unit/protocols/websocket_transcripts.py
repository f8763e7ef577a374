"""WebSocket connections as bytes, written by an independent implementation (the websockets library)."""

from __future__ import annotations

import struct
from typing import Any

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from spliffd.protocols.websocket import CLIENT, WebSocket
from spliffd.protocols.websocket_deflate import Agreed
from spliffd.protocols.websocket_message import Room, WebSocketMessage

Told = tuple[bool, int, bytes, str]
"""From the server, opcode, data, state."""


class Peer:
    """One end's frames. ``keep``: its compressor keeps its window."""

    def __init__(
        self, *, server: bool = False, deflate: bool = False, keep: bool = True, bits: int = 15
    ) -> None:
        self._server = server
        self._extensions: list[Any] = []
        if deflate:
            self._extensions = [
                PerMessageDeflate(
                    remote_no_context_takeover=False, local_no_context_takeover=not keep,
                    remote_max_window_bits=15, local_max_window_bits=bits,
                )
            ]  # fmt: skip

    def frame(self, opcode: int, data: bytes, *, fin: bool = True) -> bytes:
        return Frame(Opcode(opcode), data, fin).serialize(mask=not self._server, extensions=self._extensions)

    def text(self, text: str | bytes) -> bytes:
        return self.frame(1, text.encode() if isinstance(text, str) else text)

    def binary(self, data: bytes, *sizes: int) -> bytes:
        """A message in fragments of these sizes, and what is left in the last."""
        out, at, opcode = b"", 0, 2
        for size in sizes:
            out += self.frame(opcode, data[at : at + size], fin=False)
            at, opcode = at + size, 0
        return out + self.frame(opcode, data[at:])

    def close(self, code: int = 1000, reason: str = "") -> bytes:
        return self.frame(8, struct.pack(">H", code) + reason.encode())


def told(messages: list[WebSocketMessage]) -> list[Told]:
    return [(m.from_server, m.opcode, m.data, m.state) for m in messages]


def read(
    data: bytes, *, direction: int = CLIENT, agreed: Agreed | None = None, cuts: list[int] | None = None
) -> list[WebSocketMessage]:
    """All messages of one direction, its bytes cut at ``cuts``, the connection closed behind them."""
    socket = WebSocket(agreed or Agreed(), Room())
    out: list[WebSocketMessage] = []
    for start, end in zip([0, *(cuts or [])], [*(cuts or []), len(data)], strict=True):
        if start < end:
            out += socket.feed(direction, data[start:end], end)
    return [*out, *socket.close(1 << 40)]
