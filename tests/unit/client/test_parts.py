"""Parts of bodies find their exchange, in order, with every hole known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.parts import PART_OVERHEAD, PartStore, join
from spliffd.pb import spliff_pb2 as pb


def part(offset: int, data: bytes, key: int = 7, response: bool = True) -> pb.BodyPart:
    return pb.BodyPart(part_key=key, response=response, offset=offset, data=data)


def test_parts_are_joined_in_the_order_of_their_offsets():
    store = PartStore()
    store.add(part(5, b" world"))
    store.add(part(0, b"hello"))
    store.add(part(0, b"question", response=False))
    exchange = pb.Exchange(part_key=7)
    exchange.response.body, exchange.response.body_offset = b"!", 11
    exchange.request.body_offset = 8
    request, response = store.take(exchange)
    assert request.data == b"question"
    assert response.data == b"hello world!"
    assert not request.holes
    assert not response.holes
    assert store.waiting_bytes == 0
    assert 7 not in store


def test_an_exchange_without_parts_keeps_its_own_body():
    exchange = pb.Exchange(response=pb.Response(body=b"whole"))
    assert PartStore().take(exchange)[1].segments == ((0, b"whole"),)


@pytest.mark.parametrize(
    ("parts", "body", "offset", "limit", "data", "holes"),
    [
        ([(0, b"ab"), (4, b"ef")], b"", 6, 0, b"abef", ((2, 2),)),
        ([(3, b"de")], b"f", 5, 0, b"def", ((0, 3),)),
        ([(0, b"ab")], b"", 100, 0, b"ab", ((2, 98),)),
        ([(0, b"ab")], b"", 100, 2, b"ab", ()),
        ([(0, b"a")], b"", 100, 2, b"a", ((1, 99),)),
        ([(0, b"abc"), (1, b"bcd"), (0, b"abc")], b"de", 3, 0, b"abcde", ()),
        ([], b"", 0, 0, b"", ()),
    ],
)
def test_holes_and_overlaps(parts, body, offset, limit, data, holes):
    joined = join(parts, body, offset, limit)
    assert joined.data == data
    assert joined.holes == holes


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=8),
    st.integers(0, 60),
)
def test_what_arrived_is_shown_where_it_was_and_the_rest_is_missing(whole, cuts, offset):
    offset = min(offset, len(whole))
    parts = [(at, whole[at : at + n]) for at, n in cuts if at + n <= offset]
    joined = join(parts, whole[offset:], offset, 0)
    assert all(whole[at : at + len(data)] == data for at, data in joined.segments)
    assert len(joined.data) + joined.missing == len(whole)
    covered = {i for at, data in joined.segments for i in range(at, at + len(data))}
    expected = {i for at, data in parts for i in range(at, at + len(data))} | set(range(offset, len(whole)))
    assert covered == expected


def test_discarded_parts_are_forgotten():
    store = PartStore()
    store.add(part(0, b"x" * 100, key=1))
    store.add(part(0, b"y" * 100, key=2))
    store.discard([1, 99])
    assert store.waiting_bytes == 100 + PART_OVERHEAD
    assert 1 not in store
    assert 2 in store


def test_a_full_store_drops_counts_and_shows_the_hole():
    store = PartStore(capacity=2 * (10 + PART_OVERHEAD))
    for offset in (0, 10, 20):
        store.add(part(offset, b"z" * 10))
    assert store.take_loss() == (1, 10)
    assert store.take_loss() == (0, 0)
    exchange = pb.Exchange(part_key=7)
    exchange.response.body, exchange.response.body_offset = b"end", 30
    assert store.take(exchange)[1].holes == ((20, 10),)
    assert store.waiting_bytes == 0
    store.add(part(0, b"z" * 10))
    assert store.take_loss() == (0, 0)


def test_a_body_whose_end_was_dropped_shows_the_hole():
    store = PartStore(capacity=10 + PART_OVERHEAD)
    for offset in range(0, 1009, 10):
        store.add(part(offset, b"z" * 10))
    assert store.take_loss() == (100, 1000)
    assert store.waiting_bytes == 10 + 2 * PART_OVERHEAD
    assert store.take(pb.Exchange(part_key=7))[1].holes == ((10, 1000),)
