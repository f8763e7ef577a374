"""HTTP/2 conversations whole and clean; a line an exchange."""

from __future__ import annotations

import pytest

from spliffd.protocols import http2_table
from spliffd.protocols.http2 import REQUEST, RESPONSE
from tests.unit.protocols.http2_transcripts import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    WITH_PRIORITY,
    Player,
    frame,
    setting,
)


def begun() -> Player:
    return Player(begun=True)


def test_a_get_and_its_answer():
    p = begun()
    p.up(p.client.headers(1, [*GET, ("accept", "*/*")], end=True))
    answer = p.server.headers(1, OK) + p.server.data(1, b"hel") + p.server.data(1, b"lo", end=True)
    p.down(answer)

    assert p.lines() == ["1 GET /a 200 complete"]
    exchange = p.out[0]
    assert exchange.user == (b"", b"hello")
    assert exchange.request.headers == [(b"accept", b"*/*")]
    assert (exchange.request.authority, exchange.request.scheme, exchange.request.version) == (
        "h",
        "https",
        "2",
    )
    assert exchange.response.headers == [(b"server", b"s"), (b"content-type", b"text/plain")]
    assert exchange.response.content_type == "text/plain"
    assert exchange.response.overhead_size == len(answer) - 5
    assert exchange.first_byte_ns == exchange.response.start_ns == 4
    assert not p.close()[1:]


def test_streams_interleave_and_pair_by_id():
    p = begun()
    p.up(p.client.headers(1, POST) + p.client.headers(3, GET, end=True) + p.client.data(1, b"up", end=True))
    p.down(p.server.headers(3, OK) + p.server.headers(1, OK))
    p.down(p.server.data(1, b"one") + p.server.data(3, b"three", end=True) + p.server.data(1, b"", end=True))

    assert p.lines() == ["3 GET /a 200 complete", "1 POST /p 200 complete"]
    assert [x.user for x in p.out] == [(b"", b"three"), (b"up", b"one")]


def test_1009_streams_at_once():
    p = begun()
    for n in range(1009):
        p.up(p.client.headers(2 * n + 1, [*GET[:3], (":path", f"/{n}")], end=True))
    for n in reversed(range(1009)):
        p.down(p.server.headers(2 * n + 1, [(":status", "200"), ("x", str(n))], end=True))

    assert len(p.out) == 1009
    assert all(x.request.path.encode() == b"/" + x.response.headers[0][1] for x in p.out)
    assert {x.state for x in p.out} == {"complete"}


def test_the_open_streams_are_bounded():
    p = begun()
    count = http2_table.MAX_STREAMS + 101
    for n in range(count):
        p.up(p.client.headers(2 * n + 1, GET, end=True))

    assert len(p.parser.streams.open) == http2_table.MAX_STREAMS
    assert p.parser.streams.reaped == 101
    assert p.lines()[:2] == ["1 GET /a - response_missing", "3 GET /a - response_missing"]
    p.down(p.server.headers(1, OK, end=True))  # too late: not taken for another exchange
    assert len(p.out) == 101
    assert p.parser.streams.stray_frames == 1
    assert len(p.close()) == count


def test_a_busy_call_is_not_the_one_that_is_reaped():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    p.down(p.server.headers(1, OK))
    for n in range(1, http2_table.MAX_STREAMS + 2):
        p.up(p.client.headers(2 * n + 1, GET, end=True))
        p.down(p.server.data(1, b"tick"))

    assert p.parser.streams.reaped == 2
    assert 1 in p.parser.streams.open


def test_a_response_seen_before_its_request_waits_for_it():
    p = begun()
    p.down(p.server.headers(1, OK, end=True))
    assert p.out == []
    p.up(p.client.headers(1, GET, end=True))

    assert p.lines() == ["1 GET /a 200 complete"]


def test_a_response_whose_request_cannot_come_any_more():
    p = begun()
    p.down(p.server.headers(1, OK, end=True))
    p.up(p.client.headers(3, GET, end=True))

    assert p.lines() == ["1 - 200 request_missing"]


def test_interim_responses():
    p = begun()
    p.up(p.client.headers(1, POST))
    p.down(p.server.headers(1, [(":status", "100")]))
    p.up(p.client.data(1, b"x", end=True))
    p.down(p.server.headers(1, [(":status", "103"), ("link", "</a>")]))
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 POST /p 200 complete"]
    assert p.out[0].response.interim == [100, 103]
    assert p.out[0].response.start_ns == p.now


def test_trailers_both_ways():
    p = begun()
    p.up(p.client.headers(1, POST) + p.client.data(1, b"b") + p.client.headers(1, [("a", "1")], end=True))
    p.down(p.server.headers(1, OK) + p.server.data(1, b"c") + p.server.headers(1, [("b", "2")], end=True))

    exchange = p.out[0]
    assert exchange.state == "complete"
    assert exchange.request.headers[exchange.request.trailer_start :] == [(b"a", b"1")]
    assert exchange.response.headers[exchange.response.trailer_start :] == [(b"b", b"2")]


def test_padding_priority_and_continuation():
    p = begun()
    block = p.client.block(POST)
    p.up(
        frame(HEADERS, PADDED | WITH_PRIORITY, 1, b"\x03" + bytes(4) + b"\x10" + block[:5] + b"\0\0\0")
        + frame(CONTINUATION, 0, 1, block[5:7])
        + frame(CONTINUATION, 0, 1)
        + frame(CONTINUATION, END_HEADERS, 1, block[7:])
        + frame(PRIORITY, 0, 1, bytes(5))
        + frame(DATA, PADDED, 1, b"\x04ab" + bytes(4))
        + frame(DATA, PADDED | END_STREAM, 1, b"\x00c")
    )
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 POST /p 200 complete"]
    assert p.out[0].user == (b"abc", b"")
    assert p.out[0].request.overhead_size == 4 * 9 + 9 + len(block) + 2 * 9 + 5 + 1


def test_pushed_responses():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    promise = (2).to_bytes(4) + p.server.block([*GET[:3], (":path", "/style.css")])
    p.down(frame(PUSH, END_HEADERS, 1, promise) + p.server.headers(1, OK, end=True))
    p.down(p.server.headers(2, OK) + p.server.data(2, b"css", end=True))

    assert p.lines() == ["1 GET /a 200 complete", "2 GET /style.css 200 complete"]
    assert p.out[1].user == (b"", b"css")


def test_connect_and_extended_connect():
    p = begun()
    p.up(p.client.headers(1, [(":method", "CONNECT"), (":authority", "db:5432")]) + p.client.data(1, b"q"))
    p.up(p.client.headers(3, [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]]))
    p.down(p.server.headers(1, OK[:1]) + p.server.data(1, b"rows") + p.server.headers(3, OK[:1]))

    assert [p.parser.streams.open[n].exchange.request.path for n in (1, 3)] == ["", "/a"]
    p.close()
    assert p.lines() == ["1 CONNECT db:5432 200 aborted", "3 CONNECT /a 200 aborted"]
    assert p.out[0].user == (b"q", b"rows")
    assert p.out[1].request.headers == [(b":protocol", b"websocket")]


@pytest.mark.parametrize("direction", [REQUEST, RESPONSE])
def test_reset_before_and_inside_the_answer(direction):
    p = begun()
    p.up(p.client.headers(1, GET, end=True) + p.client.headers(3, GET, end=True))
    p.down(p.server.headers(3, OK) + p.server.data(3, b"half"))
    p.feed(direction, frame(RST, 0, 1, bytes(3) + b"\x08") + frame(RST, 0, 3, bytes(3) + b"\x08"))
    p.down(p.server.headers(1, OK) + p.server.data(1, b"late", end=True) + p.server.data(3, b"late"))

    assert p.lines() == ["1 GET /a - aborted", "3 GET /a 200 aborted"]
    who = "server" if direction == RESPONSE else "client"
    assert {exchange.cause for exchange in p.out} == {f"RST_STREAM CANCEL by the {who}"}
    assert p.parser.streams.resets == 2
    assert p.parser.streams.stray_bytes == 8
    assert len(p.close()) == 2


def test_no_error_behind_a_whole_answer_only_stops_the_upload():
    p = begun()
    p.up(p.client.headers(1, POST) + p.client.data(1, b"par"))
    p.down(p.server.headers(1, [(":status", "413")], end=True))
    assert p.out == []
    p.down(frame(RST, 0, 1, bytes(4)))

    assert p.lines() == ["1 POST /p 413 complete"]


def test_goaway_refuses_the_later_streams():
    p = begun()
    p.up(b"".join(p.client.headers(n, GET, end=True) for n in (1, 3, 5)))
    p.down(frame(GOAWAY, 0, 0, (1).to_bytes(4) + b"\0\0\0\x0b"))
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["3 GET /a - aborted", "5 GET /a - aborted", "1 GET /a 200 complete"]
    assert [exchange.cause for exchange in p.out] == [*["GOAWAY ENHANCE_YOUR_CALM by the server"] * 2, ""]


def test_goaway_for_a_graceful_end_refuses_nobody():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    p.down(frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4)) + p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete"]


def test_the_end_of_the_connection():
    p = begun()
    p.up(p.client.headers(1, GET, end=True) + p.client.headers(3, GET, end=True) + p.client.headers(5, POST))
    p.down(p.server.headers(3, OK) + p.server.data(3, b"half"))
    p.close()

    assert p.lines() == ["1 GET /a - response_missing", "3 GET /a 200 aborted", "5 POST /p - aborted"]
    assert p.close() == p.out, "close twice gives nothing more"


def test_a_table_size_that_the_peer_announced_is_used_by_the_other_side():
    p = begun()
    p.up(frame(SETTINGS, 0, 0, setting(3, 100) + setting(1, 65536)))
    p.server.encoder.header_table_size = 65536
    p.up(p.client.headers(1, GET, end=True) + p.client.headers(3, GET, end=True))
    large = [(f"x-{n}", "v" * 200) for n in range(50)]
    p.down(p.server.headers(1, OK + large, end=True) + p.server.headers(3, OK + large, end=True))

    assert p.lines() == ["1 GET /a 200 complete", "3 GET /a 200 complete"]
    assert len(p.out[1].response.headers) == 52
    assert p.parser._sides[RESPONSE].decoder.oversize_updates == 0
    assert p.parser._sides[RESPONSE].decoder.table_size == 65536


def test_frames_that_say_nothing_about_exchanges():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    noise = frame(PING, 0, 0, bytes(8)) + frame(WINDOW, 0, 1, bytes(3) + b"\x01") + frame(SETTINGS, 1, 0)
    noise += frame(0x20, 0xFF, 1, b"grease") + frame(16, 0, 0, bytes(4) + b"u=1")
    p.up(noise).down(noise + p.server.headers(1, OK, end=True) + noise)

    assert p.lines() == ["1 GET /a 200 complete"]
    assert p.parser.resyncs == 0
    assert p.parser.control_frames == 2 + 3 * 5
