"""Builders and players shared by the HTTP/1 tests: a conversation in, comparable exchanges out."""

from __future__ import annotations

from collections.abc import Iterable

from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.messages import HttpExchange, HttpMessage

Op = tuple[int, bytes]


def message_facts(message: HttpMessage | None) -> dict | None:
    if message is None:
        return None
    names = [
        "version",
        "headers",
        "trailer_start",
        "body_size",
        "overhead_size",
        "content_type",
        "content_encoding",
        "finished",
    ]
    names += [
        n
        for n in ("method", "scheme", "authority", "path", "status", "reason", "interim")
        if hasattr(message, n)
    ]
    return {name: getattr(message, name) for name in names}


def facts(exchange: HttpExchange) -> dict:
    """All fields but times."""
    return {
        "state": exchange.state,
        "missing_bytes": exchange.missing_bytes,
        "gap_offset": exchange.gap_offset,
        "request": message_facts(exchange.request),
        "response": message_facts(exchange.response),
        "bodies": exchange.user or (b"", b""),
    }


class Player:
    """Plays a conversation through a parser and keeps what comes out; collects bodies in ``user``."""

    def __init__(self, joined: bool = False) -> None:
        self.parser = Http1(self._body, joined)
        self.out: list[HttpExchange] = []
        self.now = 0

    def _body(self, exchange: HttpExchange, response: bool, data: bytes) -> None:
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

    def spare(self, direction: int) -> Player:
        self.now += 1
        self.out += self.parser.spare(direction, self.now)
        return self

    def eof(self, direction: int) -> Player:
        self.out += self.parser.eof(direction, self.now)
        return self

    def close(self) -> list[HttpExchange]:
        self.out += self.parser.close(self.now)
        return self.out

    def lines(self) -> list[str]:
        """What came out, a line each: "POST /a 200 complete"."""
        return [line(exchange) for exchange in self.out]


def line(exchange: HttpExchange) -> str:
    request, response = exchange.request, exchange.response
    asked = f"{request.method} {request.path or request.authority}" if request else "-"
    return f"{asked} {response.status if response else '-'} {exchange.state}"


def play(ops: Iterable[Op], joined: bool = False, step: int = 0) -> list[dict]:
    """Feeds all of ``ops``, each in pieces of ``step`` bytes (0: whole), closes, returns the facts."""
    player = Player(joined)
    for direction, data in ops:
        for at in range(0, len(data), step or len(data) or 1):
            player.feed(direction, data[at : at + (step or len(data))])
    return [facts(exchange) for exchange in player.close()]
