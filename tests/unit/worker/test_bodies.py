"""Pieces of a body in, runs without a hole out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spliffd.worker.bodies import Bodies, Half


def test_pieces_that_join_come_out_as_one():
    half = Half()
    half.add(10, b"abc")
    assert half.joins(13)
    assert not half.joins(14)
    half.add(13, b"de")
    assert half.size == 5
    assert half.take() == (10, b"abcde", b"")
    assert (half.size, half.pieces) == (0, [])


def test_a_run_may_begin_anywhere_after_a_take():
    half = Half()
    assert half.joins(99)
    half.add(0, b"a")
    half.take()
    assert half.joins(99)
    half.add(99, b"b")
    assert half.take() == (99, b"b", b"")


def test_one_piece_is_not_copied():
    half, piece = Half(), b"x" * 1000
    half.add(0, piece)
    assert half.take()[1] is piece


def test_the_halves_are_two():
    bodies = Bodies()
    bodies.request.add(0, b"question")
    bodies.response.add(0, b"answer")
    assert bodies.request.take() == (0, b"question", b"")
    assert bodies.response.take() == (0, b"answer", b"")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.integers(0, 2), st.booleans())))
def test_every_byte_comes_out_once_at_its_place(pieces):
    half, offset = Half(), 0
    expected: dict[int, int] = {}
    found: dict[int, int] = {}

    def take() -> None:
        at, data, raw = half.take()
        assert raw == b""
        for i, byte in enumerate(data):
            assert at + i not in found
            found[at + i] = byte

    for data, hole, flush in pieces:
        offset += hole
        if half.pieces and (flush or not half.joins(offset)):
            take()
        half.add(offset, data)
        expected |= {offset + i: byte for i, byte in enumerate(data)}
        offset += len(data)
    if half.pieces:
        take()
    assert found == expected
