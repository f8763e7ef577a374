"""Messages as other programs expect them: bodies that agree with the headers that describe them.

Takes a request or response and its joined body, returns headers, trailers and bytes. Where the daemon
undid the content coding, or not all of a body is here, Content-Length and Content-Encoding are made to fit
what is here, because readers of capture files take them at their word; ``notes`` says what was changed.
Masked secrets stay masked: the mask (length and keyed hash) is the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spliffctl.parts import Body
from spliffctl.render.json import to_json
from spliffd.content.coding import BOMB, TOO_LARGE, Decoder, codings, is_known

if TYPE_CHECKING:
    from typing import Literal

    from spliffd.pb import spliff_pb2 as pb

    Ours = Literal["process", "connection", "correlation", "tls", "completeness", "grpc"]

OURS: tuple[Ours, ...] = ("process", "connection", "correlation", "tls", "completeness", "grpc")
"""Fields of Exchange that no format has a place for: they go into it under their own names."""

Fields = list[tuple[str, str]]
"""Names and values of headers, in the order of the wire."""

MAX_DECODED = 64 << 20
"""Bytes that one body may decode to; what decodes to more is kept as it was on the wire."""

MAX_RATIO = 500
"""Decoded bytes for each one on the wire, beyond the first MiB: text reaches 100, gzip's limit is 1,032."""

SLICE = 4096
"""Bytes that are decoded at a time: given all at once, a bomb would be measured against the whole of it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or response whose headers agree with its body."""

    headers: Fields
    trailers: Fields
    body: bytes
    notes: tuple[str, ...] = ()
    chunked: bool = False
    """Whether the headers announce chunked coding (the bytes of ``body`` are without it)."""


def value(header: pb.Header) -> str:
    """The value, or the mask as the daemon writes it in paths: ``***(12:ab34cd56)``."""
    if header.HasField("masked"):
        return f"***({header.masked.length}:{header.masked.hash})"
    return header.value


def fields(message: pb.Request | pb.Response) -> tuple[Fields, Fields]:
    """Headers and trailers."""
    every = [(header.name, value(header)) for header in message.headers]
    if message.HasField("trailer_start"):
        return every[: message.trailer_start], every[message.trailer_start :]
    return every, []


def consistent(message: pb.Request | pb.Response, body: Body) -> Message:
    """The message with its length and coding as they are here."""
    headers, trailers = fields(message)
    data = body.data
    notes = []
    length = len(data)
    if message.decoded_size:
        notes.append(f"body decoded by spliffd, was {message.content_encoding} in {message.body_size} bytes")
        headers = [(name, text) for name, text in headers if name.lower() != "content-encoding"]
    whole = message.decoded_size or message.body_size
    if length < whole:
        notes.append(f"body has {length} of {whole} bytes")
    if length != message.body_size:
        headers = [
            (name, str(length) if name.lower() == "content-length" else text) for name, text in headers
        ]
    chunked = any(name.lower() == "transfer-encoding" and "chunked" in text.lower() for name, text in headers)
    return Message(headers, trailers, data, tuple(notes), chunked)


def decoded(message: pb.Request | pb.Response, body: Body) -> bytes | None:
    """The body without its content codings, or None when they cannot be undone to its end."""
    data = body.data
    coding = message.content_encoding
    if not codings(coding) or message.decoded_size or not data:
        return data
    if not is_known(coding) or body.holes or body.segments[0][0]:
        return None
    decoder = Decoder(coding, max_size=MAX_DECODED, max_ratio=MAX_RATIO)
    pieces = [piece for at in range(0, len(data), SLICE) for piece in decoder.feed(data[at : at + SLICE])]
    if decoder.problem in (BOMB, TOO_LARGE) or not decoder.complete:
        return None
    return b"".join(pieces)


def facts(exchange: pb.Exchange) -> list[tuple[str, str]]:
    """Names and JSON of what is known of an exchange beside its messages."""
    return [(name, to_json(getattr(exchange, name))) for name in OURS if exchange.HasField(name)]
