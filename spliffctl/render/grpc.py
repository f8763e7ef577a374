"""Bodies of gRPC calls: their messages one by one, inflated, by field name or number.

Takes a joined body and the facts of the call; returns lines. A message stands behind a byte of flags and
four of length (gRPC over HTTP2, "Length-Prefixed-Message"). A body with holes, or one that ends in the
middle of a message, is shown as far as its messages are whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spliffctl import units
from spliffctl.parts import Body
from spliffctl.render.body import INDENT, dump, hole_line
from spliffctl.render.colour import Palette
from spliffctl.render.protobuf import lines, named_lines
from spliffctl.render.quote import quote
from spliffd.content.coding import Decoder, is_known

if TYPE_CHECKING:
    from spliffctl.schema import Schema
    from spliffd.pb import spliff_pb2 as pb

PREFIX = 5
COMPRESSED = 0x01
WEB_TRAILERS = 0x80
"""gRPC-Web: trailers as text in place of a message."""

MAX_DECODED = 16 << 20
MAX_RATIO = 500
"""Limits of one compressed message; servers refuse messages beyond 4 MiB."""

MAX_LINES = 2000
"""Lines shown of one message."""


def is_grpc(message: pb.Request | pb.Response) -> bool:
    """Whether a body is one of a gRPC call."""
    return message.content_type.lower().startswith("application/grpc")


def grpc_lines(
    body: Body, call: pb.Exchange, palette: Palette, schema: Schema | None, *, response: bool
) -> Iterator[str]:
    """The lines of a call's body."""
    for number, (start, data) in enumerate(body.segments):
        if number or start:
            # Where messages begin behind a hole, nobody knows.
            yield from dump(data, start)
        else:
            yield from _messages(data, call, palette, schema, response=response)
    for hole in body.holes:
        yield hole_line(*hole, palette)


def _messages(
    data: bytes, call: pb.Exchange, palette: Palette, schema: Schema | None, *, response: bool
) -> Iterator[str]:
    at, number = 0, 0
    while at + PREFIX <= len(data):
        flags, size = data[at], int.from_bytes(data[at + 1 : at + PREFIX])
        payload = data[at + PREFIX : at + PREFIX + size]
        if len(payload) < size:
            break
        at += PREFIX + size
        number += 1
        if flags & WEB_TRAILERS:
            yield f"{INDENT}{palette.faint}[trailers]{palette.reset}"
            yield from (INDENT + quote(line) for line in payload.decode("latin-1").splitlines())
            continue
        facts = f"message {number}, {units.size(size)}"
        problem = ""
        if flags & COMPRESSED:
            payload, problem = _inflated(payload, call.grpc.encoding)
            facts += f" of {quote(call.grpc.encoding) or 'unknown coding'}" + (
                "" if problem else f", {units.size(len(payload))} decoded"
            )
        yield f"{INDENT}{palette.faint}[{facts}]{palette.reset}"
        if problem:
            yield f"{INDENT}{palette.warning}… {problem} …{palette.reset}"
            yield from dump(payload)
        else:
            yield from _shown(payload, call, schema, response=response)
    if at < len(data):
        rest = f"… {len(data) - at:,} bytes of a message that is not whole …"
        yield f"{INDENT}{palette.warning}{rest}{palette.reset}"


def _shown(payload: bytes, call: pb.Exchange, schema: Schema | None, *, response: bool) -> Iterator[str]:
    found = None
    message = schema.message(call.grpc.service, call.grpc.method, response=response) if schema else None
    if message is not None:
        found = named_lines(message, payload)
    if found is None:
        found = lines(payload)
    if found is None:
        yield from dump(payload)
        return
    for count, line in enumerate(found):
        if count == MAX_LINES:
            yield f"{INDENT}…"
            return
        yield INDENT + line


def _inflated(payload: bytes, encoding: str) -> tuple[bytes, str]:
    """(the message, "") or (what came, why it is not inflated)."""
    if not encoding or not is_known(encoding):
        return payload, f"{quote(encoding) or 'its coding'} is not known here: as on the wire"
    decoder = Decoder(encoding, max_size=MAX_DECODED, max_ratio=MAX_RATIO)
    out = b"".join(decoder.feed(payload))
    if decoder.problem or not decoder.complete:
        return payload, f"it cannot be decoded: {decoder.problem or 'its end is missing'}"
    return out, ""
