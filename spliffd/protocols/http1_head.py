"""The start line of an HTTP/1.1 message; its field lines stay unread until somebody asks.

Takes the first line of a head (without its LF) and its other lines as a block, and returns an HttpRequest or
HttpResponse, or None if the first line is no start line. Pure functions, one bounded table of status lines
met before. Tolerates what RFC 9112 sections 3 and 4 let a recipient tolerate: several spaces, no reason.
"""

from __future__ import annotations

import re
from typing import Final

from spliffd.protocols.http1_block import Block
from spliffd.protocols.messages import HttpRequest, HttpResponse, text

MAX_STATUS_LINES: Final = 512
"""Status lines remembered; the registered codes in two versions make 130."""
MAX_STATUS_LINE: Final = 64
"""Longest status line remembered."""

# A method: at most 24 characters, because the longest registered one (UPDATEREDIRECTREF) has 17.
TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,24}")
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[0-9]) ([1-9][0-9]{2})(?: ([^\n]*))?")
_ABSOLUTE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)(.*)", re.DOTALL)

_VERSIONS: Final = {
    b"HTTP/1.%d%b" % (minor, end): f"1.{minor}" for minor in (1, 0, *range(2, 10)) for end in (b"\r", b"")
}
_METHODS: Final = {
    name.encode(): name
    for name in ("GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE")
}
_status_lines: Final[dict[bytes, tuple[int, str, str]]] = {}


def read_request(first: bytes, block: Block | None) -> HttpRequest | None:
    """A request with this first line; None if it is no request line."""
    parts = first.split(b" ")
    if len(parts) == 3:
        method, target, ending = parts
        version = _VERSIONS.get(ending)
        name = _METHODS.get(method)
    else:
        version = name = None
    if version is None or name is None or not target:
        split = split_request_line(first)
        if split is None:
            return None
        method, target, version = split
        name = method.decode()
    request = HttpRequest()
    request.block = block
    request.method = name
    request.version = version
    if target.startswith(b"/"):
        request.path = target.decode() if target.isascii() else text(target)
    else:
        _set_target(request, target)
    return request


def read_response(first: bytes, block: Block | None) -> HttpResponse | None:
    """A response with this first line; None if it is no status line."""
    status_line = _status_lines.get(first)
    if status_line is None:
        status_line = split_status_line(first)
        if status_line is None:
            return None
        if len(_status_lines) < MAX_STATUS_LINES and len(first) <= MAX_STATUS_LINE:
            _status_lines[first] = status_line
    response = HttpResponse()
    response.block = block
    response.status, response.reason, response.version = status_line
    return response


def is_start_line(line: bytes, response: bool) -> bool:
    """Whether ``line`` (without its LF) can start a message in this direction."""
    return (split_status_line(line) if response else split_request_line(line)) is not None


def split_request_line(line: bytes) -> tuple[bytes, bytes, str] | None:
    """Method, target, version (RFC 9112 section 3); tolerates several spaces, and spaces in the target."""
    method, _, rest = line.partition(b" ")
    target, _, ending = rest.rstrip(b" \t\r").rpartition(b" ")
    version = _VERSIONS.get(ending)
    target = target.strip(b" ")
    if version is None or not target or TOKEN.fullmatch(method) is None:
        return None
    if b" " in target and not target.startswith((b"/", b"http")):
        return None
    return method, target, version


def split_status_line(line: bytes) -> tuple[int, str, str] | None:
    """Status, reason, version (RFC 9112 section 4); the reason may be absent, its space too."""
    match = _STATUS_LINE.fullmatch(line.rstrip(b" \t\r"))
    if match is None:
        return None
    version, status, reason = match.groups()
    return int(status), text(reason or b""), version.decode()


def _set_target(request: HttpRequest, target: bytes) -> None:
    """Targets other than origin-form (RFC 9112 sections 3.2.2 to 3.2.4)."""
    if request.method == "CONNECT":
        request.authority = text(target)
        return
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        request.path = text(target)
        return
    request.scheme = text(match[1]).lower()
    request.authority = text(match[2])
    request.path = text(match[3])
