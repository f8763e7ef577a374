"""Fuzzes the HTTP/2 parser and its HPACK decoder: any bytes, gaps and ends in any order.

The input is a script: the first byte says how the connection begins ("j": joined in the middle, "b": with the
preface and both SETTINGS behind it), then each operation is one byte (low bit: direction, the next two: what)
and one byte of length, then that many bytes. One that ends nothing tells by six bytes of its own what the
kernel left out there; what the parser does not believe is a gap, as it is for the engine. Checked on the way:
no exception, bounded memory, no exchange twice, everything out after close, every exchange readable, and the
same exchanges when each feed comes byte by byte. What the hpack library decodes, so must the decoder.

Run: .venv/bin/python fuzz/fuzz_http2.py -max_total_time=60 fuzz/corpus/http2
"""

from __future__ import annotations

import sys

import atheris
import hpack

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd.protocols"]):
    from spliffd.protocols import http2_frames, http2_search, http2_table
    from spliffd.protocols.hpack import MAX_TABLE, Decoder
    from spliffd.protocols.http2 import REQUEST, RESPONSE, Http2
    from spliffd.protocols.http2_unwanted import Part, Skipped
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
GRPC_FACTS = (
    *("service", "method", "status", "message", "encoding", "compressed_messages"),
    *("request_messages", "response_messages", "request_message_bytes", "response_message_bytes"),
)
SETTINGS = bytes.fromhex("000000040000000000")
MOST_HELD = 2 * (3 * http2_frames.MAX_BLOCK + 2 * http2_search.SEARCH_KEEP)


SKIP_BYTES = 6


def skipped(data: bytes) -> Skipped:
    """Some frames of one stream or two, of the size that they make, or up to 15 bytes more or less."""
    stream, begun, payload, left, second, other = data[:SKIP_BYTES]
    parts = [Part(stream & 15, begun & 7, payload << (begun >> 4))]
    if second & 1:
        parts.append(Part(second >> 4, second >> 1 & 3, payload))
    size = sum(part.payload + http2_frames.HEADER_SIZE * part.frames for part in parts)
    size += (0, other >> 4, -(other >> 4), 0)[other & 3]
    return Skipped(max(0, size), tuple(parts), left << (other >> 2 & 3), parts[-1].stream_id)


def play(script: bytes, step: int) -> list[tuple]:
    """Plays a script, feeds cut into pieces of ``step`` bytes; returns what came out, times aside."""
    out: list[HttpExchange] = []
    bodies = [0, 0]

    def on_body(_exchange: HttpExchange, response: bool, data: bytes) -> None:
        assert data
        bodies[response] += len(data)

    parser = Http2(on_body, joined=script[:1] == b"j")
    fed = [0, 0]
    if script[:1] == b"b":
        parser.feed(REQUEST, http2_frames.PREFACE + SETTINGS, 0)
        parser.feed(RESPONSE, SETTINGS, 0)
    pos = 1
    now = 0
    while pos + 2 <= len(script):
        kind, size = script[pos] >> 1 & 3, script[pos + 1]
        direction = script[pos] & 1
        data = script[pos + 2 : pos + 2 + size]
        pos += 2 + size
        now += 1
        if kind <= 1:
            fed[direction] += len(data)
            for at in range(0, len(data), step):
                out += parser.feed(direction, data[at : at + step], now)
        elif kind == 2:
            pos -= size
            out += parser.gap(direction, size, now)
        elif size % 16 == 0:
            pos -= size
            out += parser.eof(direction, now)
        elif len(data) >= SKIP_BYTES:
            pos += SKIP_BYTES - size
            what = skipped(data)
            if not parser.skip(direction, what, now):
                out += parser.gap(direction, what.size, now)
        assert parser.held() <= min(MOST_HELD, sum(fed))
        assert len(parser.streams.open) <= http2_table.MAX_STREAMS
    out += parser.close(now)
    assert not parser.close(now)
    assert not parser.streams.open
    assert bodies[0] <= fed[0]
    assert bodies[1] <= fed[1]
    assert len({id(exchange) for exchange in out}) == len(out)
    counters = (parser.garbage_bytes, parser.resyncs, parser.broken_blocks, parser.unknown_fields)
    return [facts(exchange) for exchange in out] + [counters]


def facts(exchange: HttpExchange) -> tuple:
    request, response = exchange.request, exchange.response
    assert request is not None or response is not None
    assert exchange.state in STATES
    assert exchange.state != "complete" or (request is not None and response is not None)
    halves = []
    for half in (request, response):
        if half is not None:
            assert half.end_ns >= half.start_ns
            assert half.finished or exchange.state != "complete"
            halves += [half.headers, half.trailer_start, half.body_size, half.overhead_size, half.version]
    if request is not None:
        halves += [request.method, request.path, request.authority, request.scheme]
    if response is not None:
        halves += [response.status, response.interim]
    if exchange.grpc is not None:
        halves += [getattr(exchange.grpc, name) for name in GRPC_FACTS]
    return (exchange.stream_id, exchange.state, exchange.missing_bytes, exchange.gap_offset, *halves)


def decode(script: bytes) -> None:
    """Blocks of up to 255 bytes, to both decoders until the library gives up."""
    decoder = Decoder()
    decoder.limit = MAX_TABLE
    oracle = hpack.Decoder()
    oracle.max_allowed_table_size = MAX_TABLE
    pos = 0
    while pos < len(script):
        size = script[pos]
        block = script[pos + 1 : pos + 1 + size]
        pos += 1 + size
        found = decoder.decode(block)
        assert decoder.size == sum(len(name) + len(value) + 32 for name, value in decoder.entries)
        try:
            fields = [(bytes(name), bytes(value)) for name, value in oracle.decode(block, raw=True)]
        except hpack.HPACKError:
            return
        assert found == fields
        assert not decoder.broken


def test_one_input(script: bytes) -> None:
    decode(script)
    assert play(script, 1) == play(script, 1 << 20), "pieces make a difference"


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
