"""Finds the next plausible start line in bytes whose message boundaries are lost.

Takes bytes from somewhere inside a stream (behind a gap, behind garbage, joined mid-stream) and says
where a request line or status line begins, or how much of the end must be kept because one may be
under way. The answer depends on the bytes alone, never on how they were cut into records.

Rules, strictest evidence first:
* a response begins at ``HTTP/1.x NNN`` followed by a space or a line end, anywhere (a body need not end in
  a line end);
* a request line ends in `` HTTP/1.x`` and a line end; at the beginning of a line any token is a method (but
  ``fooGET`` is the end of a body and GET), elsewhere only a registered one, because the bytes before it may
  be the tail of a body.
A body that quotes HTTP can deceive it; nothing on the wire tells the two apart.
"""

from __future__ import annotations

import re
from typing import Final

from spliffd.protocols.http1_head import TOKEN

SEARCH_LINE: Final = 8192
"""Longest request line found when searching: what RFC 9110 section 4.1 asks of servers."""
SEARCH_KEEP: Final = SEARCH_LINE + 16
"""Bytes of an unfinished line to keep: the line and an unfinished `` HTTP/1.1`` behind it."""
STATUS_KEEP: Final = 13
"""Bytes to keep for a status line: ``HTTP/1.1 200`` and the CR before its LF."""

_STATUS: Final = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: |\r?\n)")
_LINE_END: Final = re.compile(rb" HTTP/1\.[0-9]\r?\n")
_METHODS: Final = (
    rb"GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|UNLOCK|LOCK|"
    rb"SEARCH|REPORT|MKCALENDAR|MKACTIVITY|CHECKOUT|MERGE|ACL|REBIND|UNBIND|BIND|UNLINK|LINK|NOTIFY|"
    rb"UNSUBSCRIBE|SUBSCRIBE|PURGE|QUERY"
)
_TARGET: Final = rb"(?:/|\*\Z|[A-Za-z][A-Za-z0-9+.\-]{1,20}://|[^ /]+:[0-9]+\Z)[^ ]*\Z"
_WHOLE_LINE: Final = re.compile(TOKEN.pattern + rb" " + _TARGET)
_MID_LINE: Final = re.compile(rb"(?:" + _METHODS + rb") " + _TARGET)
_GLUED: Final = re.compile(rb"(?<=[^A-Z\-])" + _MID_LINE.pattern)


def find_response(data: bytes, pos: int) -> tuple[int, int]:
    """(start, keep): where a status line starts, or (-1, index from which bytes are to be kept)."""
    match = _STATUS.search(data, pos)
    if match is not None:
        return match.start(), 0
    return -1, max(pos, len(data) - STATUS_KEEP)


def find_request(data: bytes, pos: int, line_start: bool) -> tuple[int, int, bool]:
    """(start, 0, True) of a request line, or (-1, index to keep from, whether a line starts there).

    ``line_start`` says whether ``pos`` is the beginning of a line.
    """
    for match in _LINE_END.finditer(data, pos):
        end = match.start()
        newline = data.rfind(b"\n", pos, end)
        begin = newline + 1 if newline >= 0 else pos
        if end - begin <= SEARCH_LINE and (newline >= 0 or line_start):
            if _WHOLE_LINE.fullmatch(data, begin, end) is not None:
                glued = _GLUED.search(data, begin, end)
                return (begin if glued is None else glued.start()), 0, True
        else:
            begin = max(begin, end - SEARCH_LINE)
        found = _MID_LINE.search(data[begin:end])
        if found is not None:
            return begin + found.start(), 0, True
    newline = data.rfind(b"\n", pos)
    keep = newline + 1 if newline >= 0 else pos
    starts_line = newline >= 0 or line_start
    if len(data) - keep > SEARCH_KEEP:
        return -1, len(data) - SEARCH_KEEP, False
    return -1, keep, starts_line
