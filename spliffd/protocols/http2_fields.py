"""What the fields of an HTTP/2 header block say (RFC 9113 section 8.3).

Takes decoded fields and fills a request or a response from them. Pseudo-header fields go where their meaning
is (method, path, status, ...) and leave the list; those that have no place (``:protocol``, a second
``:path``, unknown ones) stay in it, so that nothing is dropped. Never raises.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.http1_fields import Headers
from spliffd.protocols.messages import HttpMessage, HttpRequest, HttpResponse, text

_METHOD, _SCHEME, _AUTHORITY, _PATH, _STATUS, _HOST, _TYPE, _ENCODING = range(1, 9)
_MEANING: Final = {
    b":method": _METHOD,
    b":scheme": _SCHEME,
    b":authority": _AUTHORITY,
    b":path": _PATH,
    b":status": _STATUS,
    b"host": _HOST,
    b"content-type": _TYPE,
    b"content-encoding": _ENCODING,
}


def fill_request(request: HttpRequest, fields: Headers) -> None:
    """Sets what the fields of a request say; ``method`` stays empty where it is not known."""
    headers: Headers = []
    request.headers = headers
    host = authority = scheme = b""
    for field in fields:
        meaning = _MEANING.get(field[0], 0)
        if meaning:
            value = field[1]
            if meaning == _METHOD and not request.method:
                request.method = text(value)
                continue
            if meaning == _PATH and not request.path:
                request.path = text(value)
                continue
            if meaning == _AUTHORITY and not authority:
                authority = value
                continue
            if meaning == _SCHEME and not scheme:
                scheme = value
                continue
            if meaning == _HOST:
                host = host or value
            else:
                _take_content(request, meaning, value)
        headers.append(field)
    request.authority = text(authority or host)
    if scheme:
        request.scheme = text(scheme)


def fill_response(response: HttpResponse, fields: Headers) -> None:
    """Sets what the fields of a response say, but for its status, which the caller has found already."""
    headers: Headers = []
    response.headers = headers
    seen = not response.status
    for field in fields:
        meaning = _MEANING.get(field[0], 0)
        if meaning:
            if meaning == _STATUS and not seen:
                seen = True
                continue
            _take_content(response, meaning, field[1])
        headers.append(field)


def _take_content(message: HttpMessage, meaning: int, value: bytes) -> None:
    """The first of each counts, as in HTTP/1."""
    if meaning == _TYPE:
        message.content_type = message.content_type or text(value)
    elif meaning == _ENCODING:
        message.content_encoding = message.content_encoding or text(value)


def find_status(fields: Headers) -> int:
    """The status that a block carries; 0 where it carries none (trailers) or an impossible one."""
    for name, value in fields:
        if name == b":status":
            return int(value) if len(value) == 3 and value.isdigit() and value[0] > 0x30 else 0
        if name[:1] not in (b":", b"("):  # "(" begins UNKNOWN, which may stand for a pseudo-header field
            return 0
    return 0
