"""Any bytes, any cut, any order: no exception, bounded memory, the same exchanges; and what h11 says."""

from __future__ import annotations

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols import http1_stream
from spliffd.protocols.http1 import Http1
from spliffd.protocols.http1_fields import OTHER_CODING, UNUSUAL, read_fields, scan_framing
from tests.unit.protocols.http1_transcripts import Player, facts

FRAGMENTS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /x HTTP/1.1\r\n",
    b"HEAD / HTTP/1.0\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    b"HTTP/1.1 100\r\n\r\n",
    b"HTTP/1.0 204\n\n",
    b"Content-Length: 5\r\n",
    b"content-length: 0\r\n",
    b"Content-Length: 7, 7\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Upgrade: h2c\r\n",
    b"Host: h\r\n",
    b" folded\r\n",
    b"no field\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nT: t\r\n\r\n",
    b"hello",
    b"xGET /y HTTP/1.1\r\n\r\n",
    b"\x00\xff\x80",
]

piece = st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=6))
chunk = st.lists(piece, min_size=1, max_size=6).map(b"".join)
operation = st.one_of(
    st.tuples(st.just("feed"), st.integers(0, 1), chunk),
    st.tuples(st.just("feed"), st.integers(0, 1), chunk),
    st.tuples(st.just("feed"), st.integers(0, 1), chunk),
    st.tuples(st.just("gap"), st.integers(0, 1), st.integers(0, 60)),
    st.tuples(st.just("eof"), st.integers(0, 1), st.none()),
)
operations = st.lists(operation, max_size=14)


def run(ops, joined: bool, cut) -> Player:
    """Plays ``ops``; ``cut(data)`` says in which pieces each feed comes."""
    player = Player(joined)
    for kind, direction, value in ops:
        if kind == "feed":
            for part in cut(value):
                player.feed(direction, part)
                assert player.parser.held() <= 2 * (http1_stream.MAX_HEAD + 3)
        elif kind == "gap":
            player.gap(direction, value)
        else:
            player.eof(direction)
    player.close()
    return player


@settings(max_examples=400, deadline=None)
@given(operations, st.booleans(), st.integers(1, 9))
def test_pieces_make_no_difference(ops, joined, step):
    whole = run(ops, joined, lambda data: [data])

    pieces = run(ops, joined, lambda data: [data[at : at + step] for at in range(0, len(data), step)])

    assert [facts(x) for x in pieces.out] == [facts(x) for x in whole.out]
    for counter in ("upgraded", "garbage_bytes", "resyncs", "bad_framing", "tunnel_bytes"):
        assert getattr(pieces.parser, counter) == getattr(whole.parser, counter), counter
    assert len({id(x) for x in whole.out}) == len(whole.out), "an exchange came out twice"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.binary(max_size=80))), st.booleans())
def test_any_bytes_do_no_harm(ops, joined):
    parser = Http1(lambda *_: None, joined)
    for kind, direction, data in ops:
        if kind <= 1:
            parser.feed(direction, data, 1)
        elif kind == 2:
            parser.gap(direction, len(data), 1)
        else:
            parser.eof(direction, 1)
        assert parser.held() <= sum(len(data) for _, _, data in ops)
    for exchange in parser.close(2):
        assert exchange.request is not None or exchange.response is not None
        assert exchange.state != "complete" or (exchange.request and exchange.response)
        assert facts(exchange)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=12)), max_size=8).map(b"".join))
def test_scanning_agrees_with_reading(block):
    head = b"GET / HTTP/1.1\n" + block.replace(b"\n\n", b"\n")

    scanned = scan_framing(b"..." + head + b"\nContent-Length: 1", 3, 3 + len(head) + 1)

    fields = read_fields(head.split(b"\n")[1:])
    assert scanned in (UNUSUAL, fields.framing)
    assert fields.framing >= OTHER_CODING
    assert scanned == UNUSUAL or not fields.upgrade


# ---- against h11 --------------------------------------------------------------------------------

token = st.text("abcXYZ-019", min_size=1, max_size=9).map(str.encode)
value = st.text('abc XYZ,;="/é', max_size=12).map(lambda text: text.strip().encode())
extra_headers = st.lists(st.tuples(token.map(lambda name: b"X-" + name), value), max_size=4)
body = st.one_of(st.just(b""), st.binary(min_size=1, max_size=60))
framing = st.sampled_from(["none", "length", "chunked"])
exchange_shape = st.tuples(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"BREW"]),
    st.text("/?abc=%20&", max_size=8).map(lambda text: b"/" + text.encode()),
    extra_headers,
    framing,
    body,
    st.sampled_from([200, 404, 204, 304, 500]),
    extra_headers,
    st.sampled_from(["length", "chunked"]),
    body,
    extra_headers,
    st.lists(st.sampled_from([100, 103]), max_size=2),
)


def serialise(connection, headers, how, data, head, trailers) -> bytes:
    """One message by h11's writer; ``head`` makes its first event."""
    framed = [*headers, (b"Host", b"h")]
    if how == "length":
        framed.append((b"Content-Length", b"%d" % len(data)))
    elif how == "chunked":
        framed.append((b"Transfer-Encoding", b"chunked"))
    out = connection.send(head(framed))
    if data and how != "none":
        out += connection.send(h11.Data(data=data))
    return out + connection.send(h11.EndOfMessage(headers=trailers if how == "chunked" else []))


def read_by_h11(connection) -> tuple[list, bytes, list]:
    """The next final message that h11 reads: (its events' facts)."""
    heads, data, trailers = [], b"", []
    while True:
        event = connection.next_event()
        if isinstance(event, (h11.Request, h11.Response, h11.InformationalResponse)):
            heads.append(event)
        elif isinstance(event, h11.Data):
            data += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            trailers = [(bytes(n), bytes(v)) for n, v in event.headers.raw_items()]
            return heads, data, trailers
        else:
            assert event is None, "h11 wants more than one whole message"


@settings(max_examples=250, deadline=None)
@given(st.lists(exchange_shape, min_size=1, max_size=4), st.integers(0, 7), st.booleans())
def test_same_as_h11(shapes, step, pipelined):
    client, server = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER)
    wire, expected = [], []
    for method, target, asked, how, data, status, answered, how_back, data_back, trailers, interim in shapes:
        up = serialise(
            client,
            asked,
            how,
            data,
            lambda h, m=method, t=target: h11.Request(method=m, target=t, headers=h),
            trailers,
        )
        server.receive_data(up)
        (head,), body_seen, up_trailers = read_by_h11(server)
        down = b"".join(
            server.send(h11.InformationalResponse(status_code=code, headers=[], reason=b"Wait"))
            for code in interim
        )
        bodiless = method == b"HEAD" or status in (204, 304)
        down += serialise(
            server,
            answered,
            how_back,
            b"" if bodiless else data_back,
            lambda h, s=status: h11.Response(status_code=s, headers=h, reason=b"Why"),
            [] if bodiless else trailers,
        )
        client.receive_data(down)
        heads, body_back, down_trailers = read_by_h11(client)
        wire.append((up, down))
        expected.append((head, body_seen, up_trailers, heads, body_back, down_trailers))
        client.start_next_cycle()
        server.start_next_cycle()

    player = Player()
    ops = [(0, up) for up, _ in wire] + [(1, down) for _, down in wire] if pipelined else []
    ops = ops or [op for up, down in wire for op in ((0, up), (1, down))]
    for direction, data in ops:
        for at in range(0, len(data), step or len(data)):
            player.feed(direction, data[at : at + (step or len(data))])

    assert len(player.out) == len(expected)
    for exchange, (head, body_seen, up_trailers, heads, body_back, down_trailers) in zip(
        player.out, expected, strict=True
    ):
        request, response = exchange.request, exchange.response
        assert exchange.state == "complete"
        assert (exchange.user or (b"", b"")) == (body_seen, body_back)
        assert request.method.encode() == head.method
        assert request.path.encode() == head.target
        assert headers_of(request) == [(bytes(n), bytes(v)) for n, v in head.headers.raw_items()]
        assert trailers_of(request) == up_trailers
        assert (response.status, response.reason) == (heads[-1].status_code, "Why")
        assert response.interim == [event.status_code for event in heads[:-1]]
        assert headers_of(response) == [(bytes(n), bytes(v)) for n, v in heads[-1].headers.raw_items()]
        assert trailers_of(response) == down_trailers
        assert request.body_size == len(body_seen)
        assert response.body_size == len(body_back)
    assert sum(x.request.body_size + x.request.overhead_size for x in player.out) == sum(
        len(up) for up, _ in wire
    )
    assert sum(x.response.body_size + x.response.overhead_size for x in player.out) == sum(
        len(d) for _, d in wire
    )


def headers_of(message) -> list:
    return message.headers[: message.trailer_start]


def trailers_of(message) -> list:
    return message.headers[message.trailer_start :] if message.trailer_start is not None else []
