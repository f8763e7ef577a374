"""HTTP/2 that no peer should send: costs what it costs, and the connection goes on."""

from __future__ import annotations

from spliffd.protocols import http2_frames, http2_table
from spliffd.protocols.http2_frames import PREFACE
from tests.unit.protocols.http2_transcripts import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    OK,
    PING,
    POST,
    RST,
    SETTINGS,
    Player,
    facts,
    frame,
    setting,
)


def begun() -> Player:
    return Player(begun=True)


def test_a_bad_block_costs_its_message_and_never_the_connection():
    p = begun()
    p.up(p.client.headers(1, [*GET, ("x-one", "1")], end=True))
    p.up(frame(HEADERS, END_STREAM | END_HEADERS, 3, b"\x82\x84\x80"))  # index 0
    p.up(p.client.headers(5, [*GET, ("x-one", "1"), ("x-two", "2")], end=True))
    p.up(p.client.headers(7, [*GET, ("x-one", "1"), ("x-two", "2")], end=True))
    for n in (1, 3, 5, 7):
        p.down(p.server.headers(n, OK, end=True))

    assert p.lines() == [
        "1 GET /a 200 complete",
        "3 GET / 200 truncated",
        "5 GET ? 200 truncated",  # what it refers to is uncertain behind such a block
        "7 GET ? 200 truncated",
    ]
    assert p.out[2].request.headers[-1] == (b"x-two", b"2")
    assert p.out[3].request.headers[-1] == (b"x-two", b"2")
    assert p.parser.broken_blocks == 1
    assert p.parser.unknown_fields == 6


def test_a_header_of_a_mebibyte_is_bounded_and_the_next_request_is_read():
    p = begun()
    block = p.client.encoder.encode([*GET, ("x-large", "v" * (1 << 20))], huffman=False)
    p.up(frame(HEADERS, END_STREAM, 1, block[:16384]))
    held = 0
    for at in range(16384, len(block), 16384):
        p.up(frame(CONTINUATION, 0, 1, block[at : at + 16384]))
        held = max(held, p.parser.held())
    p.up(frame(CONTINUATION, END_HEADERS, 1))
    p.up(p.client.headers(3, [*GET, ("y", "z")], end=True))
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(3, OK, end=True))

    assert held <= http2_frames.MAX_BLOCK
    assert p.parser.oversized_blocks == 1
    assert p.lines() == ["1 GET /a 200 truncated", "3 GET /a 200 complete"]
    assert p.out[1].request.headers == [(b"y", b"z")]


def test_a_continuation_flood_keeps_nothing():
    p = begun()
    p.up(frame(HEADERS, 0, 1, p.client.block(GET)))
    for _ in range(1009):
        p.up(frame(CONTINUATION, 0, 1))
    assert p.parser.held() < 100
    assert p.parser.continuation_floods == 1
    p.up(frame(CONTINUATION, END_HEADERS, 1) + frame(DATA, END_STREAM, 1))
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete"]


def test_an_hpack_bomb_is_cut_and_the_table_stays_right():
    p = begun()
    p.up(p.client.headers(1, [*GET, ("x-bomb", "b" * 4000)], end=True))
    index = 62  # the newest entry
    p.up(frame(HEADERS, END_STREAM | END_HEADERS, 3, b"\x82\x87\x84" + bytes([0x80 | index]) * 16000))
    p.up(p.client.headers(5, [*GET, ("x-bomb", "b" * 4000)], end=True))
    for n in (1, 3, 5):
        p.down(p.server.headers(n, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete", "3 GET / 200 truncated", "5 GET /a 200 complete"]
    assert sum(len(v) for _, v in p.out[1].request.headers) <= 256 * 1024
    assert p.parser.oversized_lists == 1


def test_a_hundred_thousand_headers():
    p = begun()
    block = p.client.block(GET) + b"\x00\x01a\x01b" * 50_000
    p.up(frame(HEADERS, END_STREAM | END_HEADERS, 1, block))
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 GET /a 200 truncated"]
    assert len(p.out[0].request.headers) == 2000 - 4


def test_rapid_reset():
    p = begun()
    for n in range(10007):
        p.up(p.client.headers(2 * n + 1, GET, end=True) + frame(RST, 0, 2 * n + 1, bytes(3) + b"\x08"))

    assert len(p.out) == p.parser.streams.resets == 10007
    assert len(p.parser.streams.open) == 0
    assert len(p.parser.streams._ended) == http2_table.MAX_ENDED


def test_floods_of_control_frames_leave_nothing_behind():
    p = begun()
    flood = frame(SETTINGS, 0, 0, setting(1, 0) * 100) + frame(PING, 0, 0, bytes(8))
    for _ in range(1009):
        p.up(flood)
        assert p.parser.held() == 0
    assert p.parser.control_frames == 2 + 2 * 1009


def test_an_endless_frame_of_no_use_is_not_kept():
    p = begun()
    p.up((0xFFFFFF).to_bytes(3) + bytes([SETTINGS, 0, 0, 0, 0, 0]))
    for _ in range(1023):
        p.up(bytes(16384))
        assert p.parser.held() == 0
    p.up(bytes(16383))
    p.up(p.client.headers(1, GET, end=True)).down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete"]


def test_data_that_nobody_opened_is_counted():
    p = begun()
    p.down(p.server.data(1, b"12345")).up(p.client.data(7, b"123", end=True))

    assert p.close() == []
    assert (p.parser.streams.stray_frames, p.parser.streams.stray_bytes) == (2, 8)


def test_a_server_that_answers_in_another_protocol():
    p = Player()
    p.up(PREFACE + frame(SETTINGS, 0, 0) + p.client.headers(1, GET, end=True))
    p.down(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    p.close()

    assert p.lines() == ["1 GET /a - response_missing"]
    assert p.parser.resyncs == 1
    assert p.parser.garbage_bytes == 47


def test_bytes_that_are_no_frame_are_passed_over():
    p = begun()
    p.up(p.client.headers(1, POST) + frame(RST, 0, 1, bytes(6)) + b"garbage" * 5)
    p.up(p.client.headers(3, GET, end=True))
    p.down(p.server.headers(3, OK, end=True) + p.server.headers(1, OK, end=True))

    assert p.lines() == ["3 GET /a 200 truncated", "1 POST /p 200 truncated"]
    assert p.parser.resyncs == 1


def test_facts_hold_no_pseudo_fields():
    p = begun()
    p.up(p.client.headers(1, [*GET, ("host", "other"), ("cookie", "a=1"), ("cookie", "b=2")], end=True))
    p.down(p.server.headers(1, [(":status", "200"), ("content-encoding", "br")], end=True))

    found = facts(p.out[0])
    assert found["request"]["authority"] == "h"
    assert found["request"]["headers"] == [(b"host", b"other"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
    assert found["response"]["content_encoding"] == "br"
