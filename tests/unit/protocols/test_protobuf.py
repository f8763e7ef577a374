"""Wire format primitives against protobuf's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.protobuf import (
    MAX_CONSTANTS,
    SMALL,
    Field,
    constants,
    size_table,
    to_utf8,
    varint,
    varint_field,
)

ID = Field(pb.Exchange, "id")
EDGES = [
    0,
    1,
    127,
    128,
    SMALL - 1,
    SMALL,
    (1 << 14) - 1,
    1 << 14,
    (1 << 21) - 1,
    1 << 21,
    (1 << 28) - 1,
    1 << 28,
]


@pytest.mark.parametrize("number", [*EDGES, (1 << 63) - 1, (1 << 64) - 1])
def test_varints_at_the_edges(number):
    assert ID.tag + varint(number) == pb.Exchange(id=number).SerializeToString() or number == 0
    assert pb.Exchange.FromString(ID.tag + varint(number)).id == number


@given(st.integers(-(1 << 70), 1 << 70))
def test_any_number_is_clamped_to_64_bits(number):
    assert pb.Exchange.FromString(ID.tag + varint(number)).id == min(max(number, 0), (1 << 64) - 1)


@given(st.one_of(st.text(), st.binary()))
def test_any_text_becomes_utf8(value):
    assert to_utf8(value).decode() is not None


def test_bytes_that_are_no_utf8_are_latin1():
    assert to_utf8(b"\xe9") == b"\xc3\xa9"
    assert to_utf8(b"\xc3\xa9") == b"\xc3\xa9"
    assert to_utf8("\udc80") == b"?"


def test_fields_of_every_kind():
    assert Field(pb.Exchange, "protocol").encode("http1") == pb.Exchange(protocol="http1").SerializeToString()
    assert (
        Field(pb.Exchange, "tls").encode(b"\x0a\x01x")
        == pb.Exchange(tls={"library": "x"}).SerializeToString()
    )
    assert Field(pb.Response, "interim").tag == pb.Response(interim=[100]).SerializeToString()[:1]
    assert ID.encode(0) == Field(pb.Exchange, "protocol").encode("") == b""
    with pytest.raises(KeyError):
        Field(pb.Exchange, "no_such_field")


def test_size_tables():
    table = size_table(b"\x0a")

    assert table[5] == b"\x0a\x05"
    assert varint_field(table[0], 300_000) == b"\x0a" + varint(300_000)


def test_constants_are_remembered_up_to_a_limit():
    encode = constants((Field(pb.Response, "status"), Field(pb.Response, "reason")))

    assert encode(200, "OK") is encode(200, "OK")
    assert pb.Response.FromString(encode(404, "")) == pb.Response(status=404)
    for number in range(MAX_CONSTANTS + 5):
        encode(number, "x")
    assert encode(99999, "y") is not encode(99999, "y")
    assert encode(1, "long" * 99) is not encode(1, "long" * 99)
