"""A watcher's queue and exchanges that came together: taken whole, cut by a filter, or lost one by one."""

from __future__ import annotations

import asyncio

import pytest
from api_harness import exchange

from spliffd import counters, ipc
from spliffd.api import subscribers
from spliffd.api.filter import Filter
from spliffd.api.subscribers import ITEM_OVERHEAD, Subscriber
from spliffd.api.wishes import Past, Wishes
from spliffd.counters import Region
from spliffd.entries import Entries, Writer
from spliffd.pb import spliff_pb2 as pb
from tests.support.batches import add


@pytest.fixture
def region() -> Region:
    return Region(counters.API, memoryview(bytearray(4096)).cast("Q"))


def together(*frames: ipc.Frame, first: int = 1) -> Entries:
    """These exchanges as the worker sends them, with ids from ``first`` on."""
    writer = Writer()
    for frame in frames:
        add(writer, frame)
    (sent,) = ipc.decode_batch(ipc.encode([writer.take()]))
    assert isinstance(sent, ipc.Exchanges)
    return Entries(sent, first)


def answered(*statuses: int, first: int = 1) -> Entries:
    return together(*(exchange(f"/{status}", status=status) for status in statuses), first=first)


async def read(subscriber: Subscriber) -> list[pb.Item]:
    message = await asyncio.wait_for(subscriber.next(), 1)
    assert message is not None
    subscriber.written()
    return list(pb.WatchResponse.FromString(message).items)


def ids(items: list[pb.Item]) -> list[int]:
    return [item.exchange.id for item in items if item.HasField("exchange")]


async def test_all_are_queued_as_the_one_piece_that_they_are(region: Region):
    subscriber = Subscriber(Wishes(), region)
    entries = answered(*[200] * 100, first=7)

    assert subscriber.take(entries)
    assert subscriber.held_bytes == len(entries.data) + ITEM_OVERHEAD
    assert ids(await read(subscriber)) == list(range(7, 107))
    assert (region.get("items_delivered"), region.get("batches_sent")) == (100, 1)
    assert subscriber.held_bytes == 0


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ([500, 500, 500], [1, 2, 3]),
        ([200, 200, 200], []),
        ([500, 200, 500, 500, 200, 200, 500], [1, 3, 4, 7]),
        ([200, 500, 500, 200], [2, 3]),
        ([500, 500, 200], [1, 2]),
    ],
)
async def test_a_filter_cuts_out_what_it_does_not_want(
    region: Region, statuses: list[int], wanted: list[int]
):
    failed = Filter(pb.Filter(statuses=[pb.StatusRange(first=500, last=599)]))
    subscriber = Subscriber(Wishes(filter=failed), region)

    assert subscriber.take(answered(*statuses))
    subscriber.close()

    assert ids([] if not wanted else await read(subscriber)) == wanted
    assert await subscriber.next() is None
    assert region.get("items_filtered") == len(statuses) - len(wanted)
    assert region.get("items_delivered") == len(wanted)


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(owner=1000),
        Wishes(filter=Filter(pb.Filter(expression="response.status >= 500"))),
    ],
    ids=["own", "expression"],
)
async def test_who_gets_them_otherwise_than_they_are_is_offered_them_one_by_one(
    region: Region, wishes: Wishes
):
    subscriber = Subscriber(wishes, region)
    assert not subscriber.take(answered(200, 200))
    assert subscriber.held_bytes == 0


async def test_while_history_is_replayed_they_come_from_there(region: Region):
    subscriber = Subscriber(Wishes(past=Past()), region)
    assert subscriber.beforehand
    assert subscriber.take(answered(200, 200))
    assert subscriber.held_bytes == 0
    subscriber.beforehand = False
    assert subscriber.take(answered(200, first=3))
    assert ids(await read(subscriber)) == [3]


async def test_where_only_some_have_room_the_first_are_kept_and_the_others_told(region: Region):
    size = len(answered(200).data)
    three = answered(*[200] * 3)
    bound = len(three.data) + ITEM_OVERHEAD + 2 * (size + ITEM_OVERHEAD)
    subscriber = Subscriber(Wishes(queue_bytes=bound), region)

    assert subscriber.take(three)
    assert subscriber.take(answered(*[200] * 7, first=4))
    assert subscriber.held_bytes == bound
    loss, *items = await read(subscriber)

    assert ids(items) == [1, 2, 3, 4, 5]
    assert (loss.loss.stage, loss.loss.reason, loss.loss.count) == ("subscriber", "queue_full", 5)
    assert loss.loss.bytes == region.get("subscriber_lost_bytes") == 5 * size
    assert region.get("subscriber_lost_items") == 5
    assert region.get("items_delivered") == 5


async def test_a_message_ends_behind_a_whole_piece(region: Region, monkeypatch: pytest.MonkeyPatch):
    pieces = [answered(*[200] * 10, first=first) for first in (1, 11, 21)]
    monkeypatch.setattr(subscribers, "MESSAGE_BYTES", len(pieces[0].data) + ITEM_OVERHEAD + 1)
    subscriber = Subscriber(Wishes(), region)
    for piece in pieces:
        subscriber.take(piece)
    subscriber.close()

    assert ids(await read(subscriber)) == list(range(1, 21))  # begun before the limit
    assert region.get("items_delivered") == 20
    assert ids(await read(subscriber)) == list(range(21, 31))
    assert await subscriber.next() is None
    assert (region.get("items_delivered"), region.get("batches_sent")) == (30, 2)


async def test_what_a_cut_stream_leaves_behind_is_counted_one_by_one(region: Region):
    subscriber = Subscriber(Wishes(), region)
    pieces = answered(*[200] * 10), answered(*[200] * 3, first=11)
    for piece in pieces:
        subscriber.take(piece)
    subscriber.count_rest()
    assert region.get("subscriber_lost_items") == 13
    assert region.get("subscriber_lost_bytes") == sum(len(piece.data) for piece in pieces)


async def test_as_many_as_make_a_write_worth_while_wake_the_writer(region: Region):
    subscriber = Subscriber(Wishes(), region)
    subscriber.take(answered(200))
    assert ids(await read(subscriber)) == [1]
    # From here on the next write waits for its time, or for this many.
    waiting = asyncio.ensure_future(subscriber.next())
    await asyncio.sleep(0)
    subscriber.take(answered(*[200] * subscribers.FLUSH_ITEMS, first=2))
    message = await asyncio.wait_for(waiting, 0.5)
    assert message is not None
    assert len(pb.WatchResponse.FromString(message).items) == subscribers.FLUSH_ITEMS
