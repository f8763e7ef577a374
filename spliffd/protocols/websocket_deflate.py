"""permessage-deflate (RFC 7692) as a spectator undoes it: what was agreed on, and messages inflated.

``negotiated`` reads the Sec-WebSocket-Extensions of a response. ``Inflater`` takes the compressed payload of
one direction, message by message and cut anywhere, and returns inflated bytes. A window smaller than 32 KiB
(the ``*_max_window_bits`` parameters) needs nothing: every such stream is one of the largest window too.

Where bytes of the window are lost, an inflater starts anew with the next message. One that refers to what was
lost fails, because zlib refuses distances beyond what it has seen: what comes out is always right. Never
raises, never holds more than zlib's window and a chunk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

EXTENSIONS: Final = b"sec-websocket-extensions"
"""The header, in lower case, whose value says what was agreed on."""

CHUNK: Final = 64 << 10
"""Bytes inflated at a time."""

MAX_INFLATED: Final = 64 << 20
"""Inflated bytes of one message: servers refuse messages above 1 MiB (websockets) to 100 MiB (ws of node)."""

MAX_RATIO: Final = 200
"""Inflated bytes for each one on the wire, beyond the first MiB: as for bodies, JSON reaches 50."""

RATIO_FROM: Final = 1 << 20

TAIL: Final = b"\x00\x00\xff\xff"
"""What a sender takes off the end of each message (section 7.2.1)."""

BOMB: Final = "bomb"
BROKEN: Final = "broken"

_NAMES: Final = (b"permessage-deflate", b"x-webkit-deflate-frame")


class Agreed(NamedTuple):
    """The extensions of a connection."""

    deflate: bool = False
    """Messages may be compressed (RSV1)."""
    keep_client: bool = True
    """The client's compressor keeps its window from one message to the next."""
    keep_server: bool = True
    others: bool = False
    """Extensions that nobody here knows: their payloads are handed out as they are."""


def negotiated(value: bytes) -> Agreed:
    """What a response's Sec-WebSocket-Extensions (several joined by commas) says (RFC 6455 section 9.1)."""
    deflate = others = False
    keep_client = keep_server = True
    for extension in value.split(b","):
        name, *parameters = [part.strip().lower() for part in extension.split(b";")]
        if name == _NAMES[0]:
            deflate = True
            names = [parameter.partition(b"=")[0].strip() for parameter in parameters]
            keep_client = b"client_no_context_takeover" not in names
            keep_server = b"server_no_context_takeover" not in names
        elif name:
            others = True
    return Agreed(deflate, keep_client, keep_server, others)


class Inflater:
    """One direction's messages. ``keep``: the window outlives a message (context takeover)."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._library: Any = None
        self._taken = 0
        self.size = 0
        """Inflated bytes of the message at hand."""
        self.problem = ""
        """Why no more of the message at hand can be inflated; "" while it goes on."""

    def begin(self) -> None:
        """A compressed message begins."""
        if self._library is None or not self._keep or self._library.eof:
            self._library = zlib.decompressobj(-15)
        self._taken = self.size = 0
        self.problem = ""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Inflated pieces of at most CHUNK bytes; to be consumed to its end."""
        library = self._library
        if self.problem or library is None or not data:
            return
        self._taken += len(data)
        while True:
            try:
                piece = library.decompress(data, CHUNK)
            except zlib.error:
                self._give_up(BROKEN)
                return
            self.size += len(piece)
            if self.size > MAX_INFLATED or (self.size > RATIO_FROM and self.size > MAX_RATIO * self._taken):
                self._give_up(BOMB)
                return
            if piece:
                yield piece
            data = library.unconsumed_tail
            if library.eof or (not data and len(piece) < CHUNK):
                return

    def end(self) -> Iterator[bytes]:
        """The message is over: what is still in the inflater."""
        if self._library is not None and self._library.eof:
            return iter(())  # it ended itself with a final block (section 7.2.3.4)
        return self.feed(TAIL)

    def lose(self) -> None:
        """Bytes of the direction are lost: neither the message at hand nor the window is known any more."""
        self._give_up(BROKEN)

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self._library = None
