"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding/): tags, varints, strings.

Takes fields of generated messages and Python values, returns bytes. Knows varint and length-delimited fields,
which are all that the contract uses. Default values are left out, as proto3 does; fields with explicit
presence are written by their ``tag`` and ``varint``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import Message

SMALL: Final = 2048
"""Numbers below it come from tables (100 KiB each): nearly all lengths and ports; the rest is computed."""
MAX_CONSTANTS: Final = 512
"""Combinations (method, scheme, version; status line) remembered; a host meets some tens."""
_UINT64: Final = (1 << 64) - 1


def varint(number: int) -> bytes:
    """An unsigned varint of at most 64 bits: negative numbers become 0, larger ones the largest."""
    if 0 <= number < SMALL:
        return _VARINTS[number]
    if 0 < number < 1 << 21:
        return (
            bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
            if number >> 14
            else bytes((number & 127 | 128, number >> 7))
        )
    if 0 < number < 1 << 28:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21))
    return _varint(number)


def _varint(number: int) -> bytes:
    number = min(max(number, 0), _UINT64)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS: Final = [_varint(number) for number in range(SMALL)]


def size_table(tag: bytes) -> list[bytes]:
    """``tag`` and a length, for every length below SMALL."""
    return [tag + size for size in _VARINTS]


def varint_field(empty: bytes, size: int) -> bytes:
    """Tag and ``size``, from the entry for length 0 of a ``size_table``."""
    return empty[:-1] + varint(size)


def to_utf8(value: str | bytes) -> bytes:
    """UTF-8 of any text: bytes that are no UTF-8 are taken as Latin-1, lone surrogates become "?"."""
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1").encode()
        return value
    try:
        return value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


class Field:
    """A field of a generated message; KeyError at import if the contract no longer has it."""

    __slots__ = ("tag",)

    def __init__(self, message: type[Message], name: str) -> None:
        field = message.DESCRIPTOR.fields_by_name[name]
        number = field.cpp_type in (field.CPPTYPE_STRING, field.CPPTYPE_MESSAGE) or field.is_repeated
        self.tag = _varint(field.number << 3 | (2 if number else 0))

    def encode(self, value: int | str | bytes) -> bytes:
        """The field with ``value`` (bytes: a serialised message); nothing for "", 0 and b""."""
        if not value:
            return b""
        if isinstance(value, int):
            return self.tag + varint(value)
        data = value if isinstance(value, bytes) else to_utf8(value)
        return self.tag + varint(len(data)) + data


def constants(fields: Sequence[Field]) -> Callable[..., bytes]:
    """An encoder of these fields that remembers the combinations it met, up to MAX_CONSTANTS."""
    known: dict[tuple[int | str, ...], bytes] = {}

    def encode(*values: int | str) -> bytes:
        data = known.get(values)
        if data is None:
            data = b"".join([field.encode(value) for field, value in zip(fields, values, strict=True)])
            if len(known) < MAX_CONSTANTS and len(data) <= 128:
                known[values] = data
        return data

    return encode
