"""gRPC over HTTP/2: what a call adds to its exchange.

Takes the heads, the trailers and the body bytes of an exchange as the HTTP/2 parser meets them; fills
``GrpcFacts``. Follows the gRPC project's "gRPC over HTTP2" description: the path is /service/method, a
message stands behind a byte that says whether it is compressed and four bytes of length, the outcome comes
in ``grpc-status`` and ``grpc-message``. Counts messages without keeping any; never raises.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from spliffd.protocols.http1_fields import Headers
from spliffd.protocols.messages import GrpcFacts, HttpExchange, HttpMessage, text

MEDIA_TYPE: Final = "application/grpc"
"""Beginning of the media types of gRPC (also ``+proto``, ``+json``, and gRPC-Web, which frames alike)."""
PREFIX_SIZE: Final = 5
"""Bytes before a message: flags and length."""
COMPRESSED: Final = 0x01
WEB_TRAILERS: Final = 0x80
"""gRPC-Web: no message but the trailers follow."""


def is_grpc(message: HttpMessage) -> bool:
    """Whether the Content-Type of a head says gRPC."""
    content_type = message.content_type
    return content_type.startswith(MEDIA_TYPE) or (
        content_type[: len(MEDIA_TYPE)].lower() == MEDIA_TYPE  # media types have no case
    )


def begin_request(exchange: HttpExchange) -> GrpcFacts:
    """Marks the exchange as a call, from the head of its request."""
    facts = exchange.grpc = exchange.grpc or GrpcFacts()
    request = exchange.request
    if request is not None:
        service, _, method = request.path.partition("?")[0].removeprefix("/").rpartition("/")
        facts.service = service
        facts.method = method
        _take_encoding(facts, request.headers)
    return facts


def begin_response(exchange: HttpExchange) -> GrpcFacts:
    """Takes what the head of a response says; with trailers only, that is all there will be."""
    facts = exchange.grpc = exchange.grpc or GrpcFacts()
    if exchange.response is not None:
        _take_encoding(facts, exchange.response.headers)
        take_outcome(facts, exchange.response.headers)
    return facts


def take_outcome(facts: GrpcFacts, fields: Headers) -> None:
    """Takes ``grpc-status`` and ``grpc-message`` from trailers."""
    for name, value in fields:
        if name == b"grpc-status":
            if len(value) < 10 and value.isdigit():
                facts.status = int(value)
        elif name == b"grpc-message":
            facts.message = text(unquote_to_bytes(value))


def _take_encoding(facts: GrpcFacts, fields: Headers) -> None:
    """The response's coding replaces the request's unless it is none."""
    for name, value in fields:
        if name == b"grpc-encoding" and (not facts.encoding or value != b"identity"):
            facts.encoding = text(value)


class MessageCounter:
    """Counts the messages in one direction of a call; bytes may come cut anywhere, and be missing."""

    __slots__ = ("_flags", "_got", "_left", "_size", "compressed", "count", "largest", "lost", "size")

    def __init__(self) -> None:
        self.count = 0
        """Messages begun, each counted when its prefix is over."""
        self.size = 0
        """Their bytes by what the prefixes say; coded bytes where compressed, prefixes not counted."""
        self.largest = 0
        self.compressed = 0
        """Messages that came compressed."""
        self.lost = False
        """Whether message boundaries are lost, so that there were more than ``count``."""
        self._left = 0
        """Bytes left of the message at hand."""
        self._got = 0
        """Bytes of the next prefix seen."""
        self._flags = 0
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body."""
        pos = self._left
        size = len(data)
        if pos >= size:
            self._left = pos - size
            return
        self._left = 0
        if self.lost:
            return
        while pos < size:
            if not self._got and size - pos >= PREFIX_SIZE:
                self._flags = data[pos]
                self._size = int.from_bytes(data[pos + 1 : pos + PREFIX_SIZE])
                pos += PREFIX_SIZE
            else:
                if self._got:
                    self._size = self._size << 8 | data[pos]
                else:
                    self._flags = data[pos]
                    self._size = 0
                pos += 1
                self._got += 1
                if self._got < PREFIX_SIZE:
                    continue
                self._got = 0
            self._begin()
            pos += self._size
        self._left = pos - size

    def _begin(self) -> None:
        if self._flags & WEB_TRAILERS:
            return
        self.count += 1
        self.size += self._size
        self.largest = max(self.largest, self._size)
        if self._flags & COMPRESSED:
            self.compressed += 1

    def skip(self, size: int) -> None:
        """``size`` bytes of the body are lost: harmless inside a message, else boundaries are lost."""
        if size <= self._left:
            self._left -= size
        else:
            self.lose()

    def lose(self) -> None:
        """An unknown part of the body is lost."""
        self._left = 0
        self.lost = True
