"""Hand-made wire format against protobuf's own."""

from __future__ import annotations

import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given
from hypothesis import strategies as st

from spliffd.api import wire
from spliffd.pb import spliff_pb2 as pb


@given(st.one_of(st.integers(0, 1 << 15), st.integers(0, (1 << 64) - 1)))
def test_varints_are_protobufs(value):
    assert wire.varint(value) == _VarintBytes(value)


def test_an_entry_is_one_item_of_a_response():
    exchange = pb.Exchange(protocol="http1", request=pb.Request(path="/" * 300))
    entry = wire.entry("exchange", exchange.SerializeToString(), wire.ID_TAG, wire.varint(70000))

    response = pb.WatchResponse.FromString(entry + wire.entry("started", b""))

    assert [item.WhichOneof("kind") for item in response.items] == ["exchange", "started"]
    exchange.id = 70000
    assert response.items[0].exchange == exchange


@given(st.binary(max_size=300), st.integers(0, 1 << 40), st.booleans())
def test_body_pieces_merge_into_the_exchange(data, offset, response):
    message = pb.Exchange(request=pb.Request(path="/a"), response=pb.Response(status=200))
    merged = pb.Exchange.FromString(
        message.SerializeToString() + b"".join(wire.body_pieces(data, offset, response=response))
    )

    half = message.response if response else message.request
    half.body = data
    half.body_offset = offset
    assert merged == message


def test_what_was_not_sent_merges_into_completeness():
    message = pb.Exchange(completeness=pb.Completeness(state="gap", missing_bytes=3))

    merged = pb.Exchange.FromString(message.SerializeToString() + wire.not_sent_piece(1 << 33))

    assert merged.completeness == pb.Completeness(state="gap", missing_bytes=3, body_not_sent=1 << 33)


@given(st.binary(max_size=40), st.integers(0, 1 << 63), st.text(max_size=9))
def test_a_field_is_split_off(data, size, direction):
    chunk = pb.Chunk(data=data, size=size, direction=direction, process=pb.Process(pid=7))

    rest, value = wire.split_field(chunk.SerializeToString(), wire.DATA_FIELDS["chunk"])

    assert value == data
    chunk.ClearField("data")
    assert pb.Chunk.FromString(rest) == chunk


def test_fixed_size_fields_are_stepped_over():
    # No field of the contract is fixed-size today: 1 = fixed64, 2 = fixed32, 7 = bytes.
    message = b"\x09" + b"8" * 8 + b"\x15" + b"4" * 4 + b"\x3a\x02hi"

    assert wire.split_field(message, 7) == (message[:-4], b"hi")


@given(st.binary(max_size=60))
def test_garbage_is_split_or_refused(data):
    try:
        rest, value = wire.split_field(data, 7)
    except ValueError:
        return
    assert len(rest) + len(value) <= len(data)


@pytest.mark.parametrize("broken", [b"\x3a", b"\x3a\x05abc", b"\x0b", b"\x08" + b"\xff" * 11, b"\x0d12"])
def test_broken_messages_are_refused(broken):
    with pytest.raises(ValueError, match=r"message|wire type|number|field"):
        wire.split_field(broken, 7)
