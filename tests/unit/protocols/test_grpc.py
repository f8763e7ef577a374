"""gRPC calls over HTTP/2: service, method, outcome, and messages counted whatever the cuts and gaps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols.grpc import MessageCounter
from spliffd.protocols.http2 import REQUEST, RESPONSE
from tests.unit.protocols.http2_transcripts import Player

CALL = [
    *((":method", "POST"), (":scheme", "https"), (":authority", "h"), (":path", "/pkg.Greeter/SayHello")),
    *(("content-type", "application/grpc+proto"), ("te", "trailers"), ("grpc-encoding", "identity")),
]
ANSWER = [(":status", "200"), ("content-type", "application/grpc+proto"), ("grpc-encoding", "gzip")]


def message(size: int, flags: int = 0) -> bytes:
    return bytes([flags]) + size.to_bytes(4) + b"m" * size


def begun() -> Player:
    return Player(begun=True)


def test_a_unary_call():
    p = begun()
    p.up(p.client.headers(1, CALL) + p.client.data(1, message(5), end=True))
    p.down(p.server.headers(1, ANSWER) + p.server.data(1, message(7, 1)))
    p.down(p.server.headers(1, [("grpc-status", "0"), ("grpc-message", "")], end=True))

    facts = p.out[0].grpc
    assert (facts.service, facts.method) == ("pkg.Greeter", "SayHello")
    assert (facts.status, facts.message, facts.encoding) == (0, "", "gzip")
    assert (facts.request_messages, facts.response_messages) == (1, 1)
    assert (facts.request_message_bytes, facts.response_message_bytes) == (5, 7)
    assert facts.compressed_messages == 1
    assert p.lines() == ["1 POST /pkg.Greeter/SayHello 200 complete"]


def test_streaming_both_ways_with_messages_across_frames():
    p = begun()
    p.up(p.client.headers(1, CALL))
    p.down(p.server.headers(1, ANSWER))
    sent = b"".join(message(size) for size in range(101))
    for at in range(0, len(sent), 37):
        p.up(p.client.data(1, sent[at : at + 37]))
    p.down(p.server.data(1, b"".join(message(1000) for _ in range(31))))
    p.up(p.client.data(1, b"", end=True))
    p.down(p.server.headers(1, [("grpc-status", "0")], end=True))

    facts = p.out[0].grpc
    assert (facts.request_messages, facts.response_messages) == (101, 31)
    assert (facts.request_message_bytes, facts.response_message_bytes) == (5050, 31000)


def test_trailers_only_with_an_encoded_message():
    p = begun()
    p.up(p.client.headers(1, CALL, end=True))
    p.down(
        p.server.headers(
            1, [*ANSWER[:2], ("grpc-status", "5"), ("grpc-message", "caf%C3%A9 %zz not found")], end=True
        )
    )

    assert (p.out[0].grpc.status, p.out[0].grpc.message) == (5, "café %zz not found")


@pytest.mark.parametrize("status", ["", "x", "-1", "99999999999", "٣"])
def test_a_status_that_is_none(status):
    p = begun()
    p.up(p.client.headers(1, CALL, end=True))
    p.down(p.server.headers(1, [*ANSWER, ("grpc-status", status)], end=True))

    assert p.out[0].grpc.status is None


def test_a_call_that_fails_before_grpc():
    p = begun()
    p.up(p.client.headers(1, CALL) + p.client.data(1, message(3), end=True))
    p.down(p.server.headers(1, [(":status", "502"), ("content-type", "text/html")]))
    p.down(p.server.data(1, b"<html>not messages</html>", end=True))

    facts = p.out[0].grpc
    assert (facts.status, facts.request_messages, facts.response_messages) == (None, 1, 0)


def test_an_ordinary_exchange_is_no_call():
    p = begun()
    p.up(p.client.headers(1, [*CALL[:4], ("content-type", "application/json")], end=True))
    p.down(p.server.headers(1, [(":status", "200"), ("content-type", "application/json")], end=True))

    assert p.out[0].grpc is None


def test_a_call_that_was_under_way_when_we_joined():
    p = Player(joined=True)
    p.down(p.server.data(1, message(500)) * 4)
    p.down(p.server.headers(1, [("grpc-status", "0")], end=True))

    assert p.lines() == ["1 - ? joined_mid_stream"]
    assert p.out[0].grpc.status == 0
    assert p.out[0].grpc.response_messages == 0, "where messages begin is not known"


def test_a_gap_inside_a_message_and_one_over_a_prefix():
    p = begun()
    p.up(p.client.headers(1, CALL) + p.client.headers(3, CALL))
    for stream_id, lost in ((1, slice(10, 60)), (3, slice(60, 140))):
        data = p.client.data(stream_id, message(100) * 3, end=True)
        p.up(data[: 9 + lost.start]).gap(REQUEST, lost.stop - lost.start).up(data[9 + lost.stop :])
        p.down(p.server.headers(stream_id, [*ANSWER[:2], ("grpc-status", "0")], end=True))

    assert [x.grpc.request_messages for x in p.out] == [3, 1]
    assert {x.state for x in p.out} == {"gap"}


def test_a_reset_call_keeps_its_counts():
    p = begun()
    p.up(p.client.headers(1, CALL, end=True))
    p.down(p.server.headers(1, ANSWER) + p.server.data(1, message(3) * 2))
    p.feed(RESPONSE, b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08")

    assert (p.out[0].state, p.out[0].grpc.response_messages) == ("aborted", 2)


def test_web_trailers_are_no_message():
    counter = MessageCounter()
    counter.feed(message(3) + message(20, 0x80))
    assert (counter.count, counter.size) == (1, 3)


sizes = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 1])), max_size=12)


@settings(max_examples=300, deadline=None)
@given(sizes, st.integers(1, 50))
def test_pieces_make_no_difference(messages, step):
    data = b"".join(message(size, flags) for size, flags in messages)
    counter = MessageCounter()
    for at in range(0, len(data), step):
        counter.feed(data[at : at + step])

    assert counter.count == len(messages)
    assert counter.size == sum(size for size, _ in messages)
    assert counter.largest == max([size for size, _ in messages], default=0)
    assert counter.compressed == sum(flags for _, flags in messages)


@settings(max_examples=300, deadline=None)
@given(sizes, st.integers(0, 300), st.integers(1, 60), st.integers(1, 50))
def test_a_gap_loses_count_or_nothing(messages, start, lost, step):
    data = b"".join(message(size, flags) for size, flags in messages)
    counter = MessageCounter()
    for part in (data[:start], None, data[start + lost :]):
        if part is None:
            counter.skip(len(data[start : start + lost]))
            continue
        for at in range(0, len(part), step):
            counter.feed(part[at : at + step])

    assert counter.count <= len(messages)
    assert counter.lost or counter.count == len(messages)
