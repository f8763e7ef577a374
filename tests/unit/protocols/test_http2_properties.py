"""Any bytes, any cut, any gap: no exception, bounded memory, the same exchanges; and what h2 says."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from spliffd.protocols import http2_frames, http2_table
from spliffd.protocols.hpack import UNKNOWN
from spliffd.protocols.http2 import REQUEST, RESPONSE, Http2
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.http2_search import SEARCH_KEEP
from tests.unit.protocols.http2_transcripts import GET, OK, Peer, Player, facts, frame

MOST_HELD = 2 * (http2_frames.MAX_BLOCK + 2 * http2_frames.MAX_BLOCK + 2 * SEARCH_KEEP)

up, down = Peer(), Peer()
PIECES = [
    PREFACE,
    PREFACE[:10],
    *(up.headers(n, GET, end=bool(n & 2)) for n in (1, 3, 5, 2)),
    *(up.headers(n, [*GET, ("x", "y"), ("content-type", "application/grpc")]) for n in (1, 7)),
    *(down.headers(n, OK, end=bool(n & 2)) for n in (1, 3, 5, 2)),
    down.headers(1, [(":status", "103")]),
    down.headers(1, [("grpc-status", "0")], end=True),
    b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\x82\x84\x80\xbe",
    *(frame(0, flags, n, b"\x00\x00\x00\x00\x02hi") for n in (0, 1, 3) for flags in (0, 1, 8, 9)),
    frame(0, 0, 1, b"x" * 40),
    frame(0, 0, 1, b"x" * 40)[:20],
    frame(1, 0, 1, b"\x82"),
    frame(9, 0, 1, b"\x84"),
    frame(9, 4, 1, b"\x87"),
    frame(1, 0x2C, 3, b"\x01\x00\x00\x00\x00\x10\x82\x00"),
    frame(2, 0, 1, bytes(5)),
    *(frame(3, 0, n, bytes(4)) for n in (1, 3)),
    frame(3, 0, 1, bytes(3)),
    frame(4, 0, 0, bytes.fromhex("000100000000")),
    frame(4, 1, 0),
    frame(5, 4, 1, (2).to_bytes(4) + b"\x82\x84\x87"),
    frame(5, 0, 1, b"\x00"),
    frame(6, 0, 0, bytes(8)),
    frame(7, 0, 0, bytes(8)),
    frame(8, 0, 0, bytes(4)),
    frame(32, 255, 1, b"grease"),
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x01",
    b"HTTP/1.1 400 Bad\r\n\r\n",
]

piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=6))
chunk = st.lists(piece, min_size=1, max_size=6).map(b"".join)
operation = st.one_of(
    *[st.tuples(st.just("feed"), st.integers(0, 1), chunk)] * 4,
    st.tuples(st.just("gap"), st.integers(0, 1), st.integers(0, 60)),
    st.tuples(st.just("eof"), st.integers(0, 1), st.none()),
)
operations = st.lists(operation, max_size=14)


def run(ops, joined: bool, cut, *, begun: bool = False) -> Player:
    """Plays ``ops``; ``cut(data)`` says in which pieces each feed comes."""
    player = Player(joined, begun=begun)
    fed = 1 << 10
    for kind, direction, value in ops:
        if kind == "feed":
            fed += len(value)
            for part in cut(value):
                player.feed(direction, part)
                assert player.parser.held() <= min(fed, MOST_HELD)
        elif kind == "gap":
            player.gap(direction, value)
        else:
            player.eof(direction)
    player.close()
    return player


COUNTERS = (
    *("resyncs", "garbage_bytes", "broken_blocks", "unknown_fields", "oversized_blocks", "control_frames"),
    *("streams.resets", "streams.stray_frames", "streams.stray_bytes", "streams.reaped"),
)


def counters(parser: Http2) -> dict:
    return {
        name: getattr(parser.streams if "." in name else parser, name.split(".")[-1]) for name in COUNTERS
    }


@settings(max_examples=400, deadline=None)
@given(operations, st.booleans(), st.booleans(), st.integers(1, 9))
def test_pieces_make_no_difference(ops, joined, begun, step):
    whole = run(ops, joined, lambda data: [data], begun=begun)

    cut = lambda data: [data[at : at + step] for at in range(0, len(data), step)]  # noqa: E731
    pieces = run(ops, joined, cut, begun=begun)

    assert [facts(x) for x in pieces.out] == [facts(x) for x in whole.out]
    assert counters(pieces.parser) == counters(whole.parser)
    assert len({id(x) for x in whole.out}) == len(whole.out), "an exchange came out twice"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.binary(max_size=80))), st.booleans())
def test_any_bytes_do_no_harm(ops, joined):
    parser = Http2(lambda *_: None, joined=joined)
    for kind, direction, data in ops:
        if kind <= 1:
            parser.feed(direction, data, 1)
        elif kind == 2:
            parser.gap(direction, len(data), 1)
        else:
            parser.eof(direction, 1)
        assert parser.held() <= sum(len(data) for _, _, data in ops)
        assert len(parser.streams.open) <= http2_table.MAX_STREAMS
    for exchange in parser.close(2):
        assert exchange.request is not None or exchange.response is not None
        assert exchange.state != "complete" or (exchange.request and exchange.response)
        assert facts(exchange)


# ---- against h2 ---------------------------------------------------------------------------------------

token = st.text("abcxyz-019", min_size=1, max_size=9).map("x-{}".format)
value = st.text('abc XYZ,;="/', max_size=30).map(str.strip)
fields = st.lists(st.tuples(token, value), max_size=6)
body = st.lists(st.binary(max_size=300), max_size=4)
exchange = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["/", "/a", "/b?q=1"]),
        "headers": fields,
        "body": body,
        "trailers": st.lists(st.tuples(token, value), max_size=2),
        "status": st.sampled_from(["200", "204", "302", "404", "599"]),
        "interim": st.booleans(),
        "answer_headers": fields,
        "answer": body,
        "answer_trailers": st.lists(st.tuples(token, value), max_size=2),
        "padding": st.sampled_from([None, 0, 7]),
        "resets": st.sampled_from(["", "", "", "", "client", "server"]),
    }
)
conversations = st.lists(exchange, min_size=1, max_size=7)


def write(connection, stream_id, headers, parts, trailers, padding):
    last = 2 + len(parts) if trailers else 1 + len(parts)
    connection.send_headers(stream_id, headers, end_stream=last == 1)
    yield
    for number, part in enumerate(parts):
        connection.send_data(stream_id, part, end_stream=number + 2 == last, pad_length=padding)
        yield
    if trailers:
        connection.send_headers(stream_id, trailers, end_stream=True)
        yield


def converse(exchanges) -> tuple[list[tuple[int, bytes]], dict]:
    """Two h2 ends talk; returns what each wrote, in order, and by stream what the other ends said they read."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=False))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=False))
    wire: list[tuple[int, bytes]] = []
    read: dict = {}

    def flush() -> None:
        moved = True
        while moved:
            moved = False
            for direction, one, other in ((REQUEST, client, server), (RESPONSE, server, client)):
                data = one.data_to_send()
                if data:
                    moved = True
                    wire.append((direction, data))
                    note(direction, other.receive_data(data))

    def note(direction, events) -> None:
        for event in events:
            stream_id = getattr(event, "stream_id", None)
            half = read.setdefault(stream_id, ({}, {}))[direction]
            if isinstance(event, (h2.events.RequestReceived, h2.events.ResponseReceived)):
                half["headers"] = list(event.headers)
            elif isinstance(event, h2.events.TrailersReceived):
                half["trailers"] = list(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                half["body"] = half.get("body", b"") + event.data
            elif isinstance(event, h2.events.StreamEnded):
                half["ended"] = True
            elif isinstance(event, h2.events.StreamReset):
                read[stream_id][0]["reset"] = True

    client.initiate_connection()
    server.initiate_connection()
    flush()
    writers = []
    for number, x in enumerate(exchanges):
        stream_id = 2 * number + 1
        head = [(":method", "POST"), (":scheme", "https"), (":authority", "h"), (":path", x["path"])]
        ways = write(client, stream_id, head + x["headers"], x["body"], x["trailers"], x["padding"])
        writers.append((stream_id, x, ways))
        next(ways)
        flush()
    for stream_id, x, ways in writers:
        if x["resets"]:
            (client if x["resets"] == "client" else server).reset_stream(stream_id, 8)
            flush()
            continue
        for _ in ways:
            flush()
        if x["interim"]:
            server.send_headers(stream_id, [(":status", "103"), ("link", "</a>")])
        answer = [(":status", x["status"]), *x["answer_headers"]]
        for _ in write(server, stream_id, answer, x["answer"], x["answer_trailers"], x["padding"]):
            flush()
    return wire, read


@settings(max_examples=120, deadline=None)
@given(conversations, st.integers(0, 40))
def test_what_h2_reads(exchanges, step):
    wire, read = converse(exchanges)
    player = Player()
    for direction, data in wire:
        for at in range(0, len(data), step or len(data)):
            player.feed(direction, data[at : at + (step or len(data))])
    player.close()

    assert player.parser.resyncs == player.parser.broken_blocks == player.parser.unknown_fields == 0
    assert sorted(x.stream_id for x in player.out) == [2 * n + 1 for n in range(len(exchanges))]
    for x in player.out:
        halves = read[x.stream_id]
        assert x.state == ("aborted" if "reset" in halves[0] else "complete")
        for message, half in zip((x.request, x.response), halves, strict=True):
            if "headers" not in half:
                assert message is None
                continue
            first = message.trailer_start
            expected = dict(h for h in half["headers"] if h[0].startswith(b":"))
            if message is x.request:
                assert expected[b":path"].decode() == message.path
            else:
                assert int(expected[b":status"]) == message.status
            assert message.headers[:first] == [h for h in half["headers"] if not h[0].startswith(b":")]
            assert (message.headers[first:] if first is not None else []) == half.get("trailers", [])
            assert message.body_size == len(half.get("body", b""))
        assert x.user is None or x.user == tuple(half.get("body", b"") for half in halves)


def touched(written: bytes, start: int, end: int) -> set[int]:
    """The streams of which a frame of ``written`` lies in the gap, as a whole or in part."""
    at = len(PREFACE) if written.startswith(PREFACE) else 0
    streams = set()
    while at < len(written):
        length = int.from_bytes(written[at : at + 3])
        if at < end and at + 9 + length > start:
            streams.add(int.from_bytes(written[at + 5 : at + 9]))
        at += 9 + length
    return streams


def without_interim(found: dict) -> dict:
    """An interim response that is lost whole leaves no trace."""
    for half in (found["request"], found["response"]):
        if half is not None:
            half.pop("interim", None)
            del half["overhead_size"]
    return found


@settings(max_examples=200, deadline=None, phases=[Phase.generate, Phase.reuse, Phase.explicit])
@given(conversations, st.data())
def test_a_gap_costs_at_most_what_it_touches(exchanges, data):
    """One gap anywhere: exchanges that end before it are whole, nothing that is said of the others is wrong."""
    wire, _ = converse(exchanges)
    reference = Player()
    for direction, part in wire:
        reference.feed(direction, part)
    reference.close()
    truth = {x.stream_id: x for x in reference.out}

    number = data.draw(st.integers(0, len(wire) - 1), label="write")
    start = data.draw(st.integers(0, len(wire[number][1]) - 1), label="first byte lost")
    size = data.draw(st.integers(1, len(wire[number][1]) - start), label="bytes lost")
    player = Player()
    done_before = []
    for at, (direction, part) in enumerate(wire):
        if at == number:
            done_before = [x.stream_id for x in player.out]
            player.feed(direction, part[:start]).gap(direction, size).feed(direction, part[start + size :])
        else:
            player.feed(direction, part)
    player.close()

    seen = {x.stream_id: x for x in player.out}
    assert len(seen) == len(player.out), "a stream came out twice"
    assert seen.keys() <= truth.keys()
    for stream_id in done_before:
        assert facts(seen[stream_id]) == facts(truth[stream_id])
    for stream_id, x in seen.items():
        true = truth[stream_id]
        if x.state == "complete":
            assert without_interim(facts(x)) == without_interim(facts(true))
        for message, whole in ((x.request, true.request), (x.response, true.response)):
            if message is None:
                continue
            assert whole is not None
            names = ("method", "path") if message is x.request else ("status",)
            for name in names:
                assert getattr(message, name) in (getattr(whole, name), "", 0)
            for name, value in message.headers:
                assert UNKNOWN in (name, value) or (name, value) in [*whole.headers, (b"link", b"</a>")]
    assert truth.keys() - seen.keys() <= touched(wire[number][1], start, start + size)
