"""The field lines of an HTTP/1.1 head: what frames the body, quickly; all fields, when somebody asks.

Takes a head as it came (start line first, without the LF of its last line) and returns its framing, or
everything in it. Pure functions, one bounded table of field names met before.

Two readers, because most exchanges are only counted (nobody watches, or no filter matches):

* ``scan_framing`` looks for the lines that frame a body, 0.7 us a head. Whatever is unusual about them
  (twice, lists, other codings), and any folded line, it leaves to the other one.
* ``read_fields`` reads all lines, 0.2 us each: one ``partition``, one ``strip`` and one look-up, which tells
  names of no interest (nearly all), names of interest and names never met apart.

A spectator must be more tolerant than an endpoint: a line that is no field is kept as a name without a
value, never dropped (RFC 9112 sections 2.2, 5, 6.3).
"""

from __future__ import annotations

import re
from typing import Final

Headers = list[tuple[bytes, bytes]]
"""Names and values as sent, in the order of the wire; folded values (obs-fold) are joined by one space."""

# What frames a body; a value >= 0 is a Content-Length.
UNSTATED: Final = -1
"""Neither Content-Length nor Transfer-Encoding: no body in a request, until close in a response."""
CHUNKED: Final = -2
UNUSABLE: Final = -3
"""Content-Lengths that differ or are no numbers: where the message ends cannot be known."""
OTHER_CODING: Final = -4
"""A transfer coding whose last is not chunked: until close in a response, unknowable in a request."""
UNUSUAL: Final = -5
"""``scan_framing`` does not say; ``read_fields`` does."""

MAX_LENGTH_DIGITS: Final = 18
"""Longest Content-Length in digits: 10^18 bytes are an exbibyte, and every sum still fits 63 bits."""
MAX_NAMES: Final = 4096
"""Field names remembered; a host meets a few hundred. Beyond it a new name costs 0.3 us a time."""
MAX_NAME: Final = 64
"""Longest field name remembered, so that the table stays below half a MiB."""

_PLAIN: Final = 0
_HOST: Final = 1
_LENGTH: Final = 2
_CODING: Final = 3
_TYPE: Final = 4
_ENCODING: Final = 5
_UPGRADE: Final = 6
_NEW: Final = 7
_INTERESTING: Final = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"content-type": _TYPE,
    b"content-encoding": _ENCODING,
    b"upgrade": _UPGRADE,
}
_BLANK: Final = b" \t"
_names: Final[dict[bytes, int]] = {}

# Finds every line that matters to framing. The groups hold the usual forms; an empty match is an unusual one.
_FRAMING: Final = re.compile(
    rb"\n(?=[cCtTuU \t\n])(?:"
    rb"content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?(?=\n)|"
    rb"(transfer-encoding[ \t]*:[ \t]*chunked)[ \t]*\r?(?=\n)|"
    rb"content-length|transfer-encoding|upgrade(?!-)|[ \t\n])",
    re.IGNORECASE,
)


class Fields:
    """All that the field lines of a head say."""

    __slots__ = ("content_encoding", "content_type", "framing", "headers", "host", "upgrade")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.framing: int = UNSTATED
        """UNSTATED, CHUNKED, UNUSABLE, OTHER_CODING, or the Content-Length."""
        self.host = b""
        """The first Host."""
        self.content_type = b""
        self.content_encoding = b""
        self.upgrade = b""


def scan_framing(data: bytes, pos: int, end: int) -> int:
    """What frames the body behind the head ``data[pos:end]``, which ends in LF.

    UNUSUAL where only ``read_fields`` can tell, where there is an Upgrade, and where an empty line (bare LF)
    ends the head before ``end``.
    """
    found = _FRAMING.findall(data, pos, end)
    if not found:
        return UNSTATED
    if len(found) == 1:
        length, chunked = found[0]
        if length:
            return int(length)
        if chunked:
            return CHUNKED
    return UNUSUAL


def read_fields(lines: list[bytes]) -> Fields:
    """Reads all field lines (split at LF, so each may end in CR)."""
    headers: Headers = []
    fields = Fields(headers)
    append = headers.append
    known = _names.get
    codings = b""
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip()
        append((name, value))
        kind = known(name, _NEW)
        if kind:
            if kind == _NEW:
                kind = _classify(name) if colon else _NEW
            if kind == _NEW or not colon:
                return _read_unusual(lines)
            if kind == _HOST:
                fields.host = fields.host or value
            elif kind == _LENGTH:
                fields.framing = _length(value, fields.framing)
            elif kind == _TYPE:
                fields.content_type = value
            elif kind == _ENCODING:
                fields.content_encoding = value
            elif kind == _CODING:
                codings += b"," + value
            elif kind == _UPGRADE:
                fields.upgrade = value
    if codings:
        fields.framing = _coding(codings, fields.framing)
    return fields


def _classify(name: bytes) -> int:
    """Kind of a field name met for the first time; _NEW if its line needs a closer look.

    What is remembered must not change what comes out: never a name that a line without a colon could be.
    """
    if not name or name != name.strip(_BLANK):
        return _NEW
    kind = _INTERESTING.get(name.lower(), _PLAIN)
    if len(_names) < MAX_NAMES and len(name) <= MAX_NAME and b"\r" not in name:
        _names[name] = kind
    return kind


def _read_unusual(lines: list[bytes]) -> Fields:
    """Unfolds obs-fold (RFC 9112 section 5.2), trims names, and keeps what is no field as it is."""
    usual: list[list[bytes]] = []
    others: dict[int, bytes] = {}
    for line in lines:
        if line[:1] in (b" ", b"\t") and usual:
            rest = line.strip()
            if rest:
                usual[-1].append(rest)
            continue
        name, colon, value = line.partition(b":")
        name = name.strip(_BLANK)
        if not colon or not name:
            others[len(usual)] = line.strip()
            name = b"-"  # takes the place of the line while the rest is read
        usual.append([name + b":" + value.strip()])
    fields = read_fields([b" ".join(parts) for parts in usual])
    for index, line in others.items():
        fields.headers[index] = (line, b"")
    return fields


def _length(value: bytes, before: int) -> int:
    """Content-Length, alone or as a list of equal values (RFC 9112 section 6.3, rule 5)."""
    if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS:
        length = int(value)
    else:
        parts = {part.strip() for part in value.split(b",")}
        only = parts.pop()
        if parts or not only.isdigit() or len(only) > MAX_LENGTH_DIGITS:
            return UNUSABLE
        length = int(only)
    return length if before in (UNSTATED, length) else UNUSABLE


def _coding(codings: bytes, length: int) -> int:
    """Transfer-Encoding overrides Content-Length (rule 3); the obsolete "identity" says nothing."""
    names = [part.strip().lower() for part in codings.split(b",")]
    names = [name for name in names if name not in (b"", b"identity")]
    if not names:
        return length
    return CHUNKED if names[-1] == b"chunked" else OTHER_CODING
