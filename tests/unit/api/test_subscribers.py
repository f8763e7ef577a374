"""One watcher's queue: bounds, shedding, losses told, flush times, parts and discards."""

from __future__ import annotations

import asyncio

import pytest
from api_harness import exchange, summary

from spliffd import counters, ipc
from spliffd.api import subscribers
from spliffd.api.delivery import Delivery
from spliffd.api.filter import Filter
from spliffd.api.subscribers import (
    BUSY_INTERVAL,
    BUSY_ITEMS,
    FLUSH_INTERVAL,
    ITEM_OVERHEAD,
    MESSAGE_BYTES,
    Subscriber,
)
from spliffd.api.wishes import Wishes
from spliffd.counters import Region
from spliffd.pb import spliff_pb2 as pb
from tests.support import virtual_time


@pytest.fixture
def region():
    return Region(counters.API, memoryview(bytearray(4096)).cast("Q"))


async def take(subscriber: Subscriber) -> list[pb.Item]:
    message = await asyncio.wait_for(subscriber.next(), 1)
    subscriber.written()
    return list(pb.WatchResponse.FromString(message).items)


def kinds(items):
    return [item.WhichOneof("kind") for item in items]


def part(key: int, size: int, **facts) -> Delivery:
    return Delivery(
        ipc.Frame(
            kind=ipc.BODY_PART,
            part_key=key,
            summary=ipc.encode(summary(**facts)),
            public=b"",
            request_body=b"p" * size,
        )
    )


async def test_items_come_in_order_and_counted(region):
    subscriber = Subscriber(Wishes(), region)
    for number in range(1, 12):
        subscriber.offer(Delivery(exchange(), number))

    items = await take(subscriber)

    assert [item.exchange.id for item in items] == list(range(1, 12))
    assert (region.get("items_delivered"), region.get("batches_sent")) == (11, 1)
    assert subscriber.held_bytes == 0


async def test_handshakes_and_messages_come_only_when_asked_for(region):
    frames = [
        Delivery(ipc.Frame(kind=kind, part_key=0, summary=ipc.encode(summary()), public=b""))
        for kind in (ipc.HANDSHAKE, ipc.MESSAGE, ipc.CHUNK)
    ]
    plain, everything = (
        Subscriber(Wishes(), region),
        Subscriber(Wishes(handshakes=True, messages=True), region),
    )
    for frame in frames:
        plain.offer(frame)
        everything.offer(frame)
    plain.close()

    assert await plain.next() is None
    assert kinds(await take(everything)) == ["handshake", "message", "chunk"]
    assert region.get("items_filtered") == 3


async def test_exchanges_under_way_come_only_when_asked_for_and_when_they_match(region):
    waiting = Delivery(ipc.Frame(ipc.PROGRESS, 1, ipc.encode(summary(status=0, path="/a")), b""))
    answered = Delivery(ipc.Frame(ipc.PROGRESS, 2, ipc.encode(summary(status=200, path="/a")), b""))
    status = Filter(pb.Filter(statuses=[pb.StatusRange(first=500, last=599)]))
    plain = Subscriber(Wishes(messages=True), region)
    wanted = Subscriber(Wishes(progress=True), region)
    chosen = Subscriber(Wishes(progress=True, filter=status), region)
    for one in (plain, wanted, chosen):
        one.offer(waiting)
        one.offer(answered)
        one.close()

    assert await plain.next() is None
    assert kinds(await take(wanted)) == ["progress", "progress"]
    assert kinds(await take(chosen)) == ["progress"]  # its status may still be one of those


async def test_bodies_are_shed_before_items_are_dropped(region):
    subscriber = Subscriber(Wishes(bodies=True, queue_bytes=100_000), region)
    for number in range(1, 301):
        subscriber.offer(Delivery(exchange(response_body=b"x" * 10_000), number))

    assert subscriber.held_bytes <= 100_000
    items = await take(subscriber)

    *losses, first = items[:3]
    told = {item.loss.reason: item.loss for item in losses}
    assert first.exchange.id == 1
    with_body = [item for item in items[2:] if item.exchange.response.body]
    without = [item for item in items[2:] if not item.exchange.response.body]
    assert len(with_body) == 7  # 75,000 bytes are for bodies
    assert all(item.exchange.completeness.body_not_sent == 10_000 for item in without)
    assert told["body_shed"].count == len(without)
    assert told["body_shed"].bytes == 10_000 * len(without)
    assert told["queue_full"].count == 300 - 7 - len(without)
    assert told["queue_full"].stage == "subscriber"
    assert 0 < told["queue_full"].first_time_ns <= told["queue_full"].last_time_ns
    assert region.get("subscriber_lost_items") == told["queue_full"].count
    assert region.get("subscriber_lost_bodies") == told["body_shed"].count


async def test_what_is_being_written_counts_as_held(region):
    subscriber = Subscriber(Wishes(queue_bytes=10_000), region)
    for number in range(100):
        subscriber.offer(Delivery(exchange(), number))
    held = subscriber.held_bytes
    await subscriber.next()

    subscriber.offer(Delivery(exchange("/" + "x" * 9_000), 1))

    assert subscriber.held_bytes == held
    assert region.get("subscriber_lost_items") >= 1


async def test_a_message_is_at_most_a_mebibyte_and_one_item(region):
    subscriber = Subscriber(Wishes(bodies=True), region)
    for number in range(40):
        subscriber.offer(Delivery(exchange(response_body=b"x" * 100_000), number))
    sizes = []
    ids = []
    while len(ids) < 40:
        message = await subscriber.next()
        subscriber.written()
        sizes.append(len(message))
        ids += [item.exchange.id for item in pb.WatchResponse.FromString(message).items]

    assert ids == list(range(40))
    assert max(sizes) < MESSAGE_BYTES + 101_000
    assert subscriber.held_bytes == 0


async def test_losses_of_one_kind_are_told_as_one(region):
    subscriber = Subscriber(Wishes(), region)
    for first, last in ((50, 60), (10, 20), (70, 90)):
        subscriber.lose(
            pb.Loss(
                stage="ring", reason="ring_full", count=3, bytes=7, first_time_ns=first, last_time_ns=last
            )
        )

    (item,) = await take(subscriber)

    assert item.loss == pb.Loss(
        stage="ring", reason="ring_full", count=9, bytes=21, first_time_ns=10, last_time_ns=90
    )


async def test_kinds_of_losses_are_bounded(region, monkeypatch):
    monkeypatch.setattr(subscribers, "MAX_LOSS_KINDS", 2)
    subscriber = Subscriber(Wishes(), region)
    for i in range(7):
        subscriber.lose(pb.Loss(stage="worker", reason=f"r{i}", count=1))

    told = {item.loss.reason: item.loss.count for item in await take(subscriber)}

    assert told == {"r0": 1, "r1": 1, "other": 5}


def test_the_first_item_goes_at_once_and_the_next_wait_for_company(region):
    async def story():
        loop = asyncio.get_running_loop()
        subscriber = Subscriber(Wishes(), region)
        waiting = asyncio.ensure_future(subscriber.next())
        await asyncio.sleep(0.03)
        offered = loop.time()
        subscriber.offer(Delivery(exchange(), 1))
        await waiting
        assert loop.time() == offered

        subscriber.written()
        subscriber.offer(Delivery(exchange(), 2))
        waiting = asyncio.ensure_future(subscriber.next())
        await asyncio.sleep(0.001)
        subscriber.offer(Delivery(exchange(), 3))
        message = await waiting
        assert loop.time() == pytest.approx(offered + FLUSH_INTERVAL)
        assert len(pb.WatchResponse.FromString(message).items) == 2

    virtual_time.run(story())


def test_behind_a_message_of_many_items_the_next_one_waits_longer(region):
    async def story():
        subscriber = Subscriber(Wishes(), region)
        loop = asyncio.get_running_loop()
        taken = []
        for count in (BUSY_ITEMS, BUSY_ITEMS - 1, 1):
            for number in range(count):
                subscriber.offer(Delivery(exchange(), number))
            await take(subscriber)
            taken.append(loop.time())

        assert taken == pytest.approx([0, BUSY_INTERVAL, BUSY_INTERVAL + FLUSH_INTERVAL])

    virtual_time.run(story())


async def test_much_does_not_wait_for_the_interval(region, monkeypatch):
    monkeypatch.setattr(subscribers, "FLUSH_INTERVAL", 60.0)
    subscriber = Subscriber(Wishes(), region)
    subscriber.offer(Delivery(exchange(), 1))
    await take(subscriber)
    waiting = asyncio.ensure_future(subscriber.next())
    await asyncio.sleep(0)
    for number in range(subscribers.FLUSH_ITEMS):
        assert not waiting.done()
        subscriber.offer(Delivery(exchange(), number))

    assert await asyncio.wait_for(waiting, 1)


async def test_parts_of_an_exchange_that_does_not_match_are_discarded(region):
    subscriber = Subscriber(
        Wishes(bodies=True, filter=Filter(pb.Filter(statuses=[pb.StatusRange(first=500, last=599)]))), region
    )
    # The status is unknown while the request is being sent: its parts come.
    for key in (5, 6):
        subscriber.offer(part(key, 10))
    subscriber.offer(Delivery(exchange(part_key=5, status=200, request_offset=10), 1))
    subscriber.offer(Delivery(exchange(part_key=6, status=503, request_offset=10), 2))

    items = await take(subscriber)

    assert kinds(items) == ["body_part", "body_part", "discard", "exchange"]
    assert list(items[2].discard.part_keys) == [5]
    assert items[3].exchange.part_key == 6
    # It got all 10 bytes ahead.
    assert items[3].exchange.completeness.body_not_sent == 0


async def test_no_discard_without_parts(region):
    subscriber = Subscriber(Wishes(bodies=True, filter=Filter(pb.Filter(methods=["PUT"]))), region)
    subscriber.offer(part(5, 10, method="GET"))
    subscriber.offer(Delivery(exchange(part_key=5), 1))
    subscriber.close()

    assert await subscriber.next() is None
    assert region.get("items_filtered") == 2


async def test_parts_that_did_not_fit_are_stated_by_their_exchange(region):
    subscriber = Subscriber(Wishes(bodies=True, queue_bytes=20_000), region)
    for _ in range(5):
        subscriber.offer(part(5, 5_000))
    subscriber.offer(Delivery(exchange(part_key=5, request_offset=25_000), 1))

    loss, *parts, last = await take(subscriber)

    assert (loss.loss.reason, loss.loss.count, loss.loss.bytes) == ("body_shed", 3, 15_000)
    assert kinds(parts) == ["body_part"] * 2
    assert last.exchange.completeness.body_not_sent == 15_000


async def test_parts_of_a_dropped_exchange_are_discarded(region):
    subscriber = Subscriber(Wishes(bodies=True, queue_bytes=3_000), region)
    subscriber.offer(part(5, 1_000))
    subscriber.offer(Delivery(exchange("/" + "x" * 3_000, part_key=5, request_offset=1_000), 1))

    assert kinds(await take(subscriber)) == ["loss", "body_part", "discard"]


async def test_unfinished_exchanges_are_bounded(region, monkeypatch):
    monkeypatch.setattr(subscribers, "MAX_PARTS", 3)
    subscriber = Subscriber(Wishes(bodies=True), region)
    for key in range(1, 6):
        subscriber.offer(part(key, 100))

    items = await take(subscriber)

    assert [list(item.discard.part_keys) for item in items if item.WhichOneof("kind") == "discard"] == [
        [1],
        [2],
    ]
    assert (items[0].loss.reason, items[0].loss.count, items[0].loss.bytes) == ("body_shed", 2, 200)


async def test_a_full_set_of_descendants_is_told(region, monkeypatch):
    monkeypatch.setattr("spliffd.api.filter.MAX_DESCENDANTS", 1)
    subscriber = Subscriber(Wishes(filter=Filter(pb.Filter(ppids=[1]))), region)
    for pid in (11, 12, 13):
        subscriber.offer(Delivery(exchange(pid=pid, ppid=1), pid))

    loss, *items = await take(subscriber)

    assert (loss.loss.reason, loss.loss.count) == ("descendants_full", 2)
    assert len(items) == 3


async def test_closing_hands_out_what_waits_then_ends(region):
    subscriber = Subscriber(Wishes(), region)
    subscriber.offer(Delivery(exchange(), 1))
    await take(subscriber)
    subscriber.offer(Delivery(exchange(), 2))
    subscriber.close()

    assert len(await take(subscriber)) == 1
    assert await subscriber.next() is None


async def test_what_a_cut_stream_leaves_behind_is_counted(region):
    subscriber = Subscriber(Wishes(), region)
    for number in range(3):
        subscriber.offer(Delivery(exchange(), number))
    subscriber.count_rest()

    assert region.get("subscriber_lost_items") == 3
    assert region.get("subscriber_lost_bytes") == subscriber.held_bytes - 3 * ITEM_OVERHEAD
