"""One TLS connection: two byte streams, what protocol they speak, and who is on both ends.

Takes pieces of plaintext with their stream offsets, in the order the kernel wrote them; returns finished
exchanges. A piece that does not start where the last one ended means that bytes were lost: the parser
is told how many. The protocol is decided by the first bytes of whichever direction speaks first; while
that is open, at most ``UNDECIDED_BYTES`` are kept.

Does no I/O, reads no clock, never raises on any bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols import detect, http2_detect
from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.http2 import Http2
from spliffd.protocols.http2_frames import SETTINGS
from spliffd.protocols.messages import HttpExchange
from spliffd.protocols.recognise import Recogniser
from spliffd.protocols.websocket import WebSocket
from spliffd.protocols.websocket_deflate import EXTENSIONS, negotiated
from spliffd.protocols.websocket_message import Room, WebSocketMessage

UNDECIDED: Final = 0
HTTP1: Final = 1
RAW: Final = 2
HTTP2: Final = 3
WEBSOCKET: Final = 4
SENT: Final = 0
RECEIVED: Final = 1

UNDECIDED_BYTES: Final = 256
"""The longest method and enough of a target to tell HTTP from others; detection decides far earlier."""

NOTHING: Final[Sequence[HttpExchange]] = ()
NO_BYTES: Final[Sequence[tuple[int, int, bytes]]] = ()

OnBody = Callable[[HttpExchange, bool, bytes], None]


class Connection:
    """State of one connection; ``expect`` is the next stream offset of each direction."""

    __slots__ = (
        "calls",
        "expect",
        "facts",
        "first_ns",
        "fresh_until_ns",
        "from_start",
        "gap_bytes",
        "gaps",
        "given_up",
        "http1",
        "http2",
        "joined",
        "key",
        "last_ns",
        "messages",
        "method",
        "object_key",
        "on_body",
        "pending",
        "process",
        "protocol",
        "proved_at",
        "raw_kept",
        "recogniser",
        "request_direction",
        "room",
        "slots",
        "state",
        "uncounted",
        "unwanted",
        "unwanted_streams",
        "waiting",
        "websocket",
    )

    def __init__(self, key: bytes, process: tuple[int, int], facts: ConnectionFacts, *, joined: bool) -> None:
        self.key = key
        self.object_key = key[:24]
        self.process = process
        self.facts = facts
        self.expect: list[int] = [-1, -1] if joined else [0, 0]
        self.joined = joined
        self.from_start = True
        """False where no handshake was seen: it may be older than the probes, or it is hidden."""
        self.state = UNDECIDED
        self.http1: Http1 | None = None
        self.http2: Http2 | None = None
        self.request_direction = 0
        self.pending: list[bytes] = [b"", b""]
        self.unwanted: list[int] = [0, 0]
        """By direction, up to which offset the kernel was told that nobody wants what comes."""
        self.unwanted_streams: tuple[list[int], list[int]] | None = None
        """The same of HTTP/2: of which streams nobody wants the bodies."""
        self.raw_kept: Sequence[tuple[int, int, bytes]] = NO_BYTES
        """What turned out to be raw in the piece that decided so, and was kept before it: direction, offset,
        bytes. The engine takes it; later pieces go out at once, even while they are looked at."""
        self.recogniser: Recogniser | None = None
        """Says what a raw connection speaks."""
        self.websocket: WebSocket | None = None
        self.messages: list[WebSocketMessage] = []
        """Finished ones; the engine takes them."""
        self.room = Room()
        """Memory for messages under way; the engine gives all its connections the same."""
        self.on_body: OnBody | None = None
        self.method = 0
        self.protocol = ""
        self.gaps = 0
        self.gap_bytes = 0
        self.slots: dict[str, int] = {}
        """Counter slot by packet hook, looked up once; emptied when the correlation method changes."""
        self.fresh_until_ns = 0
        """Until then (ktime) its exchanges need no look at its flow, and none of them waits for one."""
        self.first_ns = self.last_ns = 0
        """When its plaintext moved (ktime), kept while no socket is named; 0 before the first."""
        self.calls: list[int] = [0, 0]
        """TLS calls by direction that moved it, as long as that."""
        self.waiting = 0
        """Its exchanges in the retry queue."""
        self.proved_at: list[int] = []
        """``expect`` when the records on the wire agreed with it (``facts.proved``)."""
        self.uncounted = False
        """Some of what nobody wanted is in no offset: they say nothing of how much there was."""
        self.given_up = False
        """Whether one of its exchanges waited for its flow in vain: the next ones do not wait."""

    def data(
        self, direction: int, offset: int, payload: bytes, size: int, now: int
    ) -> Sequence[HttpExchange]:
        """``payload`` stands at ``offset``; what ``size`` is longer than it is lost.

        ``now`` is when the bytes were there: for sent ones when the call began, because the answer may
        be on its way before the call returns.
        """
        expected = self.expect[direction]
        self.expect[direction] = offset + size
        finished: Sequence[HttpExchange] = NOTHING
        if offset != expected and expected >= 0 and offset > expected:
            finished = self.missing(direction, expected, offset, now)
        http1 = self.http1
        if http1 is not None and self.state == HTTP1:
            side = REQUEST if direction == self.request_direction else RESPONSE
            more = http1.feed(side, payload, now) if payload else NOTHING
            if http1.upgraded:
                self._upgraded(http1, more, now)
        elif self.http2 is not None:
            side = REQUEST if direction == self.request_direction else RESPONSE
            more = self.http2.feed(side, payload, now) if payload else NOTHING
        elif self.websocket is not None:
            more = NOTHING
            side = REQUEST if direction == self.request_direction else RESPONSE
            self.messages += self.websocket.feed(side, payload, now)
        elif self.state == RAW and http1 is not None:
            more = NOTHING  # a tunnel: what is in it is not looked for
            self._listen(direction, payload)
        else:
            more = self._decide(direction, offset, payload, now) if payload else NOTHING
        if more:
            finished = [*finished, *more] if finished else more
        if len(payload) < size:
            lost = self.gap(direction, size - len(payload), now)
            if lost:
                finished = [*finished, *lost]
        return finished

    def note(self, direction: int, start: int, end: int) -> None:
        """Plaintext moved while no socket is named: when, and how often, is all there is to find one by."""
        self.first_ns = self.first_ns or start
        self.last_ns = end
        self.calls[direction] += 1

    def missing(self, direction: int, start: int, end: int, now: int) -> Sequence[HttpExchange]:
        """What stands from ``start`` to ``end`` did not come: nobody wanted it, or it is lost."""
        spared = min(self.unwanted[direction], end) - start
        if spared > 0 and self.http1 is not None and self.state == HTTP1:
            side = REQUEST if direction == self.request_direction else RESPONSE
            if self.http1.skip_body(side, spared, now):
                start += spared
        return self.gap(direction, end - start, now) if start < end else NOTHING

    def spare(self, direction: int, offset: int, now: int) -> Sequence[HttpExchange]:
        """Messages that nobody wanted were left out before ``offset``: missing, but not lost.

        Offsets count only some of it. Only HTTP/1 is ever left out, so a connection that is undecided turns
        out to be that.
        """
        self.expect[direction] = offset
        self.uncounted = True
        if self.http1 is not None and self.state == HTTP1:
            return self.http1.spare(REQUEST if direction == self.request_direction else RESPONSE, now)
        self.pending[direction] = b""
        self.joined = True
        return NOTHING

    def gap(self, direction: int, size: int, now: int) -> Sequence[HttpExchange]:
        """``size`` bytes of ``direction`` are lost here."""
        self.gaps += 1
        self.gap_bytes += size
        if self.http1 is not None and self.state == HTTP1:
            side = REQUEST if direction == self.request_direction else RESPONSE
            return self.http1.gap(side, size, now)
        if self.http2 is not None:
            return self.http2.gap(REQUEST if direction == self.request_direction else RESPONSE, size, now)
        if self.websocket is not None:
            side = REQUEST if direction == self.request_direction else RESPONSE
            self.messages += self.websocket.gap(side, size, now)
            return NOTHING
        # Undecided: what is kept no longer joins what comes.
        self.pending[direction] = b""
        self.joined = True
        return NOTHING

    def eof(self, direction: int, now: int) -> Sequence[HttpExchange]:
        """``direction`` has ended properly."""
        side = REQUEST if direction == self.request_direction else RESPONSE
        if self.http2 is not None:
            return self.http2.eof(side, now)
        if self.websocket is not None:
            self.messages += self.websocket.eof(side, now)
        if self.http1 is None or self.state != HTTP1:
            return NOTHING
        return self.http1.eof(side, now)

    def close(self, now: int) -> Sequence[HttpExchange]:
        """The connection is over: what is unfinished comes out, marked."""
        http1, http2 = self.http1, self.http2
        self.http1 = self.http2 = None
        if self.websocket is not None:
            self.messages += self.websocket.close(now)
            self.websocket = None
        if http1 is not None:
            http1.on_body = None
            return http1.close(now)
        if http2 is not None:
            http2.on_body = None
            return http2.close(now)
        return NOTHING

    def under_way(self) -> Sequence[HttpExchange]:
        """Exchanges that are not finished."""
        if self.http1 is not None:
            return self.http1.under_way() if self.state == HTTP1 else NOTHING
        return self.http2.under_way() if self.http2 is not None else NOTHING

    def watch_bodies(self, on_body: OnBody | None) -> None:
        """Starts or stops handing out bodies."""
        self.on_body = on_body
        if self.http1 is not None:
            self.http1.on_body = on_body
        if self.http2 is not None:
            self.http2.on_body = on_body

    def _decide(self, direction: int, offset: int, payload: bytes, now: int) -> Sequence[HttpExchange]:
        kept = self.pending[direction]
        first = kept + payload if kept else payload
        verdict = detect.detect(first)
        if verdict == detect.UNDECIDED and len(first) < UNDECIDED_BYTES:
            self.pending[direction] = first
            return NOTHING
        self.pending[direction] = b""
        if verdict in (detect.HTTP2_PREFACE, detect.OTHER):
            client = self._http2_client(verdict, direction, offset - len(kept), first)
            if client >= 0:
                return self._begin_http2(client, direction, first, now)
        if verdict == detect.HTTP1_REQUEST:
            request_direction = direction
        elif verdict == detect.HTTP1_RESPONSE:
            # Only where the start was missed does a response come first.
            request_direction = 1 - direction
            self.joined = True
        else:
            # Not HTTP/1, or the middle of a message: each further piece is looked at again, because a
            # connection that was joined in the middle becomes readable at its next message.
            if self.state == UNDECIDED:
                opposite = 1 - direction
                waiting = self.pending[opposite]
                found = (
                    (opposite, self.expect[opposite] - len(waiting), waiting),
                    (direction, offset - len(kept), kept),
                    (direction, offset, payload),
                )
                self.raw_kept = [entry for entry in found if entry[2]]
                for way, _, data in self.raw_kept:
                    self._listen(way, data)
            else:
                self._listen(direction, payload)
            self.state = RAW
            self.protocol = self.protocol or "raw"
            return NOTHING
        if self.http1 is not None:
            return NOTHING  # upgraded: these bytes belong to the protocol it was upgraded to
        self.state = HTTP1
        self.protocol = "http1"
        self._requests_go(request_direction)
        self.http1 = Http1(self.on_body, joined=self.joined)
        other = self.pending[1 - direction]
        self.pending[1 - direction] = b""
        early: Sequence[HttpExchange] = NOTHING
        if other:
            early = self.http1.feed(RESPONSE if direction == request_direction else REQUEST, other, now)
        side = REQUEST if direction == request_direction else RESPONSE
        return [*early, *self.http1.feed(side, first, now)]

    def _http2_client(self, verdict: int, direction: int, offset: int, first: bytes) -> int:
        """In which direction HTTP/2 requests go, when ``first`` begins HTTP/2; -1 when it does not."""
        if self.http1 is not None:
            return -1  # upgraded from HTTP/1
        if verdict == detect.HTTP2_PREFACE:
            return direction
        if offset and self.from_start and not self.joined:
            return -1
        found = http2_detect.detect_frames(first)
        if found != http2_detect.OTHER and (found == http2_detect.FROM_CLIENT or first[3] != SETTINGS):
            # A client begins with the preface, a server with SETTINGS (RFC 9113 section 3.4): the TLS object
            # was there before our probes.
            self.joined = True
        if found == http2_detect.FROM_CLIENT and self.joined:
            return direction
        if found == http2_detect.FROM_SERVER:
            return 1 - direction
        if found != http2_detect.EITHER:
            return -1
        if not self.joined:
            return 1 - direction  # a client begins with the preface: this is the server's SETTINGS
        if self.facts.role:
            return SENT if self.facts.role == "client" else RECEIVED
        return -1  # a later record may tell

    def _begin_http2(self, client: int, direction: int, first: bytes, now: int) -> Sequence[HttpExchange]:
        self.state = HTTP2
        self.protocol = "http2"
        self._requests_go(client)
        self.http2 = http2 = Http2(self.on_body, joined=self.joined)
        http2.streams.messages, http2.streams.room = self.messages, self.room
        other = self.pending[1 - direction]
        self.pending[1 - direction] = b""
        side = REQUEST if direction == client else RESPONSE
        early = http2.feed(RESPONSE if side == REQUEST else REQUEST, other, now) if other else NOTHING
        return [*early, *http2.feed(side, first, now)]

    def _upgraded(self, http1: Http1, finished: Sequence[HttpExchange], now: int) -> None:
        """What follows is another protocol's: WebSocket, or one that is not taken apart."""
        self.state = RAW
        up, down = self.request_direction, 1 - self.request_direction
        rests = [(up, http1.take_rest(REQUEST)), (down, http1.take_rest(RESPONSE))]
        for exchange in finished:
            response = exchange.response
            if http1.upgraded == "websocket" and response is not None and response.status == 101:
                names = [value for name, value in response.headers if name.lower() == EXTENSIONS]
                self.websocket = WebSocket(negotiated(b",".join(names)), self.room, exchange)
                self.state = WEBSOCKET
                exchange.websocket = True
        if self.websocket is None:
            self.raw_kept = [(way, self.expect[way] - len(rest), rest) for way, rest in rests if rest]
            for way, rest in rests:
                self._listen(way, rest)
            return
        for side, (_, rest) in enumerate(rests):
            self.messages += self.websocket.feed(side, rest, now)

    def _listen(self, direction: int, data: bytes) -> None:
        if self.recogniser is None:
            self.recogniser = Recogniser()
        self.recogniser.listen(direction, data, self.facts.role, self.facts.alpn)

    def _requests_go(self, direction: int) -> None:
        self.request_direction = direction
        if not self.facts.role:
            self.facts.role = "client" if direction == SENT else "server"
            self.facts.prefix = None


def protocol_of(connection: Connection, exchange: HttpExchange) -> str:
    """What an exchange speaks: its connection's protocol, or what it is on top of that."""
    if exchange.grpc is not None:
        return "grpc"
    return "websocket" if exchange.websocket else connection.protocol
