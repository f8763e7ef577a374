"""Secrets to those who may see them, once the journal has it; nobody else learns that they are there."""

from __future__ import annotations

import asyncio
import grp
import os

import grpc
import grpc.aio
import pytest
from api_harness import Stream, exchange, watch

from spliffd import audit, ipc
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc

GROUP = grp.getgrgid(os.getgid()).gr_name


def secret_exchange() -> ipc.Frame:
    frame = exchange("/a", request_body=b"p=*abc*")
    frame.secret = pb.Exchange(revealed=[pb.Revealed(value="hunter2")]).SerializeToString()
    frame.secret_request_body = b"p=hunt2"
    return frame


async def token(api) -> tuple[tuple[str, str], ...]:
    async with grpc.aio.insecure_channel(f"unix:{api.path.with_name('auth.sock')}") as channel:
        answer = await spliff_pb2_grpc.AuthStub(channel).GetToken(pb.GetTokenRequest(), timeout=5)
    return (("authorization", f"Bearer {answer.token}"),)


async def revealing(api, stub, answer: str = "", **wishes) -> tuple[Stream, audit.Audited]:
    stream = Stream(stub.Watch(pb.WatchRequest(reveal=True, **wishes), metadata=await token(api)))
    started = asyncio.ensure_future(stream.call.read())
    query = await asyncio.to_thread(api.hear)
    assert query.name == "Audit"
    api.tell(ipc.Answer(number=query.number, payload=b"", error=answer))
    stream.started = started
    return stream, audit.decode(query.payload)


@pytest.fixture
def api(start):
    found = start(reveal_group=GROUP)
    assert found.hear() == ipc.Ready()
    return found


async def test_a_member_gets_them_and_others_do_not(api, stub):
    worker = api.link()
    other = await watch(stub, worker, bodies=True)
    stream, audited = await revealing(api, stub, bodies=True, filter=pb.Filter(paths=["/a\x1b*", "/a"]))
    demand = await asyncio.to_thread(worker.demand)
    await stream.started
    assert demand.reveal
    assert (audited.uid, audited.pid, audited.granted, audited.reason) == (os.getuid(), os.getpid(), True, "")
    assert audited.filter == 'paths: "/a\\033*" paths: "/a"'

    worker.send([secret_exchange()])
    found = await stream.kind("exchange")
    assert (found.request.body, found.revealed[0].value) == (b"p=hunt2", "hunter2")
    found = await other.kind("exchange")
    assert (found.request.body, list(found.revealed)) == (b"p=*abc*", [])
    assert b"hunt" not in found.SerializeToString()

    stream.call.cancel()
    assert not (await asyncio.to_thread(worker.demand)).reveal


async def test_without_the_journal_nothing_is_revealed(api, stub):
    api.link()
    stream, _ = await revealing(api, stub, answer="the disk is full")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.started
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "the journal cannot be written: the disk is full" in error.value.details()


async def test_nobody_may_where_no_group_is_named(start, folder):
    api = start()
    assert api.hear() == ipc.Ready()
    api.link()
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stream, audited = await revealing(api, spliff_pb2_grpc.SpliffStub(channel))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.started
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "access.reveal_group names no group" in error.value.details()
    assert not audited.granted
    assert audited.reason == error.value.details()


def test_a_group_that_does_not_exist_is_told(start):
    api = start(reveal_group="no-such-group")
    failed = api.hear()
    assert failed.message == "access.reveal_group: there is no group no-such-group"
    assert "groupadd" in failed.remedy
    assert api.finish() == 1
