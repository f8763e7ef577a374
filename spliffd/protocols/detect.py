"""What a direction speaks, told from its first bytes.

Takes the first bytes of one direction of a connection (or of one record, while a connection is raw) and
returns one of the constants below. UNDECIDED means: these bytes can still become HTTP, ask again with more;
no input stays undecided beyond ``ENOUGH`` bytes. Keeps nothing, never raises.

HTTP/1 is taken for it only on strong evidence, because binary and line protocols begin with letters too
(Redis ``*1``/``PING``, SMTP ``220 ``/``EHLO x``, IMAP, MQTT, PostgreSQL): a method token, one space, a target
of one of the four forms of RFC 9112 section 3.2, and `` HTTP/1.`` behind it where the line is at hand.
"""

from __future__ import annotations

import re
from typing import Final

UNDECIDED: Final = 0
HTTP1_REQUEST: Final = 1
HTTP1_RESPONSE: Final = 2
HTTP2_PREFACE: Final = 3
OTHER: Final = 4

ENOUGH: Final = 256
"""A request line that is not over after this many bytes is believed by its beginning: no line protocol
has a word, a space, a slash and 200 printable bytes more in its first line."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE: Final = re.compile(
    rb"[\r\n]{0,4}" + _TOKEN + rb"{1,24} "
    rb"(?:/[^\x00-\x1f\x7f]*|\*|[A-Za-z][A-Za-z0-9+.\-]*://[^\x00-\x20\x7f]+|[^\x00-\x20\x7f/]+:[0-9]{1,5})"
    rb" +HTTP/1\.[0-9][ \t]*\r?\n"
)
_REQUEST_BEGUN: Final = re.compile(
    rb"[\r\n]{0,4}(?:" + _TOKEN + rb"{1,24}(?: (?:/[^\x00-\x1f\x7f]*|\*[ HTP/1.0-9]*"
    rb"|[A-Za-z][A-Za-z0-9+.\-]*(?::(?:/(?:/[^\x00-\x1f\x7f]*)?)?)?"
    rb"|[^\x00-\x20\x7f/]+(?::[0-9]{0,5}(?: [HTP/1.0-9]*)?)?)?)?)?\r?"
)
_STATUS_LINE: Final = re.compile(rb"[\r\n]{0,4}HTTP/1\.[0-9] [1-9][0-9]{2}(?: |\r?\n)")
_STATUS_BEGUN: Final = re.compile(
    rb"[\r\n]{0,4}(?:H|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.|HTTP/1\.[0-9]|HTTP/1\.[0-9] |"
    rb"HTTP/1\.[0-9] [1-9]|HTTP/1\.[0-9] [1-9][0-9]|HTTP/1\.[0-9] [1-9][0-9][0-9]\r?)?"
)


def detect(data: bytes) -> int:
    """The protocol that ``data``, from the first byte on, is the beginning of."""
    if not data:
        return UNDECIDED
    if data.startswith(b"PRI "):
        if data.startswith(PREFACE):
            return HTTP2_PREFACE
        return UNDECIDED if PREFACE.startswith(data) else OTHER
    if _REQUEST_LINE.match(data) is not None:
        return HTTP1_REQUEST
    if _STATUS_LINE.match(data) is not None:
        return HTTP1_RESPONSE
    if len(data) >= ENOUGH:
        begun = data[:ENOUGH]
        return HTTP1_REQUEST if b"\n" not in begun and _REQUEST_BEGUN.fullmatch(begun) else OTHER
    if _STATUS_BEGUN.fullmatch(data) is not None or _REQUEST_BEGUN.fullmatch(data) is not None:
        return UNDECIDED
    return OTHER
