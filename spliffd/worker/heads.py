"""Field lines of an HTTP/1 head, serialised straight from the wire, line by line remembered.

Takes a head that nobody has read yet (``HttpMessage.unread``) and returns its ``headers`` field, and what
is said beside it of Content-Type and Content-Encoding, as protobuf. Most lines of a head were in another
head a moment ago, even where an id or a date differs, so a line costs one look-up; splitting every head
into names and values, only to join them again, costs four times as much.

Anything unusual (folded lines, no colon, blanks around a name) is left to ``messages`` (returns None).
"""

from __future__ import annotations

from typing import Final

from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.messages import text
from spliffd.protocols.protobuf import Field, to_utf8

MAX_LINES: Final = 4096
"""Lines remembered: heads have about ten, of which two differ from one exchange to the next."""
MAX_LINE: Final = 256
"""Longest line remembered; with its encoding about 700 bytes, 3 MiB in all. Longer ones (cookies, tokens)
seldom repeat, and secrets should not be kept for longer than they are needed."""

_PLAIN, _HOST, _TYPE, _ENCODING = range(4)
_SPECIAL = {b"host": _HOST, b"content-type": _TYPE, b"content-encoding": _ENCODING}

_HEADERS = Field(pb.Request, "headers")
_NAME = Field(pb.Header, "name")
_VALUE = Field(pb.Header, "value")
_BESIDE = {_TYPE: Field(pb.Request, "content_type"), _ENCODING: Field(pb.Request, "content_encoding")}

_Line = tuple[bytes, int, bytes]
"""Its header as protobuf, its kind, its value."""
_lines: dict[bytes, _Line] = {}


def encode_head(unread: bytes) -> tuple[bytes, str] | None:
    """(fields of Request or Response, Host) for a head; None when it must be read in full."""
    lines = unread.split(b"\n")
    parts: list[bytes] = []
    special: list[_Line] | None = None
    known = _lines.get
    for line in lines[1:]:
        found = known(line) or _encode_line(line)
        if found is None:
            return None
        parts.append(found[0])
        if found[1]:
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
            elif value:
                last[kind] = value
        for kind, value in last.items():
            parts.append(_BESIDE[kind].encode(text(value)))
    return b"".join(parts), text(host)


def _encode_line(line: bytes) -> _Line | None:
    name, colon, value = line.partition(b":")
    if not colon or not name or name != name.strip(b" \t") or b"\r" in name:
        return None
    value = value.strip()
    head = _NAME.encode(name if name.isascii() else to_utf8(name))
    body = _VALUE.encode(value if value.isascii() else to_utf8(value))
    found = (_HEADERS.encode(head + body), _SPECIAL.get(name.lower(), _PLAIN), value)
    if len(line) <= MAX_LINE:
        if len(_lines) >= MAX_LINES:
            _lines.clear()  # cheaper than keeping their order: what is in use is back at once
        _lines[line] = found
    return found
