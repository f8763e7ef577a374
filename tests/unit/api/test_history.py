"""History over gRPC, from a real api process: what comes back, from where, without a seam, and its bounds."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
import pytest
from api_harness import Stream, exchange

from spliffd import ipc
from spliffd.api.history import GONE
from spliffd.api.history import History as Kept
from spliffd.config import History
from spliffd.entries import Entries, Writer
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc


@pytest.fixture
def api(start):
    found = start(history=History(memory_mib=1, body_limit=10))
    assert found.hear() == ipc.Ready()
    return found


async def collected(stub, **wishes) -> list[pb.Item]:
    """Everything of a watch that ends by itself."""
    call = stub.Watch(pb.WatchRequest(follow=False, **wishes), timeout=30)
    return [item async for response in call for item in response.items]


async def paths(stub, **wishes) -> list[str]:
    return [item.exchange.request.path async for item in _exchanges(stub, wishes)]


async def _exchanges(stub, wishes):
    for item in await collected(stub, **wishes):
        if item.WhichOneof("kind") == "exchange":
            yield item


async def settled(stub, path: str) -> None:
    """Until the api has taken what was sent up to ``path``."""
    deadline = time.monotonic() + 30
    while (await paths(stub, last=1)) != [path]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def lost(frames_of=None, **facts) -> ipc.Frame:
    loss = pb.Loss(**{"stage": "kernel", "reason": "ring_full", "count": 3, "last_time_ns": 5, **facts})
    return ipc.Frame(ipc.LOSS, 0, b"", loss.SerializeToString())


async def test_exchanges_are_wanted_while_nobody_watches_without_bodies(start):
    kept = start(history=History(memory_mib=1))
    assert kept.hear() == ipc.Ready()
    assert kept.link().first == ipc.Demand(
        0, bodies=False, body_limit=0, handshakes=False, messages=False, history=True
    )


@pytest.mark.parametrize("settings", [{"unwatched": "off"}, {"history": History(memory_mib=0)}])
async def test_where_nothing_is_done_unwatched_it_wants_nothing(start, settings):
    found = start(**{"history": History(memory_mib=1), **settings})
    assert found.hear() == ipc.Ready()
    assert not found.link().first.history


async def test_last_and_since_come_first_then_live_without_a_seam(api, stub):
    worker = api.link()
    assert (worker.first.watchers, worker.first.bodies, worker.first.body_limit) == (0, True, 10)
    worker.send([exchange(f"/{n}", status=200 + n % 2) for n in range(1, 12)])
    await settled(stub, "/11")
    since = time.time_ns()
    worker.send([exchange(f"/{n}") for n in range(12, 15)])
    await settled(stub, "/14")

    assert await paths(stub, last=3) == ["/12", "/13", "/14"]
    assert await paths(stub, last=100) == [f"/{n}" for n in range(1, 15)]
    assert await paths(stub, since_time_ns=since) == ["/12", "/13", "/14"]
    assert await paths(stub, since_time_ns=1, last=2) == ["/13", "/14"]
    assert await paths(stub, since_time_ns=time.time_ns()) == []
    odd = pb.Filter(expression="response.status == 201")
    assert await paths(stub, last=2, filter=odd) == ["/9", "/11"]
    assert await paths(stub) == []

    stream = Stream(stub.Watch(pb.WatchRequest(last=2)))
    await asyncio.to_thread(worker.demand)
    assert (await stream.kind("started")).next_id == 13
    assert [(await stream.kind("exchange")).id for _ in range(2)] == [13, 14]
    worker.send([exchange("/15")])
    live = await stream.kind("exchange")
    assert (live.id, live.request.path) == (15, "/15")


async def test_a_watcher_resumes_behind_what_it_has_while_more_arrives(api, stub):
    worker = api.link()
    sent = 0

    def more(count: int) -> None:
        nonlocal sent
        worker.send([exchange(f"/{n}") for n in range(sent + 1, sent + count + 1)])
        sent += count

    more(101)
    await settled(stub, "/101")
    epoch = (await collected(stub, last=1))[0].started.epoch
    for after in (0, 50, 100, 101):
        stream = Stream(stub.Watch(pb.WatchRequest(after_id=after, after_epoch=epoch)))
        more(53)
        await asyncio.to_thread(worker.demand)
        started = await stream.kind("started")
        assert (started.epoch, started.next_id) == (epoch, after + 1)
        more(53)
        ids = [(await stream.kind("exchange")).id for _ in range(sent - after)]
        assert ids == list(range(after + 1, sent + 1))
        stream.call.cancel()
        await asyncio.to_thread(worker.demand)


async def test_losses_are_kept_in_their_place(api, stub):
    worker = api.link()
    worker.send([exchange("/1"), lost(), lost(count=4, last_time_ns=9), exchange("/2")])
    await settled(stub, "/2")
    items = await collected(stub, after_id=0)

    assert [item.WhichOneof("kind") for item in items] == ["started", "exchange", "loss", "exchange"]
    assert (items[2].loss.count, items[2].loss.first_time_ns, items[2].loss.last_time_ns) == (7, 0, 9)


async def test_what_gave_way_is_a_loss_of_known_size(api, stub):
    worker = api.link()
    big = [exchange(f"/{n}" + "x" * 60_000) for n in range(1, 30)]
    for frame in big:
        worker.send([frame])
    worker.send([exchange("/end")])
    await settled(stub, "/end")
    items = await collected(stub, after_id=0)
    ids = [item.exchange.id for item in items if item.WhichOneof("kind") == "exchange"]
    losses = [item.loss for item in items if item.WhichOneof("kind") == "loss"]

    assert ids == list(range(ids[0], 31))
    assert 4 < ids[0] < 25
    assert [(loss.stage, loss.reason, loss.count) for loss in losses] == [("history", "evicted", ids[0] - 1)]


async def test_another_epoch_is_announced_with_what_came_since(api, stub):
    worker = api.link()
    worker.send([exchange("/1"), exchange("/2")])
    await settled(stub, "/2")
    items = await collected(stub, after_id=1009, after_epoch=7)

    kinds = [item.WhichOneof("kind") for item in items]
    assert kinds == ["started", "loss", "started", "exchange", "exchange"]
    assert (items[0].started.epoch, items[0].started.next_id) == (7, 1010)
    assert (items[1].loss.stage, items[1].loss.reason) == ("api", "restart")
    assert items[2].started.epoch > 7
    assert [items[3].exchange.id, items[4].exchange.id] == [1, 2]


async def test_a_number_that_is_not_there_yet_is_refused(api, stub):
    api.link()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Watch(pb.WatchRequest(after_id=1)).read()

    assert error.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert "after_epoch" in error.value.details()


async def test_bodies_are_kept_up_to_the_limit_and_never_unmasked(api, stub):
    worker = api.link()
    secret = exchange("/s", request_body=b"*" * 12, response_body=b"abc")
    secret.secret = pb.Exchange(revealed=[pb.Revealed(value="hunter2")]).SerializeToString()
    secret.secret_request_body = b"hunter2 here"
    worker.send([secret, exchange("/p", request_body=b"tail", request_offset=100)])
    await settled(stub, "/p")

    first, second = [item.exchange async for item in _exchanges(stub, {"last": 2, "bodies": True})]
    assert (first.request.body, first.response.body) == (b"*" * 10, b"abc")
    assert first.completeness.body_not_sent == 2
    assert (second.request.body, second.completeness.body_not_sent) == (b"", 104)
    shown = [item.exchange async for item in _exchanges(stub, {"last": 2, "bodies": True, "body_limit": 4})]
    assert (shown[0].request.body, shown[0].completeness.body_not_sent) == (b"****", 8)
    bare = [item.exchange async for item in _exchanges(stub, {"last": 2})]
    assert (bare[0].request.body, bare[0].completeness.body_not_sent) == (b"", 0)
    assert b"hunter2" not in first.SerializeToString() + bare[0].SerializeToString()

    found = await stub.GetExchange(pb.GetExchangeRequest(id=1))
    assert (found.exchange.request.body, found.exchange.id) == (b"*" * 10, 1)
    assert b"hunter2" not in found.SerializeToString()


async def test_what_history_keeps_less_of_is_delivered_whole(api, stub):
    worker = api.link()
    stream = Stream(stub.Watch(pb.WatchRequest(bodies=True)))
    await asyncio.to_thread(worker.demand)
    await stream.kind("started")
    worker.send([exchange("/1"), exchange("/2", response_body=b"b" * 99), exchange("/3")])
    live = [await stream.kind("exchange") for _ in range(3)]
    kept = [item.exchange async for item in _exchanges(stub, {"last": 3, "bodies": True})]

    assert [one.id for one in live] == [one.id for one in kept] == [1, 2, 3]
    assert [len(one.response.body) for one in live] == [0, 99, 0]
    assert [len(one.response.body) for one in kept] == [0, 10, 0]


@pytest.mark.parametrize("batch", [1, 67])
def test_of_many_batches_the_last_ones_are_kept(batch: int):
    kept = Kept(History(memory_mib=8, exchanges=101), 5)
    for number in range(1, batch * (GONE + 1009), batch):
        writer = Writer()
        for _ in range(batch):
            writer.add(b"", b"sum", b"mary", 7)
        entries = Entries(writer.take(), number)
        kept.add_entries(entries, list(range(number + 1000, number + 1000 + batch)), number)
        kept.add_loss(pb.Loss(stage="kernel", reason=f"{number}", last_time_ns=number))
    records = kept.read(kept.first_position, 10_000)

    assert [record.position for record in records] == list(range(kept.first_position, kept.next_position))
    assert len(records) == 101
    exchanges = [record for record in records if not record.loss]
    last = number + batch - 1
    assert [one.number for one in exchanges] == list(range(last - len(exchanges) + 1, last + 1))
    assert {one.own - one.number for one in exchanges} == {1000}
    assert {one.uid for one in exchanges} == {7}
    assert records[-1].loss
    assert kept.at_or_behind(last) == exchanges[-1].position
    assert kept.since(exchanges[-1].time_ns) <= exchanges[-1].position


def test_memory_is_bounded_by_bytes_of_what_came_together():
    kept = Kept(History(memory_mib=1, exchanges=1_000_000), 5)
    for number in range(1, 101 * 64, 64):
        writer = Writer()
        for _ in range(64):
            writer.add(bytes(1000), b"", b"", 7)
        kept.add_entries(Entries(writer.take(), number), None, number)
    records = kept.read(kept.first_position, 100_000)
    assert records[-1].number == 101 * 64
    assert (1 << 20) - 70 * 1080 < 1080 * len(records) < 1 << 20


async def test_an_exchange_by_its_id(api, stub):
    worker = api.link()
    worker.send([exchange(f"/{n}") for n in range(1, 200)])
    await settled(stub, "/199")

    found = await stub.GetExchange(pb.GetExchangeRequest(id=150))
    assert (found.exchange.id, found.exchange.request.path) == (150, "/150")
    for request, code in (
        (pb.GetExchangeRequest(id=200), grpc.StatusCode.NOT_FOUND),
        (pb.GetExchangeRequest(id=150, epoch=5), grpc.StatusCode.NOT_FOUND),
        (pb.GetExchangeRequest(id=5000), grpc.StatusCode.OUT_OF_RANGE),
        (pb.GetExchangeRequest(), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetExchange(request)
        assert error.value.code() == code
        if code == grpc.StatusCode.OUT_OF_RANGE:
            assert error.value.details().startswith("there is no exchange 5000 yet, and the next")


async def test_only_the_fields_that_were_asked_for(api, stub):
    worker = api.link()
    stream = Stream(stub.Watch(pb.WatchRequest(fields=["request.path", "process"], bodies=True)))
    await asyncio.to_thread(worker.demand)
    await stream.kind("started")
    whole = Stream(stub.Watch(pb.WatchRequest()))
    await asyncio.to_thread(worker.demand)
    await whole.kind("started")
    worker.send([exchange("/1", pid=7, request_body=b"abc")])

    wanted = pb.Exchange(id=1, process=pb.Process(pid=7), request=pb.Request(path="/1"))
    assert await stream.kind("exchange") == wanted
    assert (await whole.kind("exchange")).response.status == 200
    listed = await collected(stub, last=1, fields=["request.path", "process.pid"])
    assert listed[1].exchange == wanted


async def test_a_reader_that_never_reads_holds_nobody_up(api, stub):
    worker = api.link()
    for n in range(1, 8):
        worker.send([exchange(f"/{n}" + "x" * 50_000)])
    stalled = stub.Watch(pb.WatchRequest(last=100))
    await asyncio.to_thread(worker.demand)
    begun = await stalled.read()
    for n in range(8, 50):
        worker.send([exchange(f"/{n}" + "x" * 50_000)])
    worker.send([exchange("/end")])
    await settled(stub, "/end")

    # Then it reads after all: each gap is told, nothing comes twice.
    stream, told = Stream(stalled), 0
    seen = [item.exchange.id for item in begun.items if item.WhichOneof("kind") == "exchange"]
    while not seen or seen[-1] < 50:
        item = await stream.item()
        if item.WhichOneof("kind") == "exchange":
            seen.append(item.exchange.id)
        elif item.WhichOneof("kind") == "loss":
            told += item.loss.count
    assert seen == sorted(set(seen))
    assert len(seen) + told == 50


async def test_a_restart_starts_the_ids_anew(start, folder):
    items = []
    for _ in range(2):
        one = start(history=History(memory_mib=1))
        assert one.hear() == ipc.Ready()
        worker = one.link()
        worker.send([exchange("/1")])
        async with grpc.aio.insecure_channel(f"unix:{one.path}") as channel:
            stub = spliff_pb2_grpc.SpliffStub(channel)
            await settled(stub, "/1")
            items.append(await collected(stub, last=1))
        one.process.kill()
        one.finish()

    assert items[0][1].exchange.id == items[1][1].exchange.id == 1
    assert items[0][0].started.epoch < items[1][0].started.epoch
