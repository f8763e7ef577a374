"""Many watchers at once: each gets exactly what its filter says; hostile ones cost their bound and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import grpc.aio
import psutil
import pytest
from api_harness import Api, Stream, exchange

from spliffd import ipc
from spliffd.config import History
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc

STREAM = 5003
"""Exchanges of the full stream: a prime, so that no filter divides it evenly."""

FILTERS = {
    "everything": (pb.Filter(), lambda e: True),
    "pid": (pb.Filter(pids=[3, 5]), lambda e: e.process.pid in (3, 5)),
    "status": (
        pb.Filter(statuses=[pb.StatusRange(first=500, last=599)]),
        lambda e: 500 <= e.response.status <= 599,
    ),
    "method": (pb.Filter(methods=["post"]), lambda e: e.request.method == "POST"),
    "path": (pb.Filter(paths=["*7"]), lambda e: e.request.path.endswith("7")),
    "pid and status": (
        pb.Filter(pids=[2], statuses=[pb.StatusRange(first=200, last=200)]),
        lambda e: e.process.pid == 2 and e.response.status == 200,
    ),
    "nothing": (pb.Filter(pids=[4_000_007]), lambda e: False),
}
EXPRESSIONS = {
    "response.status >= 500 || process.pid == 1": lambda e: e.response.status >= 500 or e.process.pid == 1,
    "request.path.matches('^/[0-9]*[13]$')": lambda e: e.request.path[-1] in "13",
    "request.path.glob('/1*')": lambda e: e.request.path.startswith("/1"),
    "!(request.method in ['GET', 'PUT'])": lambda e: e.request.method not in ("GET", "PUT"),
    "'x-odd' in request.headers": lambda e: len(e.request.headers) == 1,
    "request.body_size > 1K && duration_ns < 5ms": lambda e: (
        e.request.body_size > 1024 and e.duration_ns < 5_000_000
    ),
    "size(request.path) == 4": lambda e: len(e.request.path) == 4,
    "has(grpc.status) && grpc.status != 0": lambda e: e.grpc.status != 0,
    "completeness.state == 'gap' && process.pid < 4": lambda e: (
        e.completeness.state == "gap" and e.process.pid < 4
    ),
}


def whole(number: int) -> pb.Exchange:
    """The ``number``-th exchange of the stream."""
    message = pb.Exchange(
        id=number,
        duration_ns=number % 11 * 1_000_000,
        process=pb.Process(pid=number % 7),
        request=pb.Request(
            method=("GET", "POST", "PUT")[number % 3], path=f"/{number}", body_size=number % 13 * 200
        ),
        response=pb.Response(status=(200, 404, 500, 503)[number % 4]),
        completeness=pb.Completeness(state="gap" if number % 5 == 0 else "complete"),
    )
    if number % 2:
        message.request.headers.add(name="X-Odd", value="1")
    if number % 17 == 0:
        message.grpc.status = number % 34
    return message


def frame(number: int) -> ipc.Frame:
    message = whole(number)
    made = exchange(
        message.request.path,
        pid=message.process.pid,
        method=message.request.method,
        status=message.response.status,
    )
    message.id = 0
    made.public = message.SerializeToString()
    return made


async def until(stream: Stream, last: int) -> list[pb.Item]:
    """All items of a stream up to the exchange that ends the test, which every filter lets through."""
    items = []
    while True:
        item = await stream.item()
        if item.exchange.id == last:
            return items
        items.append(item)


async def begin(stub, worker, **wishes) -> Stream:
    stream = Stream(stub.Watch(pb.WatchRequest(**wishes)))
    started = asyncio.ensure_future(stream.kind("started"))
    while not started.done():
        # A watcher whose wishes change nothing for the worker starts without another demand.
        worker.sock.settimeout(0.05)
        try:
            await asyncio.to_thread(worker.demand)
        except TimeoutError:
            await asyncio.sleep(0)
    worker.sock.settimeout(10)
    return stream


async def test_sixteen_watchers_each_get_exactly_what_their_filter_says(start):
    api = start(history=History(memory_mib=8))
    assert api.hear() == ipc.Ready()
    worker = api.link()
    every = [wanted for wanted, _ in FILTERS.values()] + [pb.Filter(expression=text) for text in EXPRESSIONS]
    truths = [truth for _, truth in FILTERS.values()] + list(EXPRESSIONS.values())
    assert len(every) == 16
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stub = spliff_pb2_grpc.SpliffStub(channel)
        streams = [await begin(stub, worker, filter=wanted) for wanted in every]
        sentinel = await begin(stub, worker)
        reading = asyncio.ensure_future(until(sentinel, STREAM))
        for first in range(1, STREAM + 1, 64):
            batch = [frame(n) for n in range(first, min(first + 64, STREAM + 1))]
            await asyncio.to_thread(worker.send, batch)
        full = [item.exchange for item in await reading] + [whole(STREAM)]
        assert [one.id for one in full] == list(range(1, STREAM + 1))

        for stream, truth, wanted in zip(streams, truths, every, strict=True):
            expected = [one.id for one in full if truth(whole(one.id))]
            got = [await stream.kind("exchange") for _ in expected]
            assert [one.id for one in got] == expected, wanted
            assert all(one == whole(one.id) for one in got)
            # And nothing more: what is asked of history after the fact is the same.
        for truth, wanted in zip(truths, every, strict=True):
            call = stub.Watch(pb.WatchRequest(last=100_000, follow=False, filter=wanted), timeout=60)
            kept = [i.exchange.id async for r in call for i in r.items if i.HasField("exchange")]
            assert kept == sorted(kept)
            assert set(kept) == {n for n in range(oldest(kept, STREAM), STREAM + 1) if truth(whole(n))}


def oldest(kept: list[int], last: int) -> int:
    """From where on ``kept`` was looked for: memory may have let go of the first ones."""
    return kept[0] if kept else last + 1


# ---- hostile ones --------------------------------------------------------------------------------


def rss(api: Api) -> int:
    return psutil.Process(api.process.pid).memory_info().rss


async def test_a_thousand_connections_cost_little_and_the_group_is_served(start):
    api = start(users="own")
    assert api.hear() == ipc.Ready()
    worker = api.link()
    before = rss(api)
    own = f"unix:{api.path.with_name('user.sock')}"
    open_ones = []
    try:
        for _ in range(1009):
            reader, writer = await asyncio.open_unix_connection(own.removeprefix("unix:"))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            open_ones.append((reader, writer))
        async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
            stub = spliff_pb2_grpc.SpliffStub(channel)
            stream = await begin(stub, worker)
            worker.send([exchange("/1")])
            assert (await stream.kind("exchange")).request.path == "/1"
            assert await stub.GetStats(pb.GetStatsRequest(), timeout=20)
        assert rss(api) - before < 96 << 20
    finally:
        for _, writer in open_ones:
            writer.close()
        for _, writer in open_ones:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_watchers_that_never_read_cost_their_bound_each(start):
    api = start(history=History(memory_mib=1))
    assert api.hear() == ipc.Ready()
    worker = api.link()
    before = rss(api)
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stub = spliff_pb2_grpc.SpliffStub(channel)
        stalled = [await begin(stub, worker, queue_bytes=1 << 20) for _ in range(16)]
        reader = await begin(stub, worker)
        seen = asyncio.ensure_future(until(reader, 1500))
        for first in range(1, 1501, 25):
            batch = [exchange(f"/{n}" + "x" * 8000) for n in range(first, first + 25)]
            await asyncio.to_thread(worker.send, batch)
        items = await seen
        assert [item.exchange.id for item in items] == list(range(1, 1500))
        # 12 MiB went by; each of sixteen holds 1 MiB, and gRPC's buffers.
        assert rss(api) - before < 64 << 20
        for stream in stalled:
            got, told, last = 0, 0, 0
            while got + told < 1500:
                item = await stream.item()
                if item.HasField("loss"):
                    told += item.loss.count
                    assert (item.loss.stage, item.loss.reason) == ("subscriber", "queue_full")
                    assert 0 < item.loss.first_time_ns <= item.loss.last_time_ns <= time.time_ns()
                else:
                    assert item.exchange.id > last
                    last, got = item.exchange.id, got + 1
            assert told > 0


@pytest.mark.parametrize(
    "wanted",
    [
        pb.Filter(expression="(" * 2000 + "true" + ")" * 2000),
        pb.Filter(expression="request.path.matches('" + "(a|b)*a" + "(a|b)" * 12 + "')"),
        pb.Filter(expression=" || ".join(f"request.path.glob('*{n}*{n}*')" for n in range(100))),
        pb.Filter(pids=range(1, 5000)),
        pb.Filter(paths=["*" * 300]),
        pb.Filter(paths=[f"*{n}" for n in range(100)]),
        pb.Filter(expression="x" * 100_000),
    ],
)
async def test_huge_filters_are_refused_at_once(api, stub, wanted):
    api.link()
    began = psutil.Process(api.process.pid).cpu_times()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Watch(pb.WatchRequest(filter=wanted)).read()
    used = psutil.Process(api.process.pid).cpu_times()

    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (used.user + used.system) - (began.user + began.system) < 3


async def test_a_watcher_that_vanishes_leaves_nothing(start):
    api = start()
    assert api.hear() == ipc.Ready()
    worker = api.link()
    for _ in range(3):
        async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
            stub = spliff_pb2_grpc.SpliffStub(channel)
            for _ in range(16):
                await begin(stub, worker, filter=pb.Filter(expression="process.pid == 1"))
            assert api.area.api.get("subscribers") == 16
        deadline = time.monotonic() + 30
        while api.area.api.get("subscribers"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        worker.sock.setblocking(False)
        while True:
            try:
                worker.sock.recv(ipc.MAX_DATAGRAM)
                worker.send([])
            except BlockingIOError:
                break
        worker.sock.settimeout(10)
