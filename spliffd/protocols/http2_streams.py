"""Which blocks and bytes of an HTTP/2 connection make which exchange (RFC 9113 section 8).

Takes header blocks and the announcement of data, with their stream ids, from either direction; makes the
exchanges and fills their halves. ``http2_table`` below it knows when an exchange is over.

Behind a loss, data or trailers of a stream that nobody opened make a half without a head, marked: it is
better to show the rest of a long answer than nothing of it. Without a loss they are stray.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols import grpc
from spliffd.protocols.grpc import MessageCounter
from spliffd.protocols.http1_fields import Headers
from spliffd.protocols.http2_fields import fill_request, fill_response, find_status
from spliffd.protocols.http2_table import Stream, StreamTable
from spliffd.protocols.messages import RESPONSE_MISSING, HttpExchange, HttpMessage, HttpRequest, HttpResponse
from spliffd.protocols.websocket import WebSocket
from spliffd.protocols.websocket_deflate import EXTENSIONS, negotiated

MAX_INTERIM: Final = 64
"""Most interim statuses kept of one response; real ones have one or two."""
MAX_TRAILERS: Final = 2000
"""Most trailers kept of one message, also when they come in many blocks."""


class Streams(StreamTable):
    """All streams of a connection."""

    def __init__(self, out: list[HttpExchange], *, joined: bool) -> None:
        StreamTable.__init__(self, out, joined=joined)
        self.cut = (0, 0)
        """Offset and size of the gap that the block at hand was cut by; no size, no cut."""

    # ---- header blocks ------------------------------------------------------------------------

    def request(
        self,
        stream_id: int,
        fields: Headers,
        flaw: str,
        start_ns: int,
        now: int,
        overhead: int,
        *,
        ends: bool,
    ) -> Stream | None:
        """A header block from the client, or a promised one from the server.

        ``flaw``: the state to mark the exchange with, when the block is not known in full; else "".
        """
        stream = self.open.get(stream_id)
        if stream is not None and stream.exchange.request is not None:
            self._trailers(stream, stream.exchange.request, fields, flaw, now, overhead)
            return stream
        request = HttpRequest()
        fill_request(request, fields)
        promised = not stream_id & 1
        if not request.method and (not flaw or (stream_id <= self._highest and not promised)):
            self._stray(0)  # trailers of a request that nobody saw
            return None
        if stream is None:
            stream = self._open(stream_id)
            if stream_id in self._ended:  # the response came out alone
                stream.answered = True
                stream.exchange.state = RESPONSE_MISSING
        if not promised:
            self._advance(stream_id)
        exchange = stream.exchange
        exchange.request = request
        _begin(request, start_ns, now, overhead)
        if flaw:
            self._mark(exchange, flaw)
        if not ends:
            self._unfinished[0][stream_id] = stream
        if request.content_type and grpc.is_grpc(request):
            grpc.begin_request(exchange)
            stream.request_messages = MessageCounter()
        if self._silent:
            self._release_silent(now)
        return stream

    def response(
        self,
        stream_id: int,
        fields: Headers,
        flaw: str,
        start_ns: int,
        now: int,
        overhead: int,
        *,
        ends: bool,
    ) -> Stream | None:
        """A header block from the server: interim, final, or trailers."""
        status = find_status(fields)
        stream = self.open.get(stream_id)
        if stream is None:
            if stream_id in self._ended or not (status or flaw or self.loss[1]):
                self._stray(0)
                return None
            stream = self._open(stream_id)
        exchange = stream.exchange
        response = exchange.response
        if response is not None and stream.answered and not (status and not response.status):
            self._trailers(stream, response, fields, flaw, now, overhead)
            return stream
        if not status and not flaw:
            if not self.loss[1]:
                self._stray(0)
                return None
            self._trailers(stream, self._headless_response(stream, start_ns), fields, flaw, now, overhead)
            return stream
        if response is None:
            response = exchange.response = HttpResponse()
        if 100 <= status < 200 and not ends:
            response.version = "2"
            response.overhead_size += overhead
            response.start_ns = response.start_ns or start_ns
            response.end_ns = now
            if len(response.interim) < MAX_INTERIM:
                response.interim.append(status)
            return stream
        stream.answered = True
        response.status = status
        fill_response(response, fields)
        _begin(response, start_ns, now, response.overhead_size + overhead)
        exchange.first_byte_ns = exchange.first_byte_ns or start_ns
        if flaw:
            self._mark(exchange, flaw)
        if not ends:
            self._unfinished[1][stream_id] = stream
        if (exchange.grpc is not None or response.content_type) and grpc.is_grpc(response):
            grpc.begin_response(exchange)
            stream.response_messages = stream.response_messages or MessageCounter()
        request = exchange.request
        if request is not None and request.method == "CONNECT" and 200 <= status < 300:
            self._connected(stream, request, response)
        return stream

    def _connected(self, stream: Stream, request: HttpRequest, response: HttpResponse) -> None:
        """Its data is a tunnel's; where it is one of WebSocket (RFC 8441), messages are read from it."""
        if (b":protocol", b"websocket") in request.headers:
            agreed = [value for name, value in response.headers if name == EXTENSIONS]
            stream.websocket = WebSocket(negotiated(b",".join(agreed)), self.room, stream.exchange)
            stream.exchange.websocket = True

    def _trailers(
        self, stream: Stream, message: HttpMessage, fields: Headers, flaw: str, now: int, overhead: int
    ) -> None:
        headers = message.headers
        if message.trailer_start is None:
            message.trailer_start = len(headers)
        headers += fields[: max(0, message.trailer_start + MAX_TRAILERS - len(headers))]
        message.ascii = False
        message.overhead_size += overhead
        message.end_ns = now
        exchange = stream.exchange
        if flaw:
            self._mark(exchange, flaw)
        if message is exchange.response and (exchange.grpc is not None or _has_status(fields)):
            exchange.grpc = exchange.grpc or grpc.begin_response(exchange)
            grpc.take_outcome(exchange.grpc, fields)

    # ---- data ------------------------------------------------------------------------

    def data(self, stream_id: int, size: int, now: int, *, is_response: bool) -> Stream | None:
        """The stream that ``size`` bytes of data belong to; None when there is none."""
        stream = self.open.get(stream_id)
        if stream is None:
            if not self.loss[is_response] or stream_id in self._ended:
                self._stray(size)
                return None
            stream = self._open(stream_id)
        exchange = stream.exchange
        if is_response:
            if exchange.response is None:
                if not self.loss[1]:
                    self._stray(size)
                    return None
                self._headless_response(stream, now)
        elif exchange.request is None:
            if not self.loss[0]:
                self._stray(size)
                return None
            request = exchange.request = HttpRequest()
            request.headers = []
            request.scheme = ""
            _begin(request, now, now, 0)
            exchange.mark(self.loss[0])
            self._unfinished[0][stream_id] = stream
        return stream

    def _headless_response(self, stream: Stream, start_ns: int) -> HttpResponse:
        response = stream.exchange.response = HttpResponse()
        response.headers = []
        _begin(response, start_ns, start_ns, 0)
        stream.answered = True
        stream.exchange.mark(self.loss[1])
        self._unfinished[1][stream.id] = stream
        return response

    def _mark(self, exchange: HttpExchange, flaw: str) -> None:
        exchange.mark(flaw)
        if self.cut[1]:
            exchange.mark_gap(*self.cut)


def _begin(message: HttpMessage, start_ns: int, now: int, overhead: int) -> None:
    message.version = "2"
    message.start_ns = start_ns
    message.end_ns = now
    message.overhead_size = overhead


def _has_status(fields: Headers) -> bool:
    return any(name == b"grpc-status" for name, _ in fields)
