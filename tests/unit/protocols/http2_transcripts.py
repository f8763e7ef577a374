"""Builders and players shared by the HTTP/2 tests: frames and conversations in, comparable exchanges out."""

from __future__ import annotations

from collections.abc import Iterable

import hpack

from spliffd.protocols.http2 import REQUEST, RESPONSE, Http2
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.messages import HttpExchange
from tests.unit.protocols.http1_transcripts import facts as common_facts

Op = tuple[int, bytes]

GRPC_FACTS = (
    *("service", "method", "status", "message", "encoding", "compressed_messages"),
    *("request_messages", "response_messages", "request_message_bytes", "response_message_bytes"),
)

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 0x20

CLIENT = "client"
GET = [(":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/a")]
POST = [(":method", "POST"), (":scheme", "https"), (":authority", "h"), (":path", "/p")]
OK = [(":status", "200"), ("server", "s"), ("content-type", "text/plain")]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4) + payload


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2) + value.to_bytes(4)


class Peer:
    """One end that writes frames, with an encoder of its own (the hpack library)."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def block(self, fields, *, huffman: bool = True) -> bytes:
        return self.encoder.encode(fields, huffman=huffman)

    def headers(self, stream_id: int, fields, *, end: bool = False, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags | end, stream_id, self.block(fields))

    @staticmethod
    def data(stream_id: int, data: bytes, *, end: bool = False) -> bytes:
        return frame(DATA, END_STREAM if end else 0, stream_id, data)


def facts(exchange: HttpExchange) -> dict:
    """All fields but times."""
    call = exchange.grpc
    return common_facts(exchange) | {
        "stream_id": exchange.stream_id,
        "grpc": call and {name: getattr(call, name) for name in GRPC_FACTS},
    }


class Player:
    """Plays a conversation through a parser and keeps what comes out; collects bodies in ``user``."""

    def __init__(self, joined: bool = False, *, begun: bool = False) -> None:
        self.parser = Http2(self._body, joined=joined)
        self.out: list[HttpExchange] = []
        self.now = 0
        self.client = Peer()
        self.server = Peer()
        if begun:
            self.up(PREFACE + frame(SETTINGS, 0, 0)).down(frame(SETTINGS, 0, 0))

    def _body(self, exchange: HttpExchange, response: bool, data: bytes) -> None:
        assert data
        bodies = exchange.user or (b"", b"")
        half = exchange.response if response else exchange.request
        assert half is not None
        # body_size is the offset of data; what is missing before it shows as dots.
        filled = bodies[response] + b"." * (half.body_size - len(bodies[response])) + data
        exchange.user = (bodies[0], filled) if response else (filled, bodies[1])

    def feed(self, direction: int, data: bytes) -> Player:
        self.now += 1
        self.out += self.parser.feed(direction, data, self.now)
        return self

    def up(self, data: bytes) -> Player:
        return self.feed(REQUEST, data)

    def down(self, data: bytes) -> Player:
        return self.feed(RESPONSE, data)

    def gap(self, direction: int, size: int) -> Player:
        self.now += 1
        self.out += self.parser.gap(direction, size, self.now)
        return self

    def eof(self, direction: int) -> Player:
        self.out += self.parser.eof(direction, self.now)
        return self

    def close(self) -> list[HttpExchange]:
        self.out += self.parser.close(self.now)
        return self.out

    def lines(self) -> list[str]:
        """What came out, a line each: "1 GET /a 200 complete"."""
        return [line(exchange) for exchange in self.out]


def line(exchange: HttpExchange) -> str:
    request, response = exchange.request, exchange.response
    asked = f"{request.method or '?'} {request.path or request.authority or '?'}" if request else "-"
    answered = (response.status or "?") if response else "-"
    return f"{exchange.stream_id} {asked} {answered} {exchange.state}"


def play(ops: Iterable[Op], joined: bool = False, step: int = 0) -> list[dict]:
    """Feeds all of ``ops``, each in pieces of ``step`` bytes (0: whole), closes, returns the facts."""
    player = Player(joined)
    for direction, data in ops:
        for at in range(0, len(data), step or len(data) or 1):
            player.feed(direction, data[at : at + (step or len(data))])
    return [facts(exchange) for exchange in player.close()]
