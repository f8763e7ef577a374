"""Data frames that the kernel left out: the same exchanges as with them; and nonsense does no harm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols.http2 import REQUEST, RESPONSE, Http2
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.http2_unwanted import LARGE_BODY, Part, Skipped
from spliffd.protocols.messages import COMPLETE, GAP, HttpExchange
from tests.unit.protocols.http2_transcripts import GET, OK, POST, Peer, facts, frame
from tests.unit.protocols.test_http2_properties import counters

SETTINGS = frame(4, 0, 0)
STREAMS = (1, 3, 5)


def begun(on_body=None, request=GET, answer=OK) -> Http2:
    """Three responses of which the heads were read."""
    parser, up, down = Http2(on_body), Peer(), Peer()
    parser.feed(REQUEST, PREFACE + SETTINGS, 0)
    parser.feed(RESPONSE, SETTINGS, 0)
    for number in STREAMS:
        parser.feed(REQUEST, up.headers(number, request, end=request is GET), 0)
        parser.feed(RESPONSE, down.headers(number, answer), 0)
    return parser


def data(stream: int, size: int, flags: int = 0) -> bytes:
    return frame(0, flags, stream, bytes(size))


class Walk:
    """What the kernel does (bpf/frames.bpf.c), on the whole stream at once: frame by frame."""

    def __init__(self, stream: list[bytes], permitted: tuple[int, ...]) -> None:
        self.permitted = permitted
        self.spans: list[tuple[int, int, int, bool]] = []
        """Begin and end of each frame, its stream, and whether it may be left out."""
        at = 0
        for each in stream:
            number = int.from_bytes(each[5:9])
            plain = each[3] == 0 and not each[4] & 9 and number in permitted
            self.spans.append((at, at + len(each), number, plain))
            at += len(each)

    def skipped(self, start: int, end: int) -> Skipped | None:
        """What is told of the calls from ``start`` to ``end``, if they may be left out."""
        parts = {number: [0, 0] for number in self.permitted}
        left = current = 0
        for begin, over, number, plain in self.spans:
            if over <= start or begin >= end:
                continue
            if not plain or end < begin + 9:
                return None
            parts[number][0] += begin + 9 > start
            parts[number][1] += max(0, min(over, end) - max(begin + 9, start))
            left, current = over - min(over, end), number
        told = tuple(Part(number, *numbers) for number, numbers in parts.items())
        return Skipped(end - start, told, left, current)


a_frame = st.one_of(
    st.builds(data, st.sampled_from(STREAMS), st.integers(0, 60)),
    st.builds(data, st.just(1), st.integers(0, 60)),
    st.builds(lambda n: frame(0, 8, 1, b"\x02" + bytes(n + 2)), st.integers(0, 20)),
    st.sampled_from([frame(6, 0, 0, bytes(8)), frame(8, 0, 1, bytes(4)), frame(3, 0, 3, bytes(4))]),
)
cuts = st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=40)


@settings(max_examples=600, deadline=None)
@given(st.lists(a_frame, max_size=25), cuts, st.sampled_from([(1,), (1, 3), (1, 3, 5)]))
def test_whatever_is_left_out_makes_no_difference(some, calls, permitted):
    stream = [*some, *(data(number, 2, 1) for number in STREAMS)]
    whole, pieces = begun(), begun()
    walk, text = Walk(stream, permitted), b"".join(stream)
    expected, out = list(whole.feed(RESPONSE, text, 7)), []
    at = 0
    for size, leave_out in [*calls, (len(text), False)]:
        end = min(len(text), at + size)
        skipped = walk.skipped(at, end) if leave_out and end > at else None
        if skipped is not None:
            assert pieces.skip(RESPONSE, skipped, 7)
        else:
            out += pieces.feed(RESPONSE, text[at:end], 7)
        at = end

    expected += whole.close(8)
    out += pieces.close(8)
    assert [facts(each) for each in out] == [facts(each) for each in expected]
    assert [times(each) for each in out] == [times(each) for each in expected]
    assert counters(pieces) == counters(whole)


def times(exchange: HttpExchange) -> list[tuple[int, int]]:
    return [
        (half.start_ns, half.end_ns) for half in (exchange.request, exchange.response) if half is not None
    ]


number = st.one_of(st.integers(0, 70), st.integers(0, (1 << 64) - 1))
nonsense = st.builds(
    Skipped,
    number,
    st.lists(st.builds(Part, st.sampled_from([0, 1, 3, 7]), number, number), max_size=4).map(tuple),
    number,
    st.sampled_from([0, 1, 3, 7]),
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.one_of(a_frame, st.binary(max_size=30)), nonsense), max_size=9),
    st.booleans(),
)
def test_nonsense_is_refused_and_changes_nothing(steps, joined):
    parser = Http2(None, joined=True) if joined else begun()
    untouched = Http2(None, joined=True) if joined else begun()
    for direction, before, skipped in steps:
        cut = before[: skipped.size % (len(before) + 1)]
        out = [facts(each) for each in parser.feed(direction, cut, 1)]
        if parser.skip(direction, skipped, 1):
            parser.close(2)
            return
        assert [facts(each) for each in untouched.feed(direction, cut, 1)] == out
        assert parser.held() == untouched.held()
    assert [facts(each) for each in parser.close(2)] == [facts(each) for each in untouched.close(2)]


@pytest.mark.parametrize(
    "skipped",
    [
        Skipped(51, (Part(1, 0, 51),), 0, 1),
        Skipped(40, (Part(1, 0, 40),), 11, 1),
        Skipped(40, (Part(3, 0, 40),), 10, 3),
        Skipped(49, (Part(1, 1, 40),), 10, 1),
        Skipped(60, (Part(1, 0, 50), Part(3, 1, 1)), 5, 1),
        Skipped(60, (Part(1, 0, 49), Part(3, 1, 2)), 5, 3),
        Skipped(59, (Part(3, 1, 50),), 5, 3),
        Skipped(59, (Part(1, 1, 51),), 5, 3),
        Skipped(59, (Part(1, 1, 50),), 1 << 24, 1),
        Skipped(58, (Part(1, 1, 50),), 0, 1),
        Skipped(0, (), 0, 0),
    ],
    ids=str,
)
def test_of_a_frame_with_50_bytes_left_that_cannot_be(skipped):
    parser = begun()
    parser.feed(RESPONSE, data(1, 100)[:59], 1)

    assert not parser.skip(RESPONSE, skipped, 2)


@pytest.mark.parametrize("before", [data(1, 9, 1)[:12], frame(0, 8, 1, b"\x05" * 9)[:12]])
def test_behind_such_a_frame_nothing_is_left_out(before):
    parser = begun()
    parser.feed(RESPONSE, before, 1)
    left = 9 + 9 - len(before)

    assert not parser.skip(RESPONSE, Skipped(left, (Part(1, 0, left),), 0, 1), 2)


def test_whoever_wants_bodies_by_now_is_told_of_the_gap():
    got = []
    parser = begun()
    parser.feed(RESPONSE, data(1, 100)[:59], 1)
    parser.on_body = lambda _exchange, _is_response, body: got.append(len(body))
    assert parser.skip(RESPONSE, Skipped(40, (Part(1, 0, 40),), 10, 1), 2)
    out = parser.feed(RESPONSE, data(1, 100)[99:] + data(1, 3, 1), 3)

    assert [(e.state, e.missing_bytes, e.response.body_size) for e in out] == [(GAP, 40, 103)]
    assert got == [10, 3]


def test_a_stream_that_was_reset_meanwhile_is_stray():
    parser = begun()
    parser.feed(RESPONSE, data(1, 100)[:59], 1)
    parser.feed(REQUEST, frame(3, 0, 1, bytes(4)), 1)
    assert parser.skip(RESPONSE, Skipped(159, (Part(1, 1, 150),), 0, 1), 2)
    out = parser.feed(RESPONSE, data(3, 2, 1), 3)

    assert parser.streams.stray_bytes == 150
    assert [(e.stream_id, e.state, e.response.body_size) for e in out] == [(3, COMPLETE, 2)]


# ---- whose bodies ----------------------------------------------------------------------------------


def large(parser: Http2, direction: int = RESPONSE) -> int:
    parser.feed(direction, data(1, LARGE_BODY), 1)
    return parser.unwanted_stream(direction)


def test_of_a_large_body_nobody_knows_the_end():
    parser = begun()
    parser.feed(RESPONSE, data(1, LARGE_BODY - 1), 1)
    assert parser.unwanted_stream(RESPONSE) == 0
    parser.feed(RESPONSE, data(1, 1), 1)
    assert parser.unwanted_stream(RESPONSE) == 1
    assert parser.unwanted_stream(REQUEST) == 0
    parser.feed(RESPONSE, data(1, 1, 1), 1)
    assert parser.unwanted_stream(RESPONSE) == 0


def test_uploads_as_well():
    assert large(begun(request=POST), REQUEST) == 1


@pytest.mark.parametrize(
    ("request_fields", "answer"),
    [
        (
            [*POST, ("content-type", "application/grpc")],
            [(":status", "200"), ("content-type", "application/grpc")],
        ),
        ([(":method", "CONNECT"), (":authority", "h:443")], [(":status", "200")]),
        (
            [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]],
            [(":status", "200")],
        ),
        (GET, [(":status", "200"), ("content-type", "text/event-stream; charset=utf-8")]),
    ],
    ids=["grpc", "tunnel", "websocket", "events"],
)
def test_what_must_be_read_is_never_left_out(request_fields, answer):
    assert large(begun(request=request_fields, answer=answer)) == 0
