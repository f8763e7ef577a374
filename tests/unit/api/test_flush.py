"""Flush: a watcher is told in its own stream that everything captured before has come, and nobody else is."""

from __future__ import annotations

import asyncio
import socket

import grpc
import grpc.aio
import pytest
from api_harness import Stream, exchange, watch

from spliffd import ipc
from spliffd.api import hub as hubs
from spliffd.api.history import History
from spliffd.api.hub import Hub
from spliffd.api.links import DataLink
from spliffd.config import History as HistoryConfig
from spliffd.counters import Area
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc

KEY = 1 << 63 | 5


async def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


def flush(stub, key: int = KEY):
    return stub.Flush(pb.FlushRequest(flush_key=key))


async def test_the_mark_is_behind_what_the_worker_sent_before_it_answered(api, stub):
    worker = api.link()
    mine = await watch(stub, worker, flush_key=KEY)
    other = await watch(stub, worker, flush_key=7)
    asked = flush(stub)
    number = await asyncio.to_thread(worker.flush)
    worker.send([exchange("/before")])
    worker.flushed(number)
    await asked
    worker.send([exchange("/after")])

    assert (await mine.kind("exchange")).request.path == "/before"
    assert await mine.kind("flushed") == pb.Flushed()
    assert (await mine.kind("exchange")).request.path == "/after"
    assert [(await other.kind("exchange")).request.path for _ in range(2)] == ["/before", "/after"]


async def test_every_worker_is_waited_for_one_that_is_restarted_as_well(start):
    api = start(workers=2)
    assert api.hear() == ipc.Ready()
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stub = spliff_pb2_grpc.SpliffStub(channel)
        first, second = api.link(0), api.link(1)
        call = stub.Watch(pb.WatchRequest(flush_key=KEY))
        for worker in (first, second):
            await asyncio.to_thread(worker.demand)
        stream = Stream(call)
        await stream.kind("started")

        asked = flush(stub)
        number = await asyncio.to_thread(first.flush)
        await asyncio.to_thread(second.flush)
        first.flushed(number)
        second.sock.close()  # it died before it answered
        await asyncio.sleep(0.2)
        assert not asked.done()
        anew = await asyncio.to_thread(api.link, 1)
        number = await asyncio.to_thread(anew.flush)
        anew.send([exchange("/from its ring")])
        anew.flushed(number)
        await asked

        assert (await stream.kind("loss")).reason == "restart"
        assert (await stream.kind("exchange")).request.path == "/from its ring"
        await stream.kind("flushed")


async def test_only_a_watch_that_goes_on_can_be_flushed_and_one_call_at_a_time(api, stub):
    worker = api.link()
    assert await code_of(flush(stub)) == grpc.StatusCode.NOT_FOUND
    assert await code_of(flush(stub, 0)) == grpc.StatusCode.NOT_FOUND
    unnamed = await watch(stub, worker)
    assert await code_of(flush(stub, 0)) == grpc.StatusCode.NOT_FOUND
    stream = await watch(stub, worker, flush_key=KEY)
    assert await code_of(stub.Watch(pb.WatchRequest(flush_key=KEY)).read()) == grpc.StatusCode.ALREADY_EXISTS

    asked = flush(stub)
    number = await asyncio.to_thread(worker.flush)
    assert await code_of(flush(stub)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    worker.flushed(number)
    await asked
    await stream.kind("flushed")

    stream.call.cancel()
    unnamed.call.cancel()
    while (await asyncio.to_thread(worker.demand)).watchers:
        pass
    assert await code_of(flush(stub)) == grpc.StatusCode.NOT_FOUND


async def test_a_worker_that_does_not_catch_up_is_waited_for_so_long_and_no_longer(monkeypatch):
    monkeypatch.setattr(hubs, "FLUSH_SECONDS", 0.1)
    area = Area.create()
    hub = Hub(area.api, 1, History(HistoryConfig(memory_mib=0), 1))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        hub.connect(0, lambda made: DataLink(ours, made.deliver, made.bad_datagram, made.notify))
        assert not await hub.flushed()
        hub.close()
