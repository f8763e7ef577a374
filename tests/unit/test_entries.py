"""Exchanges that go together: what the api sends parses as what the worker wrote, each with its id."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.api.delivery import Delivery
from spliffd.entries import Entries, Writer
from spliffd.pb import spliff_pb2 as pb

NOTHING_KNOWN = ipc.encode(ipc.UNKNOWN)
"""In place of a summary that is empty."""

ids = st.integers(1, (1 << 49) - 1000)
exchanges = st.lists(
    st.tuples(
        # Lengths of lengths change at 128, 16,384 and 2,097,152; the table of heads ends at 2,048.
        st.sampled_from(
            [0, 1, 90, 100, 109, 110, 111, 112, 113, 120, 2000, 2040, 2041, 2100, 16_360, 70_000]
        ),
        st.binary(max_size=40),
        st.integers(-1, (1 << 32) - 1),
    ),
    min_size=1,
    max_size=12,
)


def message(size: int) -> bytes:
    return pb.Exchange(request=pb.Request(path="p" * size)).SerializeToString()


def sent(told: ipc.Exchanges) -> ipc.Exchanges:
    """As it comes out of the datagram."""
    (one,) = ipc.decode_batch(ipc.encode([told]))
    assert isinstance(one, ipc.Exchanges)
    return one


@given(exchanges, ids)
def test_what_comes_out_is_what_went_in(made, first):
    writer = Writer()
    for size, summary, uid in made:
        writer.add(message(size), summary, uid)
    assert len(writer) == len(made)
    entries = Entries(sent(writer.take()), first)
    assert len(writer) == 0

    items = pb.WatchResponse.FromString(bytes(entries.data)).items
    assert [item.exchange.id for item in items] == list(range(first, first + len(made)))
    assert [len(item.exchange.request.path) for item in items] == [size for size, _, _ in made]
    assert list(entries.uids) == [uid for _, _, uid in made]
    for index, (size, summary, uid) in enumerate(made):
        told = summary or NOTHING_KNOWN
        assert entries.frame(index) == ipc.Frame(ipc.EXCHANGE, 0, told, message(size), uid=uid)
        (item,) = pb.WatchResponse.FromString(entries.entry(index)).items
        assert item == items[index]
    for start in range(len(made)):
        some = pb.WatchResponse.FromString(bytes(entries.slice(start, len(made)))).items
        assert list(some) == list(items[start:])


def test_ids_go_on_where_a_byte_of_theirs_is_full():
    for first in (1, 120, 16_300, (1 << 21) - 50, (1 << 28) - 50, (1 << 35) - 50, (1 << 42) - 50):
        writer = Writer()
        for _ in range(200):
            writer.add(b"", b"", 0)
        entries = Entries(sent(writer.take()), first)
        items = pb.WatchResponse.FromString(bytes(entries.data)).items
        assert [item.exchange.id for item in items] == list(range(first, first + 200))


def test_every_summary_is_its_own():
    writer = Writer()
    known = msgspec.structs.replace(ipc.UNKNOWN, pid=7, path="/a")
    writer.add(b"", ipc.encode(known), 0)
    writer.add(b"", b"\xff", 0)
    assert Entries(sent(writer.take()), 1).summaries() == [known, ipc.UNKNOWN]


@given(
    st.binary(max_size=200),
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.integers(0, 210), max_size=9).map(lambda n: array("I", n).tobytes()),
    ),
    st.binary(max_size=40),
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.integers(0, 50), max_size=9).map(lambda n: array("I", n).tobytes()),
    ),
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.integers(-1, 50), max_size=9).map(lambda n: array("q", n).tobytes()),
    ),
)
def test_what_no_worker_has_written_is_refused_or_harmless(entries, ends, summaries, summary_ends, uids):
    told = sent(ipc.Exchanges(memoryview(entries), ends, summaries, summary_ends, uids))
    try:
        found = Entries(told, 1)
    except ValueError:
        return
    assert len(found.summaries()) == len(found.uids) == len(found)
    for index in range(len(found)):
        assert Delivery(found.frame(index)).kind == ipc.EXCHANGE
    assert sum(len(found.entry(index)) for index in range(len(found))) == len(found.data)


@pytest.mark.parametrize("ends", [[9], [200], [20, 20], [40, 20], [20]])
def test_ends_that_cannot_be(ends: list[int]):
    told = ipc.Exchanges(
        memoryview(bytes(100)), array("I", ends).tobytes(), b"", bytes(4 * len(ends)), bytes(8 * len(ends))
    )
    with pytest.raises(ValueError, match=r"ends where|behind the last"):
        Entries(told, 1)
