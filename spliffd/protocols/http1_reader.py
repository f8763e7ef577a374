"""Reads both directions of an HTTP/1.1 connection, message by message (RFC 9112).

Takes the bytes of one direction and goes through them: heads, bodies, ends of messages; finished
exchanges collect in ``_out``. ``http1`` adds what comes from outside: calls, losses and ends.

A head nearly always comes whole in one record, and that path is short: find the empty line, scan for what
frames the body, read the start line. Everything else (in pieces, long, unusual, garbage) takes the careful
path, which decides the same from the same bytes however they are cut. Never keeps body bytes.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols import http1_stream as phase
from spliffd.protocols.http1_block import Block, block_of
from spliffd.protocols.http1_chunked import BROKEN, DONE, OnBody, find_head_end, read_chunked
from spliffd.protocols.http1_fields import CHUNKED, UNSTATED, UNUSABLE, UNUSUAL, read_fields
from spliffd.protocols.http1_head import is_start_line, read_request, read_response
from spliffd.protocols.http1_pairing import UNKNOWN, Pairing
from spliffd.protocols.http1_search import find_request, find_response
from spliffd.protocols.http1_stream import Stream
from spliffd.protocols.messages import (
    ABORTED,
    REQUEST_MISSING,
    RESPONSE_MISSING,
    TRUNCATED,
    HttpExchange,
    HttpMessage,
    HttpRequest,
    HttpResponse,
    text,
)

REQUEST: Final = 0
RESPONSE: Final = 1

MAX_INTERIM: Final = 64
"""Most interim statuses kept of one response; real ones have one or two."""


class Reader:
    """State of a connection and the way through its bytes."""

    def __init__(self, on_body: OnBody | None, joined: bool = False) -> None:
        self.on_body = on_body
        self.upgraded = ""
        """What a 101 switched to (its Upgrade field in lower case), or "connect"; "" until then."""
        self.tunnel_bytes = 0
        """Bytes behind the switch, both directions."""
        self.resyncs = 0
        """How often message boundaries were lost and had to be searched."""
        self.garbage_bytes = 0
        """Bytes that belong to no message."""
        self.oversized_heads = 0
        """Heads beyond MAX_HEAD or MAX_HEADERS."""
        self.bad_framing = 0
        """Messages whose end could not be known."""
        self._out: list[HttpExchange] = []
        self.pairing = Pairing(self._out, joined)
        """Counts ``overflows`` and says whether the connection is ``unpaired``."""
        self._streams = (Stream(False, joined), Stream(True, joined))

    # ---- reading ------------------------------------------------------------------------------

    def _run(self, stream: Stream, data: bytes, pos: int, now: int) -> None:
        size = len(data)
        while pos < size:
            at = stream.phase
            if at == phase.HEAD:
                pos = self._read_head(stream, data, pos, now)
            elif at in (phase.LENGTH, phase.UNTIL_CLOSE):
                pos = self._read_body(stream, data, pos, now)
            elif at < phase.UNTIL_CLOSE:
                pos = self._read_chunked(stream, data, pos, now)
            elif at == phase.SEARCH:
                pos = self._search(stream, data, pos)
            elif at == phase.HOLD:
                pos = stream.keep(data, pos)
                if len(stream.buffer) > phase.MAX_HOLD:
                    self._release(now)
            elif at == phase.TUNNEL:
                self.tunnel_bytes += size - pos
                return
            else:
                self.garbage_bytes += size - pos
                return

    def _read_head(self, stream: Stream, data: bytes, pos: int, now: int) -> int:
        end = data.find(b"\n\r\n", pos)
        if 0 <= end - pos < phase.QUICK_HEAD:
            newline = data.find(b"\n", pos, end + 1)
            block = block_of(data, newline, end)
            first = b"" if block.framing == UNUSUAL else data[pos:newline]
            if stream.is_response:
                if response := read_response(first, block):
                    return self._begin_response(stream, response, block.framing, data, pos, end + 3, now)
            elif request := read_request(first, block):
                stream.switching = b""
                return self._begin_request(stream, request, block.framing, data, pos, end + 3, now)
        return self._read_odd_head(stream, data, pos, now)

    def _read_odd_head(self, stream: Stream, data: bytes, pos: int, now: int) -> int:
        """A head that is not whole, long, unusual, behind empty lines, ended by bare LF, or none at all."""
        size = len(data)
        while data[pos] in b"\r\n":
            pos += 1
            if pos == size:
                return size
        stream.start_ns = stream.start_ns or now
        newline = data.find(b"\n", pos, pos + phase.MAX_START_LINE)
        if newline < 0:
            if size - pos < phase.MAX_START_LINE:
                stream.line_checked = False
                return stream.keep(data, pos)
            self.garbage_bytes += phase.MAX_START_LINE
            return self._lose(stream, UNKNOWN, pos + phase.MAX_START_LINE)
        if not is_start_line(data[pos:newline], stream.is_response):
            self.garbage_bytes += 1
            return self._lose(stream, UNKNOWN, pos + 1)
        end, behind = find_head_end(data, pos)
        if end < 0 and size - pos < phase.MAX_HEAD + 3:
            stream.line_checked = True
            if stream.exchange is None:  # its turn begins now, not when the head is over
                stream.exchange = (
                    self.pairing.response() if stream.is_response else self.pairing.request(None)
                )
            return stream.keep(data, pos)
        if end < 0:
            self.oversized_heads += 1
            self._begin_part(stream, data[pos : pos + phase.MAX_HEAD])
            self._cut(stream, TRUNCATED)
            return self._lose(stream, UNKNOWN, pos + phase.MAX_HEAD)
        lines = data[pos:end].split(b"\n")
        fields = read_fields(lines[1:])
        stream.cut = len(fields.headers) > phase.MAX_HEADERS
        if stream.cut:
            self.oversized_heads += 1
            del fields.headers[phase.MAX_HEADERS :]
        message = read_response(lines[0], None) if stream.is_response else read_request(lines[0], None)
        assert message is not None
        message.take_fields(fields)
        if isinstance(message, HttpRequest):
            stream.switching = fields.upgrade
            return self._begin_request(stream, message, fields.framing, data, pos, behind, now)
        return self._begin_response(stream, message, fields.framing, data, pos, behind, now)

    def _begin_request(
        self, stream: Stream, request: HttpRequest, framing: int, data: bytes, pos: int, end: int, now: int
    ) -> int:
        """A request's head was read: ``data[pos:end]``. Returns where reading goes on."""
        request.start_ns = stream.start_ns or now
        stream.start_ns = 0
        request.overhead_size = end - pos
        exchange = stream.exchange
        if exchange is None:
            exchange = self.pairing.request(request)
        else:  # it exists already, because its head came in pieces
            exchange.request = request
        if request.method == "CONNECT":
            stream.switching = b"connect"
        if stream.cut:
            stream.cut = False
            exchange.mark(TRUNCATED)
        return self._enter_body(stream, exchange, request, framing, data, end, now)

    def _begin_response(
        self, stream: Stream, response: HttpResponse, framing: int, data: bytes, pos: int, end: int, now: int
    ) -> int:
        """A response's head was read: ``data[pos:end]``. Returns where reading goes on."""
        response.start_ns = stream.start_ns or now
        stream.start_ns = 0
        response.overhead_size = end - pos
        status = response.status
        exchange = self._take_turn(stream, response)
        if stream.cut:
            stream.cut = False
            exchange.mark(TRUNCATED)
        method = exchange.request.method if exchange.request is not None else ""
        if status < 200:
            if status == 101:
                return self._switch(stream, exchange, response, data, end, now)
            response.end_ns = now
            return end
        if method == "CONNECT" and status < 300:
            return self._switch(stream, exchange, response, data, end, now)
        if status in (204, 304) or method == "HEAD":
            framing = 0
        end = self._enter_body(stream, exchange, response, framing, data, end, now)
        if self._streams[REQUEST].phase == phase.HOLD and not self.pairing.waiting:
            self._release(now)  # this was the answer to the request to switch, the last one
        return end

    def _enter_body(
        self,
        stream: Stream,
        exchange: HttpExchange,
        message: HttpMessage,
        framing: int,
        data: bytes,
        pos: int,
        now: int,
    ) -> int:
        """Enters the body that starts at ``pos``, or passes it (RFC 9112 section 6.3)."""
        message.end_ns = now
        if 0 <= framing <= len(data) - pos or (framing == UNSTATED and not stream.is_response):
            # No body, or all of it is at hand.
            if framing > 0:
                if self.on_body is not None:
                    self.on_body(exchange, stream.is_response, data[pos : pos + framing])
                message.body_size = framing
                pos += framing
            self._finish(stream, exchange, message)
            return pos
        stream.exchange = exchange
        stream.message = message
        if framing > 0:
            stream.phase = phase.LENGTH
            stream.remaining = framing
        elif framing == CHUNKED:
            stream.phase = phase.CHUNK_LINE
        elif framing == UNUSABLE or not stream.is_response:
            self.bad_framing += 1
            self._cut(stream, TRUNCATED)
            return self._lose(stream, UNKNOWN, pos)
        else:
            stream.phase = phase.UNTIL_CLOSE
        return pos

    def _take_turn(self, stream: Stream, response: HttpResponse) -> HttpExchange:
        """Gives a response its exchange; interim ones (1xx) leave their status for the final one."""
        exchange = stream.exchange
        if exchange is None:
            exchange = self.pairing.response()
        before = exchange.response
        if before is not None:
            response.interim = before.interim
            response.overhead_size += before.overhead_size
        exchange.response = response
        if response.status < 200 and response.status != 101:
            if len(response.interim) < MAX_INTERIM:
                response.interim.append(response.status)
            response.status = 0
            response.reason = ""
            response.headers = []
            stream.exchange = exchange
        else:
            exchange.first_byte_ns = response.start_ns
        return exchange

    def _read_body(self, stream: Stream, data: bytes, pos: int, now: int) -> int:
        exchange, message = stream.current()
        take = len(data) - pos
        if stream.phase == phase.LENGTH:
            take = min(take, stream.remaining)
            stream.remaining -= take
        if self.on_body is not None:
            self.on_body(exchange, stream.is_response, data[pos : pos + take])
        message.body_size += take
        message.end_ns = now
        if stream.phase == phase.LENGTH and not stream.remaining:
            self._end_message(stream)
        return pos + take

    def _read_chunked(self, stream: Stream, data: bytes, pos: int, now: int) -> int:
        message = stream.current()[1]
        result, pos = read_chunked(stream, data, pos, self.on_body)
        message.end_ns = now
        if result == DONE:
            self._end_message(stream)
        elif result == BROKEN:
            self.bad_framing += 1
            self._cut(stream, TRUNCATED)
            self._lose(stream, UNKNOWN, pos)
        return pos

    def _search(self, stream: Stream, data: bytes, pos: int) -> int:
        if stream.is_response:
            start, keep = find_response(data, pos)
        else:
            start, keep, stream.line_start = find_request(data, pos, stream.line_start)
        if start >= 0:
            self.garbage_bytes += start - pos
            stream.phase = phase.HEAD
            return start
        self.garbage_bytes += keep - pos
        return stream.keep(data, keep)

    # ---- where messages end -------------------------------------------------------------------

    def _end_message(self, stream: Stream) -> None:
        """The message being read ends here."""
        self._finish(stream, *stream.current())

    def _finish(self, stream: Stream, exchange: HttpExchange, message: HttpMessage) -> None:
        message.finished = True
        stream.exchange = stream.message = None
        stream.phase = phase.HEAD
        if stream.is_response:
            request = exchange.request
            if request is not None:
                if request.finished:
                    self._out.append(exchange)
            elif exchange is not self.pairing.early and exchange is not self._streams[REQUEST].exchange:
                self._out.append(exchange)
            return
        response = exchange.response
        if exchange.state == RESPONSE_MISSING or (response is not None and response.finished):
            self._out.append(exchange)
        elif stream.switching:
            stream.phase = phase.HOLD

    def _cut(self, stream: Stream, state: str) -> None:
        """The message ends here, though not by its own framing."""
        stream.current()[0].mark(state)
        self._end_message(stream)

    def _lose(self, stream: Stream, count: int, pos: int) -> int:
        """Message boundaries are lost, and up to ``count`` messages with them; returns ``pos``."""
        self._end_interim(stream)
        self.resyncs += 1
        stream.phase = phase.SEARCH
        stream.line_start = False
        stream.start_ns = 0
        if stream.is_response:
            self.pairing.lose_responses(count)
        else:
            self.pairing.lose_requests(count)
        return pos

    def _end_interim(self, stream: Stream) -> None:
        """The final response behind interim ones will not be seen."""
        exchange = stream.exchange
        if exchange is None:
            return
        stream.exchange = None
        if exchange.request is not None or exchange is self._streams[REQUEST].exchange:
            self.pairing.give_up(exchange)
            return
        if exchange is self.pairing.early:
            self.pairing.early = None
        exchange.mark_missing(REQUEST_MISSING)
        self._out.append(exchange)

    def _begin_part(self, stream: Stream, head: bytes) -> bool:
        """Begins a message of whose head only ``head`` was seen; False if not even its start line was."""
        head = head[: max(0, head.rfind(b"\n"))]
        first, _, lines = head.partition(b"\n")
        block = Block(lines, UNUSUAL)
        message = read_response(first, block) if stream.is_response else read_request(first, block)
        if message is None:
            self.garbage_bytes += len(head)
            return False
        message.start_ns = message.end_ns = stream.start_ns
        message.overhead_size = len(head)
        if isinstance(message, HttpRequest):
            if stream.exchange is None:
                stream.exchange = self.pairing.request(message)
            stream.exchange.request = message
            stream.switching = b""
        else:
            stream.exchange = self._take_turn(stream, message)
        stream.message = message
        del message.headers[phase.MAX_HEADERS :]
        return True

    def _switch(
        self, down: Stream, exchange: HttpExchange, response: HttpResponse, data: bytes, pos: int, now: int
    ) -> int:
        """101, or 2xx to a CONNECT: both directions are another protocol's from ``pos`` on."""
        up = self._streams[REQUEST]
        token = _header(response, b"upgrade") or up.switching
        self.upgraded = text(token).split(",")[0].strip().lower() or "unknown"
        response.end_ns = now
        if up.message is not None:
            if up.exchange is not exchange:
                up.current()[0].mark(ABORTED)
            self._end_message(up)
        elif up.exchange is not None:
            up.exchange.mark_missing(REQUEST_MISSING)  # of its head only a part came
            up.exchange = None
        self._finish(down, exchange, response)
        self.pairing.end_responses()
        up.phase = down.phase = phase.TUNNEL
        self.tunnel_bytes = len(up.buffer) + len(data) - pos
        return down.keep(data, pos)

    def _release(self, now: int) -> None:
        """The protocol was not switched: what came behind the request is requests."""
        stream = self._streams[REQUEST]
        stream.phase = phase.HEAD
        stream.switching = b""
        self._run(stream, stream.take(), 0, now)


def _header(message: HttpMessage, wanted: bytes) -> bytes:
    """Value of the first header of that name (in lower case), b"" without one."""
    return next((value for name, value in message.headers if name.lower() == wanted), b"")
