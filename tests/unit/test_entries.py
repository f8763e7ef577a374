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
from tests.support.batches import parts

NOTHING_KNOWN = ipc.encode(ipc.UNKNOWN)
"""In place of a summary that is empty."""

ids = st.integers(1, (1 << 49) - 1000)
exchanges = st.lists(
    st.tuples(
        # Lengths of lengths change at 128, 16,384 and 2,097,152; the table of heads ends at 2,048.
        st.sampled_from(
            [0, 1, 90, 100, 109, 110, 111, 112, 113, 120, 2000, 2040, 2041, 2100, 16_360, 70_000]
        ),
        st.sampled_from([(b"", -1), (b"one", 0), (b"other", 7), (b"longer", (1 << 32) - 1)]),
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=12,
)
"""Bytes of the path, the connection and whose it is, and the rest of the summary."""


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
    for size, (connection, uid), rest in made:
        writer.add(message(size), connection, rest, uid)
    assert len(writer) == len(made)
    entries = Entries(sent(writer.take()), first)
    assert len(writer) == 0

    items = pb.WatchResponse.FromString(bytes(entries.data)).items
    assert [item.exchange.id for item in items] == list(range(first, first + len(made)))
    assert [len(item.exchange.request.path) for item in items] == [size for size, _, _ in made]
    assert entries.connections == list(dict.fromkeys(connection for _, (connection, _), _ in made))
    assert [entries.connections[place] for place in entries.of] == [one for _, (one, _), _ in made]
    assert list(entries.uids) == [uid for _, (_, uid), _ in made]
    for index, (size, (connection, uid), rest) in enumerate(made):
        told = connection + rest or NOTHING_KNOWN
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
            writer.add(b"", b"", b"", 0)
        entries = Entries(sent(writer.take()), first)
        items = pb.WatchResponse.FromString(bytes(entries.data)).items
        assert [item.exchange.id for item in items] == list(range(first, first + 200))


def test_every_summary_is_its_own():
    writer = Writer()
    known = msgspec.structs.replace(ipc.UNKNOWN, pid=7, path="/a")
    for one in (known, msgspec.structs.replace(known, path="/b")):
        writer.add(b"", *parts(ipc.encode(one)), 0)
    writer.add(b"", b"\xff", b"", 0)
    entries = Entries(sent(writer.take()), 1)
    assert len(entries.connections) == 2
    assert [entries.summary(index).path for index in range(3)] == ["/a", "/b", ""]
    assert (entries.summary(0), entries.summary(2)) == (known, ipc.UNKNOWN)


def numbers(kind: str, least: int, most: int) -> st.SearchStrategy[bytes]:
    """An array of numbers, or bytes that are none."""
    listed = st.lists(st.integers(least, most), max_size=9)
    return st.one_of(st.binary(max_size=40), listed.map(lambda found: array(kind, found).tobytes()))


@given(
    st.builds(
        ipc.Exchanges,
        st.binary(max_size=200).map(memoryview),
        numbers("I", 0, 210),
        st.binary(max_size=40),
        numbers("I", 0, 50),
        numbers("q", -1, 50),
        numbers("I", 0, 9),
        st.binary(max_size=40),
        numbers("I", 0, 50),
    )
)
def test_what_no_worker_has_written_is_refused_or_harmless(told):
    try:
        found = Entries(sent(told), 1)
    except ValueError:
        return
    assert len(found.of) == len(found.uids) == len(found)
    for index in range(len(found)):
        assert found.summary(index) is not None
        assert Delivery(found.frame(index)).kind == ipc.EXCHANGE
    assert sum(len(found.entry(index)) for index in range(len(found))) == len(found.data)


def told_of(ends: list[int], *, of: int = 0, connections: int = 1, uids: int = 1) -> ipc.Exchanges:
    """Exchanges of nothing."""
    count = len(ends)
    return ipc.Exchanges(
        memoryview(bytes(100)), array("I", ends).tobytes(), b"", bytes(4 * connections), bytes(8 * uids),
        array("I", [of] * count).tobytes(), b"", bytes(4 * count),
    )  # fmt: skip


@pytest.mark.parametrize("ends", [[9], [200], [20, 20], [40, 20], [20]])
def test_ends_that_cannot_be(ends: list[int]):
    with pytest.raises(ValueError, match=r"ends where|behind the last"):
        Entries(told_of(ends), 1)


def test_connections_that_are_not_there():
    with pytest.raises(ValueError, match="connections are missing"):
        Entries(told_of([100], of=1), 1)
    with pytest.raises(ValueError, match="users are missing"):
        Entries(told_of([100], connections=2), 1)
    with pytest.raises(ValueError, match="more connections than exchanges"):
        Entries(told_of([100], connections=2, uids=2), 1)
    assert len(Entries(told_of([100]), 1)) == 1
