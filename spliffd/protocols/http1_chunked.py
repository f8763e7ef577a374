"""The chunked transfer coding (RFC 9112 section 7.1), read as far as the bytes go.

Takes a stream in one of the phases CHUNK_LINE, CHUNK_DATA, CHUNK_END, TRAILERS and the bytes at hand;
hands body bytes on as they come, appends trailers to the message, and leaves in the stream where it
stopped. Tolerates bare LF, blanks around the size, and extensions; a line that is no size ends it with
``BROKEN``. Never keeps body bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from spliffd.protocols import http1_stream as phase
from spliffd.protocols.http1_fields import read_fields
from spliffd.protocols.http1_stream import Stream
from spliffd.protocols.messages import HttpExchange, HttpMessage

OnBody = Callable[[HttpExchange, bool, bytes], None]

MORE: Final = 0
"""All bytes at hand are used or kept."""
DONE: Final = 1
"""The message ends here."""
BROKEN: Final = 2
"""Not the chunked coding: where the message ends cannot be known."""

_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?")
"""Fifteen hexadecimal digits: 2^60 bytes, so that every sum still fits 63 bits."""


def read_chunked(stream: Stream, data: bytes, pos: int, on_body: OnBody | None) -> tuple[int, int]:
    """Reads ``data`` from ``pos`` on; returns (MORE, DONE or BROKEN, position behind what was read)."""
    exchange, message = stream.current()
    size = len(data)
    while pos < size:
        at = stream.phase
        if at == phase.CHUNK_DATA:
            take = min(stream.remaining, size - pos)
            if on_body is not None:
                on_body(exchange, stream.is_response, data[pos : pos + take])
            message.body_size += take
            pos += take
            stream.remaining -= take
            if not stream.remaining:
                stream.phase = phase.CHUNK_END
        elif at == phase.CHUNK_LINE:
            end = data.find(b"\n", pos, pos + phase.MAX_CHUNK_LINE)
            if end < 0:
                if size - pos >= phase.MAX_CHUNK_LINE:
                    return BROKEN, pos
                return MORE, stream.keep(data, pos)
            match = _SIZE.fullmatch(data, pos, end)
            if match is None:
                return BROKEN, pos
            message.overhead_size += end + 1 - pos
            pos = end + 1
            stream.remaining = int(match[1], 16)
            stream.phase = phase.CHUNK_DATA if stream.remaining else phase.TRAILERS
        else:
            # CHUNK_END and TRAILERS both may begin with the line end that closes them.
            if data[pos] == 10:
                ending = 1
            elif data[pos] == 13:
                if pos + 1 == size:
                    return MORE, stream.keep(data, pos)
                ending = 2 if data[pos + 1] == 10 else 0
            else:
                ending = 0
            if ending:
                message.overhead_size += ending
                pos += ending
                if at == phase.TRAILERS:
                    return DONE, pos
                stream.phase = phase.CHUNK_LINE
            elif at == phase.CHUNK_END:
                return BROKEN, pos
            else:
                return _read_trailers(stream, message, data, pos)
    return MORE, pos


def _read_trailers(stream: Stream, message: HttpMessage, data: bytes, pos: int) -> tuple[int, int]:
    end, behind = find_head_end(data, pos)
    if end < 0:
        if len(data) - pos >= phase.MAX_HEAD + 3:
            return BROKEN, pos
        return MORE, stream.keep(data, pos)
    headers = message.headers
    message.ascii = False
    message.trailer_start = len(headers)
    headers += read_fields(data[pos:end].split(b"\n")).headers[: phase.MAX_HEADERS - len(headers)]
    message.overhead_size += behind - pos
    return DONE, behind


def find_head_end(data: bytes, pos: int) -> tuple[int, int]:
    """(index of the LF that ends the last line, index behind the empty line), or (-1, -1).

    Either line end may lack its CR (RFC 9112 section 2.2).
    """
    limit = pos + phase.MAX_HEAD
    end = data.find(b"\n\r\n", pos, limit + 3)
    bare = data.find(b"\n\n", pos, limit + 2 if end < 0 else end + 1)
    if bare >= 0:
        return bare, bare + 2
    return (end, end + 3) if end >= 0 else (-1, -1)
