"""Joins in the middle and losses anywhere: what they cost, and that nothing is wrong."""

from __future__ import annotations

import hpack
import pytest

from spliffd.protocols.hpack import UNKNOWN
from spliffd.protocols.http2 import REQUEST, RESPONSE
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.http2_search import SEARCH_KEEP
from spliffd.protocols.http2_table import SILENCE_NS
from tests.unit.protocols.http2_transcripts import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    OK,
    PADDED,
    POST,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    Player,
    frame,
)


def begun() -> Player:
    return Player(begun=True)


def lose(p: Player, direction: int, data: bytes, start: int, size: int) -> Player:
    """Feeds ``data`` without ``size`` bytes from ``start`` on."""
    return p.feed(direction, data[:start]).gap(direction, size).feed(direction, data[start + size :])


# ---- gaps of which the frame is known ---------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 9])
def test_a_gap_inside_data_leaves_a_hole_and_nothing_else(size):
    p = begun()
    p.up(p.client.headers(1, GET, end=True) + p.client.headers(3, GET, end=True))
    p.down(p.server.headers(1, OK) + p.server.headers(3, OK))
    data = p.server.data(1, b"0123456789")
    before = p.parser._sides[RESPONSE].offset
    lose(p, RESPONSE, data, 10, size)
    p.down(p.server.data(3, b"whole", end=True) + p.server.data(1, b"end", end=True))

    assert p.lines() == ["3 GET /a 200 complete", "1 GET /a 200 gap"]
    exchange = p.out[1]
    assert exchange.user[1] == b"0" + b"." * size + b"0123456789"[1 + size :] + b"end"
    assert (exchange.missing_bytes, exchange.gap_offset) == (size, before + 10)
    assert p.parser.resyncs == 0


def test_a_gap_over_padding_costs_nothing():
    p = begun()
    p.up(p.client.headers(1, POST))
    lose(p, REQUEST, frame(DATA, PADDED | END_STREAM, 1, b"\x05abc" + bytes(5)), 9 + 4, 5)
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 POST /p 200 complete"]


def test_a_gap_inside_the_block_of_a_request():
    p = begun()
    request = frame(HEADERS, END_HEADERS | END_STREAM, 1, p.client.block([*GET, ("x-a", "1"), ("x-b", "2")]))
    lose(p, REQUEST, request, len(request) - 6, 4)
    p.up(p.client.headers(3, [*GET, ("x-b", "2"), ("x-c", "3")], end=True))
    p.up(p.client.headers(5, [*GET, ("x-b", "2"), ("x-c", "3")], end=True))
    for n in (1, 3, 5):
        p.down(p.server.headers(n, OK, end=True))

    assert p.lines() == ["1 GET /a 200 gap", "3 GET ? 200 gap", "5 GET ? 200 gap"]
    assert p.out[0].missing_bytes == 4
    assert p.out[0].gap_offset == len(PREFACE) + 9 + len(request) - 6
    assert p.out[1].request.headers[-2:] == [(UNKNOWN, UNKNOWN), (b"x-c", b"3")]
    assert p.out[2].request.headers[-1] == (b"x-c", b"3")
    assert p.parser.resyncs == 0


def test_a_gap_inside_the_block_of_a_response_and_its_continuation():
    p = begun()
    p.up(p.client.headers(1, GET, end=True) + p.client.headers(3, GET, end=True))
    block = p.server.block([*OK, ("x-long", "v" * 40)])
    blocks = frame(HEADERS, 0, 1, block[:10]) + frame(CONTINUATION, END_HEADERS, 1, block[10:])
    lose(p, RESPONSE, blocks, 14, 3)
    p.down(p.server.data(1, b"body", end=True) + p.server.headers(3, [(":status", "204")], end=True))

    assert p.lines() == ["1 GET /a 200 gap", "3 GET /a 204 complete"]
    assert p.out[0].user[1] == b"body"


def test_a_gap_inside_a_reset_leaves_it_a_reset():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    lose(p, REQUEST, frame(RST, 0, 1, bytes(3) + b"\x08"), 10, 2)

    assert p.lines() == ["1 GET /a - aborted"]


def test_a_gap_inside_a_promise():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    promise = frame(PUSH, END_HEADERS, 1, (2).to_bytes(4) + p.server.block(GET))
    lose(p, RESPONSE, promise, 11, 9)
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(2, [(":status", "204")], end=True))

    assert p.lines() == ["1 GET /a 200 complete", "2 - 204 request_missing"]


def test_a_gap_inside_the_preface_and_settings():
    p = Player()
    start = PREFACE + frame(SETTINGS, 0, 0, bytes(12))
    lose(p, REQUEST, start, 5, 25 + 10)
    p.up(p.client.headers(1, GET, end=True)).down(frame(SETTINGS, 0, 0) + p.server.headers(1, OK, end=True))

    assert p.lines()[-1:] == ["1 GET /a 200 complete"]


def test_the_padding_length_itself_is_lost():
    p = begun()
    p.up(p.client.headers(1, POST))
    lose(p, REQUEST, frame(DATA, PADDED | END_STREAM, 1, b"\x05abc" + bytes(5)), 9, 1)
    p.down(p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 POST /p 200 gap"]


# ---- gaps that hide frame headers -------------------------------------------------------------------


def test_a_gap_over_frames_marks_what_was_under_way_and_nothing_before_or_behind():
    p = begun()
    p.up(b"".join(p.client.headers(n, GET, end=True) for n in (1, 3, 5, 7)))
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(3, OK) + p.server.headers(5, OK))
    lost = p.server.data(3, b"lost") + p.server.data(5, b"lost", end=True)
    p.gap(RESPONSE, len(lost))
    p.down(p.server.data(3, b"end", end=True) + p.server.headers(7, [(":status", "204")], end=True))
    p.close()

    assert p.lines() == [
        "1 GET /a 200 complete",
        "3 GET /a 200 gap",
        "7 GET /a 204 complete",
        "5 GET /a 200 gap",
    ]
    assert p.out[1].missing_bytes == len(lost)
    assert p.parser.resyncs == 1
    assert p.parser.garbage_bytes == 0


def test_an_answer_that_lost_its_end_comes_out_when_its_stream_stays_silent():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    p.down(p.server.headers(1, OK)).gap(RESPONSE, 100)
    p.now += SILENCE_NS - 10
    p.up(p.client.headers(3, GET, end=True))
    assert p.lines() == []
    p.now += 100
    p.up(p.client.headers(5, GET, end=True))

    assert p.lines() == ["1 GET /a 200 gap"]


def test_an_answer_behind_a_lost_head_shows_its_body():
    p = begun()
    p.up(p.client.headers(1, GET, end=True))
    p.gap(RESPONSE, len(p.server.headers(1, OK)))
    p.down(frame(WINDOW, 0, 0, bytes(3) + b"\x01") + p.server.data(1, b"rest", end=True))

    assert p.lines() == ["1 GET /a ? gap"]
    assert p.out[0].user[1] == b"rest"


def test_a_lost_request_and_its_answer():
    p = begun()
    p.gap(REQUEST, len(p.client.headers(1, GET, end=True)))
    p.up(p.client.headers(3, GET, end=True))
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(3, OK, end=True))

    assert p.lines() == ["1 - 200 request_missing", "3 GET ? 200 gap"]


@pytest.mark.parametrize("cut", range(1, 60))
def test_cut_anywhere_behind_a_gap_the_next_request_is_found(cut):
    """The gap ends inside a frame: what is left of it is passed over."""
    p = begun()
    body = bytes(range(256)) + b"\x00\x00\x04\x00\x00\x00\x00\x00\x01\x00\x00\x08\x01\x04\x00\x00\x00\x03" * 3
    p.up(p.client.headers(1, POST))
    data = p.client.data(1, body, end=True)
    p.up(data[:3]).gap(REQUEST, cut * 5).up(data[3 + cut * 5 :])
    p.up(p.client.headers(3, [*GET, ("x", "y")], end=True))
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(3, OK, end=True))

    assert p.lines() == ["1 POST /p 200 gap", "3 GET /a 200 gap"]
    assert p.out[1].request.headers == [(UNKNOWN, UNKNOWN), (b"x", b"y")]


def test_what_is_left_of_a_reset_is_no_data():
    """``00 00 00 00 09 00 00 00 08``: the end of a RST_STREAM, and nearly an empty frame of stream 8."""
    p = begun()
    p.up(p.client.headers(9, GET, end=True) + p.client.headers(11, GET, end=True))
    lose(p, RESPONSE, frame(RST, 0, 9, bytes(3) + b"\x08") + p.server.headers(11, OK, end=True), 0, 2)
    p.close()

    assert p.lines() == ["11 GET /a 200 complete", "9 GET /a - response_missing"]


def test_a_search_keeps_little_and_goes_quickly():
    p = begun()
    p.up(p.client.headers(1, POST)).gap(REQUEST, 10)
    teaser = b"\x00\x3f\xff\x00\x00\x00\x00\x00\x01"  # a DATA frame of 16,383 bytes, again and again
    for _ in range(100):
        p.up(teaser * 1820)
        assert p.parser.held() <= 2 * SEARCH_KEEP + 4096
    assert len(p.parser.streams.open) <= 101
    assert p.parser.garbage_bytes + p.parser.streams.stray_bytes > 0


def test_more_padding_than_payload_in_what_looks_like_a_head():
    p = Player(joined=True)
    p.down(b"?" + frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff\x88"))
    p.down(frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\x88"))

    assert p.lines() == ["3 - 200 joined_mid_stream"]


# ---- joined in the middle ---------------------------------------------------------------------------


def test_joined_in_the_middle_known_fields_are_right_and_unknown_ones_marked():
    p = Player(joined=True)
    common = [("user-agent", "browser"), ("x-token", "before")]
    p.client.block([*GET, *common])  # before we came
    p.server.block([*OK, ("x-served-by", "old")])
    p.up(p.client.headers(7, [*GET, *common, ("x-new", "1")], end=True))
    p.down(p.server.headers(7, [*OK, ("x-served-by", "old")]) + p.server.data(7, b"hi", end=True))
    p.up(p.client.headers(9, [*GET[:3], ("user-agent", "browser"), ("x-new", "1")], end=True))
    p.down(p.server.headers(9, [(":status", "404")], end=True))

    assert p.lines() == ["7 GET ? 200 joined_mid_stream", "9 GET ? 404 joined_mid_stream"]
    request = p.out[0].request
    assert request.headers == [(UNKNOWN, UNKNOWN)] * 4 + [(b"x-new", b"1")]
    assert request.authority == request.path == ""
    assert p.parser.unknown_fields == 4 + 3 + 2


def test_the_answer_to_a_request_from_before():
    p = Player(joined=True)
    p.down(p.server.headers(5, OK) + p.server.data(5, b"hi", end=True))
    p.up(p.client.headers(9, GET, end=True))
    p.down(p.server.headers(7, OK, end=True) + p.server.headers(9, OK, end=True))

    assert p.lines() == [
        "5 - 200 joined_mid_stream",
        "7 - 200 joined_mid_stream",
        "9 GET /a 200 complete",
    ]


def test_joined_inside_a_long_answer():
    p = Player(joined=True)
    body = p.server.data(1, b"x" * 5000) + p.server.data(1, b"y" * 5000) * 4
    p.down(body[2500:] + p.server.data(1, b"", end=True))

    assert p.lines() == ["1 - ? joined_mid_stream"]
    assert p.out[0].user[1] == b"y" * 20000


def test_said_to_be_joined_but_the_beginning_is_here():
    p = Player(joined=True)
    p.up(PREFACE + frame(SETTINGS, 0, 0) + p.client.headers(1, GET, end=True))
    p.down(frame(SETTINGS, 0, 0) + p.server.headers(1, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete"]


def test_101_live_connections_joined_at_once():
    """Every later request is delivered; known fields are right, unknown ones marked, none wrong."""
    for number in range(101):
        p = Player(joined=True)
        for n in range(number % 23):  # what we miss: the tables are full of it
            fields = [*GET[:3], (":path", f"/{n}"), (f"x-{n % 7}", str(n))]
            p.client.block(fields)
            p.server.block([*OK, (f"y-{n % 5}", str(n % 3))])
        sent = {}
        for n in range(number % 23, number % 23 + 31):
            fields = [*GET[:3], (":path", f"/{n}"), (f"x-{n % 7}", str(n % 11))]
            answer = [*OK, (f"y-{n % 5}", str(n % 3))]
            sent[2 * n + 1] = fields, answer
            p.up(p.client.headers(2 * n + 1, fields, end=True))
            p.down(p.server.headers(2 * n + 1, answer, end=True))
        assert [x.stream_id for x in p.out] == list(sent)
        for exchange in p.out:
            fields, answer = sent[exchange.stream_id]
            request, response = exchange.request, exchange.response
            assert (request.method, response.status) == ("GET", 200)
            assert request.path in (fields[3][1], "")
            assert request.authority in ("h", "")
            known = [x for x in request.headers + response.headers if x[0] != UNKNOWN]
            assert set(known) <= {(n.encode(), v.encode()) for n, v in fields + answer}
            unknown = len(request.headers) + len(response.headers) - len(known)
            assert len(known) + bool(request.path) + bool(request.authority) + unknown == 6
            assert exchange.state == ("joined_mid_stream" if unknown else "complete")
        if number % 23 == 0:
            assert {x.state for x in p.out} == {"complete"}


def test_an_encoder_with_a_large_table_is_followed_after_a_join():
    p = Player(joined=True)
    p.client.encoder = hpack.Encoder()
    p.client.encoder.header_table_size = 65536
    p.client.block([("x", "y")])  # carries the size update that we miss
    fields = [(f"x-{n}", "v" * 100) for n in range(100)]
    p.up(p.client.headers(1, GET + fields, end=True) + p.client.headers(3, GET + fields, end=True))
    p.down(p.server.headers(1, OK, end=True) + p.server.headers(3, OK, end=True))

    assert p.lines() == ["1 GET /a 200 complete", "3 GET /a 200 complete"]
    assert p.out[1].request.headers == [(n.encode(), v.encode()) for n, v in fields]
