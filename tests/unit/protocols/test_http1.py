"""HTTP/1.1 conversations as transcripts: bytes of both directions in, exchanges out."""

from __future__ import annotations

import pytest

from spliffd.protocols import http1_stream
from spliffd.protocols.http1 import REQUEST, RESPONSE
from tests.unit.protocols.http1_transcripts import Player, line, play

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# name, operations (direction, bytes), what comes out (a line each), bodies of the last exchange
TABLE = [
    ("simple", [(0, GET), (1, OK)], ["GET /a 200 complete"], (b"", b"ok")),
    (
        "no reason",
        [(0, GET), (1, b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")],
        ["GET /a 200 complete"],
        (b"", b""),
    ),
    (
        "request body, keep-alive",
        [(0, b"POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), (1, OK), (0, GET), (1, OK)],
        ["POST /p 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "pipelining",
        [(0, GET + GET.replace(b"/a", b"/b") + GET.replace(b"/a", b"/c")), (1, OK + OK), (1, OK)],
        ["GET /a 200 complete", "GET /b 200 complete", "GET /c 200 complete"],
        (b"", b"ok"),
    ),
    (
        "early response",
        [(0, b"POST /p HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc"), (1, OK), (0, b"def"), (0, GET), (1, OK)],
        ["POST /p 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "response seen before its request (another thread was faster)",
        [(1, OK), (0, GET), (0, GET.replace(b"/a", b"/b")), (1, OK)],
        ["GET /a 200 complete", "GET /b 200 complete"],
        (b"", b"ok"),
    ),
    (
        "HEAD has no body",
        [
            (0, b"HEAD /h HTTP/1.1\r\n\r\n"),
            (1, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
            (0, GET),
            (1, OK),
        ],
        ["HEAD /h 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "204 and 304 have no body",
        [
            (0, GET + GET + GET),
            (1, b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n"),
            (1, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n" + OK),
        ],
        ["GET /a 204 complete", "GET /a 304 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "chunked with extensions and trailers",
        [
            (0, GET),
            (
                1,
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nWiki\r\n6 ; z\r\npedia \r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
            ),
            (0, GET),
            (1, OK),
        ],
        ["GET /a 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "chunked request",
        [(0, b"PUT /c HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\nabc\n0\n\n"), (1, OK)],
        ["PUT /c 200 complete"],
        (b"abc", b"ok"),
    ),
    (
        "Transfer-Encoding overrides Content-Length",
        [
            (0, GET),
            (
                1,
                b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            ),
            (0, GET),
            (1, OK),
        ],
        ["GET /a 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "equal Content-Lengths",
        [
            (0, GET),
            (1, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2, 2\r\n\r\nok"),
            (0, GET),
            (1, OK),
        ],
        ["GET /a 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "conflicting Content-Lengths: the next start line is looked for",
        [
            (0, GET),
            (1, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 3\r\n\r\nab"),
            (0, GET),
            (1, OK),
        ],
        ["GET /a 200 truncated", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "Content-Length that is no number, in a request",
        [(0, b"POST /p HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc"), (1, OK), (0, GET), (1, OK)],
        ["POST /p 200 truncated", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "interim responses",
        [
            (0, b"POST /p HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"),
            (1, b"HTTP/1.1 100 Continue\r\n\r\n"),
            (0, b"abc"),
            (1, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK),
        ],
        ["POST /p 200 complete"],
        (b"abc", b"ok"),
    ),
    (
        "empty lines between messages",
        [(0, b"\r\n\r\n" + GET), (1, b"\n" + OK + b"\r\n"), (0, b"\n\r\n" + GET), (1, OK)],
        ["GET /a 200 complete", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "bare LF",
        [(0, b"GET /lf HTTP/1.0\nHost: h\n\n"), (1, b"HTTP/1.0 200 OK\nContent-Length: 7\n\na\r\n\r\nbc")],
        ["GET /lf 200 complete"],
        (b"", b"a\r\n\r\nbc"),
    ),
    (
        "obs-fold and a blank before the colon",
        [
            (
                0,
                b"GET /f HTTP/1.1\r\nX-Fold: one\r\n two\r\n\tthree\r\nHost : h\r\nContent-Length : 2\r\n\r\nhi",
            ),
            (1, OK),
        ],
        ["GET /f 200 complete"],
        (b"hi", b"ok"),
    ),
    (
        "garbage before a request",
        [(0, b"\x16\x03\x01\x02\x00junk\n" + GET), (1, OK)],
        ["GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "broken chunk: the next start line is looked for",
        [
            (0, GET),
            (1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nZZ\r\njunk"),
            (0, GET),
            (1, OK),
        ],
        ["GET /a 200 truncated", "GET /a 200 complete"],
        (b"", b"ok"),
    ),
    (
        "a field that is none is kept as it is",
        [(0, b"GET /n HTTP/1.1\r\nnonsense\r\n: value\r\nHost: h\r\n\r\n"), (1, OK)],
        ["GET /n 200 complete"],
        (b"", b"ok"),
    ),
    ("request alone", [(0, GET)], ["GET /a - response_missing"], (b"", b"")),
    ("response alone", [(1, OK)], ["- 200 request_missing"], (b"", b"ok")),
    ("unfinished response", [(0, GET), (1, OK[:-1])], ["GET /a 200 aborted"], (b"", b"o")),
    (
        "unfinished head",
        [(0, GET), (1, b"HTTP/1.1 200 OK\r\nDate: x\r\nSer")],
        ["GET /a 200 aborted"],
        (b"", b""),
    ),
    ("unfinished start line", [(0, GET), (1, b"HTTP/1.1 20")], ["GET /a - response_missing"], (b"", b"")),
    (
        "unfinished request",
        [(0, b"POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\nab")],
        ["POST /p - aborted"],
        (b"ab", b""),
    ),
    (
        "only an interim response",
        [(0, GET), (1, b"HTTP/1.1 100 Continue\r\n\r\n")],
        ["GET /a 0 response_missing"],
        (b"", b""),
    ),
    (
        "until close, without close_notify",
        [(0, GET), (1, b"HTTP/1.1 200 OK\r\n\r\nabc")],
        ["GET /a 200 aborted"],
        (b"", b"abc"),
    ),
]


@pytest.mark.parametrize("step", [0, 1, 2, 7])
@pytest.mark.parametrize(
    ("ops", "lines", "bodies"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_table(ops, lines, bodies, step):
    player = Player()
    for direction, data in ops:
        for at in range(0, len(data), step or len(data)):
            player.feed(direction, data[at : at + (step or len(data))])

    out = player.close()

    assert [line(exchange) for exchange in out] == lines
    assert (out[-1].user or (b"", b"")) == bodies
    assert player.parser.held() == 0


@pytest.mark.parametrize("ops", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_pieces_of_any_size_give_the_same(ops):
    whole = play(ops)

    assert play(ops, step=1) == whole
    assert play(ops, step=3) == whole


def test_all_fields_of_an_exchange():
    player = Player()
    player.now = 9
    request = (
        b"POST /x?y=%20z HTTP/1.1\r\nHost: example.org:8443\r\nContent-Type: application/json\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"
    )
    player.up(request[:20]).up(request[20:] + b"a").up(b"bc")
    response = b"HTTP/1.0 404 Not \xff Found\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX: \xe4\r\nContent-Length: 4\r\n\r\n"
    player.down(b"HTTP/1.1 103 Early Hints\r\n\r\n").down(response).down(b"12").down(b"34")

    (exchange,) = player.out

    asked, answered = exchange.request, exchange.response
    assert (asked.method, asked.scheme, asked.authority) == ("POST", "https", "example.org:8443")
    assert (asked.path, asked.version) == ("/x?y=%20z", "1.1")
    assert (asked.content_type, asked.content_encoding) == ("application/json", "gzip")
    assert asked.headers[0] == (b"Host", b"example.org:8443")
    assert (asked.start_ns, asked.end_ns) == (10, 12)
    assert (asked.body_size, asked.overhead_size, asked.trailer_start) == (3, len(request), None)
    assert (answered.status, answered.reason, answered.version) == (404, "Not ÿ Found", "1.0")
    assert answered.interim == [103]
    assert answered.headers == [
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X", b"\xe4"),
        (b"Content-Length", b"4"),
    ]
    assert (answered.start_ns, answered.end_ns, exchange.first_byte_ns) == (14, 16, 14)
    assert (answered.body_size, answered.overhead_size) == (4, len(response) + 28)
    assert (exchange.state, exchange.missing_bytes, exchange.gap_offset) == ("complete", 0, None)
    assert exchange.part_key == 0


def test_trailers_follow_the_headers():
    player = Player().up(GET)
    player.down(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")

    response = player.out[0].response

    assert response.headers == [(b"Transfer-Encoding", b"chunked"), (b"X-Sum", b"1")]
    assert response.trailer_start == 1
    assert response.body_size == 3
    assert response.overhead_size == len(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "scheme", "authority", "path"),
    [
        (b"/", "https", "h", "/"),
        (b"/a b", "https", "h", "/a b"),
        (b"/\xc3\xa9\xff", "https", "h", "/Ã©ÿ"),
        (b"/\xc3\xa9", "https", "h", "/é"),
        (b"http://other:80/p?q", "http", "other:80", "/p?q"),
        (b"HTTP://other", "http", "other", ""),
        (b"http://other?q", "http", "other", "?q"),
        (b"*", "https", "h", "*"),
    ],
)
def test_forms_of_the_target(target, scheme, authority, path):
    player = Player().up(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n").down(OK)

    request = player.out[0].request

    assert (request.scheme, request.authority, request.path) == (scheme, authority, path)


def test_until_close_ends_with_close_notify():
    player = Player().up(GET).down(b"HTTP/1.1 200 OK\r\n\r\nabc").down(b"def").eof(RESPONSE)

    assert player.lines() == ["GET /a 200 complete"]
    assert player.out[0].user == (b"", b"abcdef")


def test_websocket_upgrade_hands_over_both_directions():
    player = Player().up(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    player.down(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\r\n\x81\x02hi")

    assert player.lines() == ["GET /ws 101 complete"]
    assert player.parser.upgraded == "websocket"
    assert player.parser.take_rest(RESPONSE) == b"\x81\x02hi"
    assert player.parser.take_rest(RESPONSE) == b""

    player.up(b"\x81\x80mask").down(b"HTTP/1.1 200 OK\r\n\r\n")

    assert player.parser.tunnel_bytes == 4 + 6 + 19
    assert player.close() == player.out[:1]


def test_bytes_behind_a_connect_wait_for_the_response():
    player = Player().up(b"CONNECT db:5432 HTTP/1.1\r\n\r\nearly").up(b"bytes")
    player.down(b"HTTP/1.1 200 Connection established\r\n\r\n")

    assert player.lines() == ["CONNECT db:5432 200 complete"]
    assert player.parser.upgraded == "connect"
    assert player.parser.take_rest(REQUEST) == b"earlybytes"


def test_refused_upgrade_goes_on_with_http():
    player = Player().up(b"GET /u HTTP/1.1\r\nUpgrade: h2c\r\n\r\n" + GET)
    player.down(OK + OK)

    assert player.lines() == ["GET /u 200 complete", "GET /a 200 complete"]
    assert player.parser.upgraded == ""


def test_an_upgrade_behind_another_request_waits_for_its_own_response():
    player = Player().up(GET + b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n" + b"\x81\x80early")
    player.down(OK).down(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")

    assert player.lines() == ["GET /a 200 complete", "GET /ws 101 complete"]
    assert player.parser.upgraded == "websocket"
    assert player.parser.take_rest(REQUEST) == b"\x81\x80early"


def test_upgrade_insecure_requests_is_no_upgrade():
    player = Player().up(GET.replace(b"\r\n\r\n", b"\r\nUpgrade-Insecure-Requests: 1\r\n\r\n")).up(GET)

    assert player.parser.held() == 0


def test_endless_early_data_is_not_kept():
    player = Player().up(b"CONNECT db:5432 HTTP/1.1\r\n\r\n")
    for _ in range(40):
        player.up(b"\x00" * 16384)

    assert player.parser.held() <= http1_stream.MAX_HOLD + 16384
    assert player.close()[0].state == "response_missing"


def test_bodies_can_be_switched_off_and_on():
    player = Player().up(GET).down(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    on_body, player.parser.on_body = player.parser.on_body, None
    player.down(b"def")
    player.parser.on_body = on_body
    player.down(b"ghi")

    assert player.out[0].user == (b"", b"abc...ghi")
