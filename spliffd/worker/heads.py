"""Header fields, serialised with secrets masked; an HTTP/1 head's straight from the wire, remembered.

Takes a head that nobody has read yet (``HttpMessage.block``) and returns its ``headers`` field, and what
is said beside it of Content-Type and Content-Encoding, as protobuf. The fields of a head are often the same
as in another: what they gave stays with their block. Else most lines were in another head a moment ago, even
where an id or a date differs, so a line costs one look-up; splitting every head into names and values, only
to join them again, costs four times as much. Masks are remembered with the lines, so that a head without
secrets pays nothing for them.

Anything unusual (folded lines, no colon, blanks around a name) is left to ``messages`` (returns None).
"""

from __future__ import annotations

from typing import Final

from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.http1_block import Block
from spliffd.protocols.masking import PLAIN, SECRET, Masker
from spliffd.protocols.messages import Headers, text
from spliffd.protocols.protobuf import Field, size_table, to_utf8, varint_field

MAX_LINES: Final = 4096
"""Lines remembered: heads have about ten, of which two differ from one exchange to the next."""
MAX_LINE: Final = 256
"""Longest line remembered; with its encoding about 700 bytes, 3 MiB in all. Longer ones (cookies, tokens)
seldom repeat."""

_PLAIN: Final = 0
_HOST: Final = 1
_TYPE: Final = 2
_ENCODING: Final = 3
_SECRET: Final = 4
_SPECIAL: Final = {b"host": _HOST, b"content-type": _TYPE, b"content-encoding": _ENCODING}

_HEADERS: Final = Field(pb.Request, "headers")
_NAME: Final = Field(pb.Header, "name")
_VALUE: Final = Field(pb.Header, "value")
_MASKED: Final = Field(pb.Header, "masked")
_LENGTH: Final = Field(pb.Masked, "length")
_HASH: Final = Field(pb.Masked, "hash")
_HEADER_SIZES: Final = size_table(_HEADERS.tag)
_NAME_SIZES: Final = size_table(_NAME.tag)
_VALUE_SIZES: Final = size_table(_VALUE.tag)
_BESIDE: Final = {_TYPE: Field(pb.Request, "content_type"), _ENCODING: Field(pb.Request, "content_encoding")}

_Line = tuple[bytes, int, bytes]
"""Its header as protobuf, its kind, its value."""

Secrets = list[tuple[int, bytes]]
"""Index among the headers, and the value as it was, of those that are masked."""


class Heads:
    """Serialises headers with the secrets of ``masker`` masked; keeps the lines that it met."""

    def __init__(self, masker: Masker) -> None:
        self.masker = masker
        self._lines: dict[bytes, _Line] = {}

    def encode(self, block: Block, secrets: Secrets | None) -> tuple[bytes, str] | None:
        """(fields of Request or Response, Host) for a head; None when it must be read in full.

        What was masked is added to ``secrets``, where that is wanted.
        """
        if secrets is None and block.encoder is self:
            return block.encoded
        parts: list[bytes] = []
        special: list[_Line] | None = None
        known = self._lines.get
        for line in block.lines.split(b"\n") if block.lines else ():
            found = known(line) or self._encode_line(line)
            if found is None:
                return None
            parts.append(found[0])
            if found[1]:
                if found[1] == _SECRET and secrets is not None:
                    secrets.append((len(parts) - 1, found[2]))
                if special is None:
                    special = [found]
                else:
                    special.append(found)
        host = b""
        if special is not None:
            last: dict[int, bytes] = {}
            for _, kind, value in special:
                if kind == _HOST:
                    host = host or value
                elif value and kind != _SECRET:
                    last[kind] = value
            for kind, value in last.items():
                parts.append(_BESIDE[kind].encode(text(value)))
        encoded = b"".join(parts), text(host)
        block.encoder, block.encoded, block.message_of = self, encoded, ()
        return encoded

    def add(self, parts: list[bytes], headers: Headers, ascii_only: bool, secrets: Secrets | None) -> None:
        """Serialises headers that were read already, or that only a full reading gets right."""
        kind_of = self.masker.kind
        index = -1
        for name, value in headers:
            index += 1
            kind = kind_of(name)
            if kind != PLAIN and value:
                encoded, hidden = self._masked(name, value, kind)
                parts.append(encoded)
                if hidden and secrets is not None:
                    secrets.append((index, value))
                continue
            if not ascii_only:
                name = name if name.isascii() else to_utf8(name)  # noqa: PLW2901 - the same, as UTF-8
                value = value if value.isascii() else to_utf8(value)  # noqa: PLW2901 - the same, as UTF-8
            a = len(name)
            c = len(value)
            if a < 128 and c < 1900:  # so that every length is in the tables, the name's in one byte
                size = _HEADER_SIZES[a + c + (4 if c < 128 else 5)]
                parts += (size, _NAME_SIZES[a], name, _VALUE_SIZES[c], value)
            else:
                head = varint_field(_NAME_SIZES[0], a) + name + varint_field(_VALUE_SIZES[0], c)
                parts += (varint_field(_HEADER_SIZES[0], len(head) + c), head, value)

    def _masked(self, name: bytes, value: bytes, kind: int) -> tuple[bytes, bool]:
        """A header whose value is a secret, or may hold some; and whether anything of it is masked."""
        head = _NAME.encode(to_utf8(name))
        if kind == SECRET:
            inner = _LENGTH.encode(len(value)) + _HASH.encode(self.masker.digest(value))
            return _HEADERS.encode(head + _MASKED.encode(inner)), True
        masked = self.masker.url(value)
        return _HEADERS.encode(head + _VALUE.encode(to_utf8(masked))), masked is not value

    def _encode_line(self, line: bytes) -> _Line | None:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip(b" \t") or b"\r" in name:
            return None
        value = value.strip()
        kind = self.masker.kind(name)
        if kind != PLAIN and value:
            encoded, hidden = self._masked(name, value, kind)
            found = (encoded, _SECRET if hidden else _PLAIN, value)
        else:
            head = _NAME.encode(name if name.isascii() else to_utf8(name))
            body = _VALUE.encode(value if value.isascii() else to_utf8(value))
            found = (_HEADERS.encode(head + body), _SPECIAL.get(name.lower(), _PLAIN), value)
        if len(line) <= MAX_LINE:
            lines = self._lines
            if len(lines) >= MAX_LINES:
                lines.clear()  # cheaper than keeping their order: what is in use is back at once
            lines[line] = found
        return found
