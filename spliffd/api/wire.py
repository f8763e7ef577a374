"""Pieces of serialised protobuf, put together without building messages.

Takes bytes that are already serialised (a worker's ``Frame.public``), adds the few fields that only
the api knows, and returns entries of ``WatchResponse.items``: tag, length, ``Item``. A response is
the join of entries. Rests on the wire format (protobuf.dev, "Encoding"): a message is its fields one
after the other, and concatenated serialisations of one message merge.
Field numbers come from the descriptors of the contract; no number stands here. Never looks inside a
body, and never raises on a length: what does not fit was refused where it came in.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from google.protobuf.descriptor import Descriptor

from spliffd.pb import spliff_pb2 as pb

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5
"""Wire types (protobuf.dev, "Encoding", "Message Structure"); groups do not occur in proto3."""


def _long_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SHORT = tuple(_long_varint(value) for value in range(1 << 14))
"""All varints of one and two bytes: nearly every length. 0.7 MB for a third of the time."""


def varint(value: int) -> bytes:
    """``value`` (not negative) as a base-128 varint."""
    return _SHORT[value] if value < 16384 else _long_varint(value)


def tag(message: Descriptor, field: str) -> bytes:
    """The tag of a ``bytes``, ``string``, message or unsigned field of ``message``."""
    described = message.fields_by_name[field]
    numbers = {described.CPPTYPE_UINT32, described.CPPTYPE_UINT64, described.CPPTYPE_BOOL}
    return varint(described.number << 3 | (VARINT if described.cpp_type in numbers else LENGTH))


_EXCHANGE: Final = pb.Exchange.DESCRIPTOR
_ITEM: Final = pb.Item.DESCRIPTOR

ITEMS_TAG: Final = tag(pb.WatchResponse.DESCRIPTOR, "items")
ID_TAG: Final = tag(_EXCHANGE, "id")
PART_KEY_TAG: Final = tag(_EXCHANGE, "part_key")
_OF_EXCHANGE_TAG: Final = tag(pb.Message.DESCRIPTOR, "exchange_part_key")
KIND_TAGS: Final[dict[str, bytes]] = {field.name: tag(_ITEM, field.name) for field in _ITEM.fields}
_COMPLETENESS_TAG: Final = tag(_EXCHANGE, "completeness")
_NOT_SENT_TAG: Final = tag(pb.Completeness.DESCRIPTOR, "body_not_sent")
_REQUEST_TAGS: Final = (
    tag(_EXCHANGE, "request"),
    tag(pb.Request.DESCRIPTOR, "body"),
    tag(pb.Request.DESCRIPTOR, "body_offset"),
)
_RESPONSE_TAGS: Final = (
    tag(_EXCHANGE, "response"),
    tag(pb.Response.DESCRIPTOR, "body"),
    tag(pb.Response.DESCRIPTOR, "body_offset"),
)
_PROGRESS_TAG: Final = tag(pb.Progress.DESCRIPTOR, "exchange")
DATA_FIELDS: Final[dict[str, int]] = {
    "message": pb.Message.DESCRIPTOR.fields_by_name["data"].number,
    "chunk": pb.Chunk.DESCRIPTOR.fields_by_name["data"].number,
}
DATA_TAGS: Final[dict[str, bytes]] = {
    "message": tag(pb.Message.DESCRIPTOR, "data"),
    "chunk": tag(pb.Chunk.DESCRIPTOR, "data"),
}


def entry(kind: str, *pieces: bytes) -> bytes:
    """An entry of ``WatchResponse.items`` whose ``Item.<kind>`` is the join of ``pieces``."""
    size = 0
    for piece in pieces:
        size += len(piece)
    head = KIND_TAGS[kind] + varint(size)
    return b"".join((ITEMS_TAG, varint(len(head) + size), head, *pieces))


_HIDING_KEY: Final = os.urandom(16)
"""Part keys count what all users do; who may know of one of them only gets them hashed by this."""


def hidden(part_key: int) -> int:
    """Another key in place of ``part_key``: 63 bits that tell nothing, the same for the same."""
    digest = hashlib.blake2b(part_key.to_bytes(8, "big"), digest_size=8, key=_HIDING_KEY).digest()
    return int.from_bytes(digest, "big") >> 1 or 1


def hide_exchange(message: bytes) -> bytes:
    """A serialised Message with another key of the exchange that it belongs to."""
    key = pb.Message.FromString(message).exchange_part_key
    return message + _OF_EXCHANGE_TAG + varint(hidden(key)) if key else message


def body_pieces(data: bytes, offset: int, *, response: bool) -> tuple[bytes, ...]:
    """Pieces of an Exchange: the body of its request or response, starting at ``offset``."""
    outer, body, body_offset = _RESPONSE_TAGS if response else _REQUEST_TAGS
    head = body + varint(len(data))
    if offset:
        head = body_offset + varint(offset) + head
    return (outer, varint(len(head) + len(data)), head, data)


def progress_pieces(exchange: bytes) -> tuple[bytes, ...]:
    """Pieces of a Progress: what is known of its exchange, or more of that."""
    return (_PROGRESS_TAG, varint(len(exchange)), exchange) if exchange else ()


def not_sent_piece(count: int) -> bytes:
    """A piece of an Exchange: ``completeness.body_not_sent``."""
    inner = _NOT_SENT_TAG + varint(count)
    return _COMPLETENESS_TAG + varint(len(inner)) + inner


def split_field(message: bytes, number: int) -> tuple[bytes, bytes]:
    """Takes the last ``bytes`` field ``number`` out of a serialised message: (the rest, its value).

    Raises ValueError for bytes that are no serialised message.
    """
    at, end = 0, len(message)
    rest: list[bytes] = []
    value = b""
    while at < end:
        start = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == LENGTH:
            size, at = _read_varint(message, at)
            at += size
        elif kind == VARINT:
            _, at = _read_varint(message, at)
        else:
            at += _fixed_size(kind)
        if at > end:
            raise ValueError("a field reaches beyond its message")
        if key >> 3 == number and kind == LENGTH:
            value = message[at - size : at]
        else:
            rest.append(message[start:at])
    return b"".join(rest), value


def _fixed_size(kind: int) -> int:
    if kind == FIXED64:
        return 8
    if kind == FIXED32:
        return 4
    raise ValueError(f"wire type {kind} does not occur in proto3")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise ValueError("the message ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is longer than 64 bits")
