"""Protobuf messages as lines: by field number when nobody has a schema, by name when somebody does.

Takes the bytes of one message, returns indented lines. Without a schema the wire tells numbers and wire
types only (https://protobuf.dev/programming-guides/encoding/): what is printable text is shown as that, else
what reads as a message to its end as one, else bytes; a number is shown unsigned, a fixed one also as the
float that it may be. Whatever does not read as protobuf is said so, and shown as a hexdump by the caller.
Never raises.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from google.protobuf.message import Message

MAX_DEPTH = 24
"""Levels that are taken apart; deeper ones are shown as bytes."""

MAX_FIELDS = 4096
"""Fields of one message, its inner ones included, that are shown."""

MAX_BYTES_SHOWN = 64
"""Bytes of a field that is neither text nor a message."""

MAX_FIELD_NUMBER = (1 << 29) - 1

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of the wire: number, wire type, and its value."""

    number: int
    kind: int
    value: int | bytes


def fields(data: bytes) -> list[Field] | None:
    """The fields of a message in the order of the wire; None when these bytes are none."""
    found: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if at < 0 or not 1 <= number <= MAX_FIELD_NUMBER or len(found) == MAX_FIELDS:
            return None
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
            value = int.from_bytes(data[at : at + size], "little")
            at = at + size if at + size <= len(data) else -1
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            if at < 0 or at + size > len(data):
                return None
            value = data[at : at + size]
            at += size
        else:
            return None
        if at < 0:
            return None
        found.append(Field(number, kind, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and the position behind it; -1 when it does not end."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    return 0, -1


def lines(data: bytes, depth: int = 0) -> Iterator[str] | None:
    """The lines of a message without a schema; None when these bytes are no message."""
    found = fields(data)
    if found is None:
        return None
    return (line for field in found for line in _field_lines(field, depth))


def _field_lines(field: Field, depth: int) -> Iterator[str]:
    blanks = "  " * depth
    head = f"{blanks}{field.number}: "
    value = field.value
    if isinstance(value, int):
        yield head + _number(field.kind, value)
        return
    text = _text(value)
    if text is not None:
        yield f'{head}"{quote(text)}"'
        return
    inner = lines(value, depth + 1) if depth < MAX_DEPTH else None
    if inner is not None:
        yield f"{blanks}{field.number} {{"
        yield from inner
        yield blanks + "}"
        return
    more = f" … {len(value):,} bytes" if len(value) > MAX_BYTES_SHOWN else ""
    yield f"{head}{value[:MAX_BYTES_SHOWN].hex(' ')}{more}"


def _number(kind: int, value: int) -> str:
    if kind == _VARINT:
        return str(value)
    size, form = (8, "<d") if kind == _FIXED64 else (4, "<f")
    (real,) = struct.unpack(form, value.to_bytes(size, "little"))
    return f"{value} ({real:.6g})"


def _text(value: bytes) -> str | None:
    """A value as text, when that is what it looks like; an empty one is."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\t\n\r" for char in text) else None


def named_lines(message: Message, data: bytes) -> Iterator[str] | None:
    """The lines of a message of a known type; None when the bytes are none of that type."""
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    text = text_format.MessageToString(message, as_utf8=True, print_unknown_fields=True)
    return (quote(line) for line in text.splitlines())
