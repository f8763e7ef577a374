"""HTTP/1.1 beyond its limits, joined late, and behind its end: cut, counted, and in step again."""

from __future__ import annotations

from spliffd.protocols import http1_stream
from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.http1_pairing import MAX_WAITING
from tests.unit.protocols.http1_transcripts import Player, facts, line, play

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_head_beyond_the_limit_is_cut_and_the_next_message_found():
    huge = b"GET /big HTTP/1.1\r\n" + b"X: " + b"x" * 1000 + b"\r\n"
    huge += (b"Y: " + b"y" * 1000 + b"\r\n") * (http1_stream.MAX_HEAD // 1000)
    player = Player()
    for at in range(0, len(huge), 5000):
        player.up(huge[at : at + 5000])
        assert player.parser.held() <= http1_stream.MAX_HEAD + 3
    player.up(b"\r\n").down(OK).up(GET).down(OK)

    assert player.lines() == ["GET /big 200 truncated", "GET /a 200 complete"]
    assert player.parser.oversized_heads == 1
    assert play([(0, huge + b"\r\n"), (1, OK), (0, GET), (1, OK)]) == [
        facts(exchange) for exchange in player.out
    ]


def test_too_many_fields_are_cut_but_framed():
    player = (
        Player().up(b"POST /many HTTP/1.1\r\n" + b"a:\r\n" * 2500 + b"Content-Length: 3\r\n\r\nabc").down(OK)
    )

    (exchange,) = player.out

    assert line(exchange) == "POST /many 200 truncated"
    assert len(exchange.request.headers) == http1_stream.MAX_HEADERS
    assert exchange.user == (b"abc", b"ok")


def test_waiting_requests_are_bounded_and_pairing_stays_right():
    player = Player()
    for number in range(MAX_WAITING + 3):
        player.up(b"GET /%d HTTP/1.1\r\n\r\n" % number)
    for number in range(MAX_WAITING + 3):
        player.down(b"HTTP/1.1 %d OK\r\nContent-Length: 0\r\n\r\n" % (200 + number % 7))

    lines = player.lines()

    assert player.parser.pairing.overflows == 3
    assert lines[:3] == [f"GET /{number} - response_missing" for number in range(3)]
    assert lines[3:6] == [f"- {200 + number} request_missing" for number in range(3)]
    assert lines[6:] == [f"GET /{number} {200 + number % 7} complete" for number in range(3, MAX_WAITING + 3)]


def test_joined_in_the_middle():
    player = Player(joined=True).down(b'son": 1}').up(b"tail of a body").down(OK)
    player.up(GET).down(OK)

    assert player.lines() == ["- 200 joined_mid_stream", "GET /a 200 complete"]


def test_joined_before_a_message():
    player = Player(joined=True).up(b"BREW /pot HTTP/1.1\r\n\r\n").down(OK)

    assert player.lines() == ["BREW /pot 200 complete"]


def test_bytes_behind_the_end_are_garbage():
    player = Player().up(GET).down(OK).eof(RESPONSE).eof(RESPONSE).down(OK)

    assert player.close() == player.out[:1]
    assert player.parser.garbage_bytes == len(OK)


def test_no_more_responses_after_the_end_of_their_direction():
    player = Player().up(GET).eof(RESPONSE).up(GET)

    assert player.lines() == ["GET /a - response_missing"] * 2


def test_parser_without_body_callback():
    parser = Http1(None)
    parser.feed(REQUEST, GET, 1)

    (exchange,) = parser.feed(RESPONSE, OK, 2)

    assert exchange.response.body_size == 2
    assert parser.feed(REQUEST, b"", 3) == ()


def test_searching_a_line_of_garbage_takes_linear_time():
    parser = Http1(None)
    for _ in range(8):
        parser.feed(RESPONSE, b"HTTP/1.1 200 " * 5000, 1)
        parser.feed(REQUEST, b"GET GET / HTTP/1.1 " * 3000, 1)
        assert parser.held() <= 2 * http1_stream.MAX_START_LINE
