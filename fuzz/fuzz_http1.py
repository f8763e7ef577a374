"""Fuzzes the HTTP/1.1 parser: any bytes, gaps and ends in any order.

The input is a script: each operation is one byte (low bit: direction, the next two: what) and one byte of
length, then that many bytes. Checked on the way: no exception, bounded memory, no exchange twice, everything
out after close, every exchange readable, and the same exchanges when each feed comes byte by byte.

Run: .venv/bin/python fuzz/fuzz_http1.py -max_total_time=60 fuzz/corpus/http1
"""

from __future__ import annotations

import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd.protocols"]):
    from spliffd.protocols import http1_stream
    from spliffd.protocols.detect import detect
    from spliffd.protocols.http1 import Http1
    from spliffd.protocols.messages import HttpExchange

STATES = {
    "complete",
    "truncated",
    "gap",
    "joined_mid_stream",
    "request_missing",
    "response_missing",
    "aborted",
}


def play(script: bytes, step: int) -> list[tuple]:
    """Plays a script, feeds cut into pieces of ``step`` bytes; returns what came out, times aside."""
    out: list[HttpExchange] = []
    bodies = [0, 0]

    def on_body(_exchange: HttpExchange, response: bool, data: bytes) -> None:
        assert data
        bodies[response] += len(data)

    parser = Http1(on_body, joined=script[:1] == b"j")
    fed = [0, 0]
    pos = 0
    now = 0
    while pos + 2 <= len(script):
        kind, size = script[pos] >> 1 & 3, script[pos + 1]
        direction = script[pos] & 1
        data = script[pos + 2 : pos + 2 + size]
        pos += 2 + size
        now += 1
        if kind <= 1:
            detect(data)
            fed[direction] += len(data)
            for at in range(0, len(data), step):
                out += parser.feed(direction, data[at : at + step], now)
        elif kind == 2:
            pos -= size
            out += parser.gap(direction, size, now)
        elif size % 16 == 0:
            pos -= size
            out += parser.eof(direction, now)
        assert parser.held() <= 2 * (http1_stream.MAX_HEAD + 3)
        assert parser.held() <= sum(fed)
    out += parser.close(now)
    assert not parser.close(now)
    assert bodies[0] <= fed[0]
    assert bodies[1] <= fed[1]
    assert len({id(exchange) for exchange in out}) == len(out)
    return [facts(exchange) for exchange in out] + [(parser.upgraded, parser.garbage_bytes, parser.resyncs)]


def facts(exchange: HttpExchange) -> tuple:
    request, response = exchange.request, exchange.response
    assert request is not None or response is not None
    assert exchange.state in STATES
    halves = []
    for half in (request, response):
        if half is not None:
            assert half.end_ns >= half.start_ns
            halves += [half.headers, half.trailer_start, half.body_size, half.overhead_size, half.version]
    if request is not None:
        halves += [request.method, request.path, request.authority, request.scheme]
    if response is not None:
        halves += [response.status, response.reason, response.interim]
    return (exchange.state, exchange.missing_bytes, exchange.gap_offset, *halves)


def test_one_input(script: bytes) -> None:
    assert play(script, 1) == play(script, 1 << 20), "pieces make a difference"


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
