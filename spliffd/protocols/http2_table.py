"""The open streams of an HTTP/2 connection, and when the exchange of each is over (RFC 9113 section 5).

Takes "ended", "reset", "lost" with a stream id, from either direction in any order (the thread that read
a response may be faster than the one that wrote the request); finished exchanges go to ``out``. Reads no
bytes. The stream id pairs request and response, so pairing is always certain.

* An exchange comes out when both halves ended, when its stream is reset, or when nothing more can come.
* A response whose request is not there yet is held while the request can still come: until a later stream
  opens, requests are lost, or their direction ends. Clients open streams in ascending order.
* A response whose end may be lost comes out when its stream stays silent (``SILENCE_NS``).
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.grpc import MessageCounter
from spliffd.protocols.messages import (
    ABORTED,
    GAP,
    JOINED_MID_STREAM,
    REQUEST_MISSING,
    RESPONSE_MISSING,
    TRUNCATED,
    HttpExchange,
)
from spliffd.protocols.websocket import WebSocket
from spliffd.protocols.websocket_message import Room, WebSocketMessage

MAX_STREAMS: Final = 4096
"""Most streams open at once; servers allow 100 to 1,000. Beyond it the one that was silent longest of the
oldest comes out, marked: some 3 KiB each make 12 MiB."""
REAP_AMONG: Final = 16
"""How many of the oldest are compared then, so that a long call that is still busy stays."""
MAX_ENDED: Final = 4096
"""Stream ids remembered that ended before their time: frames that were on their way belong to nothing."""
MAX_GOAWAYS: Final = 8
"""GOAWAY frames acted upon; a graceful end takes two. Each looks at all streams."""
MAX_UNSEEN: Final = 1 << 17
"""How far beyond the latest stream known a stream id can be: 65,536 requests in one gap."""
SILENCE_NS: Final = 60_000_000_000
"""A response that may have lost its end comes out after a minute without a frame: longer than proxies let an
idle answer be."""
NO_ERROR: Final = 0
ERRORS: Final = (
    *(
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
    ),
    *(
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
    ),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)
"""Error codes by number (RFC 9113 section 7)."""


class Stream:
    """One stream, from its first frame until its exchange is out."""

    __slots__ = (
        "answered",
        "exchange",
        "id",
        "open",
        "request_lost",
        "request_messages",
        "response_lost",
        "response_messages",
        "websocket",
    )

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.exchange = HttpExchange()
        self.exchange.stream_id = stream_id
        self.open = True
        """Whether the exchange is still here; what comes for it later belongs to nothing."""
        self.answered = False
        """Whether the final response has begun."""
        self.request_lost = False
        """Whether the end of the request may be lost."""
        self.response_lost = False
        self.request_messages: MessageCounter | None = None
        self.response_messages: MessageCounter | None = None
        self.websocket: WebSocket | None = None
        """Reads its data, where it was made a WebSocket (RFC 8441)."""


class StreamTable:
    """All streams of a connection. ``loss`` says, by direction, why parts of it may be missing."""

    def __init__(self, out: list[HttpExchange], *, joined: bool) -> None:
        self.out = out
        self.open: dict[int, Stream] = {}
        self.loss = [JOINED_MID_STREAM, JOINED_MID_STREAM] if joined else ["", ""]
        self.messages: list[WebSocketMessage] = []
        """Finished ones of streams that are WebSockets; the connection takes them."""
        self.room = Room()
        """Memory for those under way."""
        self.reaped = 0
        """Streams that came out for want of room."""
        self.resets = 0
        self.stray_frames = 0
        """Header blocks and DATA that belong to no stream: late behind a reset, or against the protocol."""
        self.stray_bytes = 0
        self._joined = joined
        self._ended: dict[int, None] = {}
        self._highest = 0
        """The latest stream that the client opened."""
        self._first = 0
        """The first one seen; earlier ones were opened before we joined."""
        self._requests_sure = not joined
        """Whether a response on a stream above ``_highest`` means that its request is still to come."""
        self._early: dict[int, Stream] = {}
        """Finished responses that wait for their requests."""
        self._unfinished: tuple[dict[int, Stream], dict[int, Stream]] = ({}, {})
        """By direction, streams whose message has begun and lost nothing yet: what a loss must mark."""
        self._silent: dict[int, Stream] = {}
        """Streams whose responses may have lost their ends."""
        self._goaways = 0

    # ---- ends ---------------------------------------------------------------------------------

    def end(self, stream: Stream, *, is_response: bool) -> None:
        """The direction's half of the stream ended."""
        exchange = stream.exchange
        message = exchange.response if is_response else exchange.request
        if message is not None:
            message.finished = True
            self._unfinished[is_response].pop(stream.id, None)
        self._settle(stream)

    def reset(self, stream_id: int, code: int, *, is_response: bool) -> None:
        """RST_STREAM from either side; NO_ERROR behind a whole response only stops the upload."""
        self.resets += 1
        stream = self.open.get(stream_id)
        if stream is None:
            return
        response = stream.exchange.response
        if response is None or not response.finished or code != NO_ERROR:
            stream.exchange.mark(ABORTED)
            stream.exchange.cause = _cause("RST_STREAM", code, is_response=is_response)
        self._emit(stream, early=True)

    def goaway(self, last_id: int, code: int) -> None:
        """The server answers no stream above ``last_id``."""
        self._goaways += 1
        if self._goaways > MAX_GOAWAYS:
            return
        refused = [
            s for s in self.open.values() if s.id > last_id and s.id & 1 and s.exchange.response is None
        ]
        for stream in refused:
            stream.exchange.mark(ABORTED)
            stream.exchange.cause = _cause("GOAWAY", code, is_response=True)
            self._emit(stream, early=True)

    # ---- losses and the end -------------------------------------------------------------------

    def lose(self, offset: int, size: int, *, is_response: bool) -> None:
        """Frames of a direction are lost: ``size`` bytes at ``offset``, or 0 for garbage in their place."""
        self.loss[is_response] = GAP if size else self.loss[is_response] or TRUNCATED
        unfinished = self._unfinished[is_response]
        touched = list(self.open.values()) if size else list(unfinished.values())
        unfinished.clear()
        if not is_response:
            self._requests_sure = False
            self._release_early(1 << 31)
        for stream in touched:
            exchange = stream.exchange
            message = exchange.response if is_response else exchange.request
            if message is None or message.finished:
                continue
            if size:
                exchange.mark_gap(offset, size)
            else:
                exchange.mark(TRUNCATED)
            counter = stream.response_messages if is_response else stream.request_messages
            if counter is not None:
                counter.lose()
            if stream.websocket is not None:
                self.messages += stream.websocket.lose(is_response, 0)
            if is_response:
                stream.response_lost = True
                self._silent[stream.id] = stream
            else:
                stream.request_lost = True
                self._settle(stream)

    def end_requests(self) -> None:
        """No request will come any more."""
        self._requests_sure = False
        self._release_early(1 << 31)
        for stream in [s for s in self.open.values() if s.exchange.request is not None]:
            request = stream.exchange.request
            if request is not None and not request.finished:
                stream.exchange.mark(ABORTED)
                stream.request_lost = True
                self._settle(stream)

    def end_responses(self) -> None:
        """No response will come any more: everything comes out."""
        for stream in list(self.open.values()):
            exchange = stream.exchange
            response, request = exchange.response, exchange.request
            if response is None:
                exchange.mark_missing(RESPONSE_MISSING)
            elif not response.finished or (request is not None and not request.finished):
                exchange.mark(ABORTED)
            self._emit(stream)

    # ---- inside -------------------------------------------------------------------------------

    def begin(self) -> None:
        """We did not join in the middle after all: the client's preface was seen."""
        self._joined = False
        self._requests_sure = True
        self.loss[0] = ""

    def credible(self, stream_id: int, *, is_response: bool) -> bool:
        """Whether a frame found by search can be of that stream: it is open, or could have been opened."""
        if stream_id in self.open:
            return True
        if not stream_id & 1:
            return is_response and self._joined and stream_id <= MAX_UNSEEN
        if is_response and not self.loss[0]:
            return stream_id <= self._highest + 2 * MAX_STREAMS
        return stream_id <= self._highest + MAX_UNSEEN or (self._joined and not self._highest)

    def _stray(self, size: int) -> None:
        self.stray_frames += 1
        self.stray_bytes += size

    def _open(self, stream_id: int) -> Stream:
        stream = self.open[stream_id] = Stream(stream_id)
        if len(self.open) > MAX_STREAMS:
            self._reap()
        return stream

    def _advance(self, stream_id: int) -> None:
        self._requests_sure = True
        self._first = self._first or stream_id
        if stream_id > self._highest:
            self._highest = stream_id
            if self._early:
                self._release_early(stream_id)

    def _settle(self, stream: Stream) -> None:
        """Lets the exchange out when both halves are over."""
        exchange = stream.exchange
        response, request = exchange.response, exchange.request
        if response is None:
            if request is None or not (request.finished and stream.answered):
                return
        elif not response.finished:
            return
        elif request is None:
            if self._requests_sure and stream.id > self._highest and stream.id & 1:
                self._early[stream.id] = stream
                return
        elif not request.finished and not stream.request_lost:
            return
        self._emit(stream, early=request is None or not request.finished)

    def _emit(self, stream: Stream, *, early: bool = False) -> None:
        """The exchange is out; ``early``: frames for it may still be on their way."""
        exchange = stream.exchange
        stream_id = stream.id
        stream.open = False
        del self.open[stream_id]
        if early:
            if len(self._ended) >= MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self._ended[stream_id] = None
        request, response = exchange.request, exchange.response
        if request is None:
            unseen = self._joined and (not self._first or stream_id < self._first)
            exchange.mark_missing(JOINED_MID_STREAM if unseen else REQUEST_MISSING)
        elif not request.finished:
            request.finished = True
            self._unfinished[0].pop(stream_id, None)
        if response is not None and not response.finished:
            response.finished = True
            self._unfinished[1].pop(stream_id, None)
        if self._early:
            self._early.pop(stream_id, None)
        if self._silent:
            self._silent.pop(stream_id, None)
        if exchange.grpc is not None:
            _count_messages(stream)
        if stream.websocket is not None:
            self.messages += stream.websocket.close(0)
        self.out.append(exchange)

    def _release_early(self, below: int) -> None:
        for stream in [s for s in self._early.values() if s.id < below]:
            self._emit(stream, early=True)

    def _release_silent(self, now: int) -> None:
        """Looks at the first one: out, or to the end of the queue. Each new request comes by here."""
        stream_id, stream = next(iter(self._silent.items()))
        response = stream.exchange.response
        if response is not None and now - response.end_ns > SILENCE_NS:
            self._emit(stream, early=True)
        else:
            del self._silent[stream_id]
            self._silent[stream_id] = stream

    def _reap(self) -> None:
        self.reaped += 1
        oldest = [stream for stream, _ in zip(self.open.values(), range(REAP_AMONG), strict=False)]
        stream = min(oldest, key=_last_ns)
        if stream.exchange.response is None:
            stream.exchange.mark_missing(RESPONSE_MISSING)
        else:
            stream.exchange.mark(TRUNCATED)
        self._emit(stream, early=True)


def _cause(frame: str, code: int, *, is_response: bool) -> str:
    """Who ended a stream, and why; -1 is a code that is lost."""
    name = (
        ERRORS[code]
        if 0 <= code < len(ERRORS)
        else f"error 0x{code:x}"
        if code > 0
        else "of a code that is lost"
    )
    return f"{frame} {name} by the {'server' if is_response else 'client'}"


def _last_ns(stream: Stream) -> int:
    request, response = stream.exchange.request, stream.exchange.response
    return max(request.end_ns if request is not None else 0, response.end_ns if response is not None else 0)


def _count_messages(stream: Stream) -> None:
    facts = stream.exchange.grpc
    assert facts is not None
    sent, received = stream.request_messages, stream.response_messages
    if sent is not None:
        facts.request_messages = sent.count
        facts.request_message_bytes = sent.size
        facts.compressed_messages = sent.compressed
    if received is not None:
        facts.response_messages = received.count
        facts.response_message_bytes = received.size
        facts.compressed_messages += received.compressed
