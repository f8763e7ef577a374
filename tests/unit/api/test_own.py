"""The socket for everybody: own processes only, whatever is tried; and the roles of the others."""

from __future__ import annotations

import asyncio
import os
import stat
import time

import grpc
import grpc.aio
import pytest
from api_harness import Stream, exchange

from spliffd import audit, ipc
from spliffd.api.tokens import LIFE_NS, Peer, Tokens
from spliffd.config import History
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc

ME = os.getuid()
OTHER = 4_000_007


@pytest.fixture
def api(start):
    found = start(users="own", history=History(memory_mib=1))
    assert found.hear() == ipc.Ready()
    return found


def own_path(api) -> str:
    return str(api.path.with_name("user.sock"))


async def bearer(api) -> tuple[tuple[str, str], ...]:
    async with grpc.aio.insecure_channel(f"unix:{api.path.with_name('auth.sock')}") as channel:
        answer = await spliff_pb2_grpc.AuthStub(channel).GetToken(pb.GetTokenRequest(), timeout=5)
    return (("authorization", f"Bearer {answer.token}"),)


@pytest.fixture
async def own(api):
    async with grpc.aio.insecure_channel(f"unix:{own_path(api)}") as channel:
        yield spliff_pb2_grpc.SpliffStub(channel)


async def refused(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details()


async def listed(own, proof, **wishes) -> list[pb.Item]:
    call = own.Watch(pb.WatchRequest(follow=False, **wishes), metadata=proof, timeout=30)
    return [item async for response in call for item in response.items]


def of(uid: int, path: str, **facts) -> ipc.Frame:
    return exchange(path, **{"uid": uid, "pid": uid + 1, **facts})


async def test_the_sockets_are_open_to_all_and_the_other_one_is_not(api):
    modes = {
        name: stat.S_IMODE(os.stat(api.path.with_name(name)).st_mode)
        for name in ("spliffd.sock", "user.sock", "auth.sock")
    }
    assert modes == {"spliffd.sock": 0o660, "user.sock": 0o666, "auth.sock": 0o666}


async def test_without_the_setting_there_is_no_such_socket(start):
    one = start()
    assert one.hear() == ipc.Ready()
    assert not one.path.with_name("user.sock").is_socket()
    assert stat.S_IMODE(os.stat(one.path.with_name("auth.sock")).st_mode) == 0o660


async def test_only_own_exchanges_come_numbered_by_themselves(api, own):
    worker = api.link()
    stream = Stream(own.Watch(pb.WatchRequest(bodies=True), metadata=await bearer(api)))
    await asyncio.to_thread(worker.demand)
    assert (await stream.kind("started")).next_id == 1
    worker.send([of(OTHER, f"/other/{n}") for n in range(101)])
    part = ipc.Frame(
        ipc.BODY_PART,
        (1 << 48) + 977,
        of(ME, "/mine").summary,
        b"",
        response_body=b"ab",
        response_offset=0,
        uid=ME,
    )
    others = ipc.Frame(
        ipc.BODY_PART, (1 << 48) + 978, of(OTHER, "/x").summary, b"", response_body=b"ab", uid=OTHER
    )
    worker.send([part, others, of(ME, "/mine", part_key=(1 << 48) + 977)])

    seen = await stream.kind("body_part")
    mine = await stream.kind("exchange")
    assert (mine.id, mine.request.path) == (1, "/mine")
    # Part keys count what everybody does as well: theirs is another, the same on both.
    assert seen.part_key == mine.part_key
    assert seen.part_key >> 48 != 1
    worker.send([of(OTHER, "/other"), of(ME, "/again")])
    assert (await stream.kind("exchange")).id == 2


@pytest.mark.parametrize(
    "wanted",
    [
        pb.Filter(pids=[OTHER + 1]),
        pb.Filter(users=[str(OTHER)]),
        pb.Filter(ppids=[1]),
        pb.Filter(expression=f"process.uid == {OTHER}"),
        pb.Filter(expression=f"process.uid != {ME} || request.path.startsWith('/secret')"),
        pb.Filter(paths=["/secret*"]),
    ],
)
async def test_no_filter_reaches_beyond_own_processes(api, own, wanted):
    worker = api.link()
    proof = await bearer(api)
    stream = Stream(own.Watch(pb.WatchRequest(filter=wanted), metadata=proof))
    await asyncio.to_thread(worker.demand)
    await stream.kind("started")
    worker.send([of(OTHER, "/secret"), of(OTHER, "/secret", kind=ipc.HANDSHAKE)])
    worker.send([of(ME, "/secret", pid=OTHER + 1, ppid=1)])
    if not wanted.expression.startswith("process.uid ==") and not wanted.users:
        # A process id that was handed out again: whose it is now decides.
        assert (await stream.kind("exchange")).id == 1
    items = await listed(own, proof, last=100, filter=wanted)
    shown = [item.exchange for item in items if item.WhichOneof("kind") == "exchange"]
    assert all(one.id == 1 for one in shown)
    assert b"/secret" not in b"".join(item.SerializeToString() for item in items) or shown


async def test_history_tells_nothing_of_others(api, own):
    worker = api.link()
    loss = pb.Loss(
        stage="worker", reason="queue_full", count=977, bytes=1009, first_time_ns=5, last_time_ns=7
    )
    worker.send([of(OTHER, "/1"), of(ME, "/2"), of(OTHER, "/3")])
    worker.send([ipc.Frame(ipc.LOSS, 0, b"", loss.SerializeToString()), of(ME, "/4"), of(OTHER, "/5")])
    proof = await bearer(api)
    deadline = time.monotonic() + 30
    while len(items := await listed(own, proof, after_id=0)) < 4:
        assert time.monotonic() < deadline

    assert [(item.exchange.id, item.exchange.request.path) for item in items[1::2]] == [(1, "/2"), (2, "/4")]
    # That something was lost then, not how much of whose.
    assert items[2].loss == pb.Loss(stage="daemon", reason="shared", first_time_ns=5, last_time_ns=7)
    assert [item.exchange.id for item in await listed(own, proof, last=1) if item.HasField("exchange")] == [2]
    assert [
        item.exchange.id for item in await listed(own, proof, after_id=1) if item.HasField("exchange")
    ] == [2]
    found = await own.GetExchange(pb.GetExchangeRequest(id=1), metadata=proof)
    assert found.exchange.request.path == "/2"
    for number, code in ((3, "NOT_FOUND"), (4, "OUT_OF_RANGE")):
        assert (await refused(own.GetExchange(pb.GetExchangeRequest(id=number), metadata=proof)))[0] == code


@pytest.mark.parametrize("name", ["ListLibraries", "ListInterfaces", "GetStats", "SetDebug"])
async def test_what_tells_of_everybody_is_refused_with_or_without_a_token(api, own, name):
    method, request = getattr(own, name), getattr(pb, f"{name}Request")()
    for proof in ((), await bearer(api)):
        code, why = await refused(method(request, metadata=proof))
        assert (code, why.startswith(f"{name} tells of every user's processes")) == (
            "PERMISSION_DENIED",
            True,
        )
    assert api.area.api.get("refused_permission") == 2


@pytest.mark.parametrize("name", ["ListFlows", "ListProcesses"])
async def test_flows_and_processes_are_asked_for_the_caller_alone(api, own, stub, name):
    method, request = getattr(own, name), getattr(pb, f"{name}Request")(pids=[1])
    code, why = await refused(method(request))
    assert (code, "takes a token from" in why) == ("UNAUTHENTICATED", True)

    for way, proof, owner in ((method, await bearer(api), ME), (getattr(stub, name), (), -1)):
        asked = asyncio.ensure_future(_answered(way(request, metadata=proof)))
        query = await asyncio.to_thread(api.hear)
        assert (query.name, query.owner, query.payload) == (name, owner, request.SerializeToString())
        api.tell(ipc.Answer(number=query.number, payload=b""))
        await asked


async def _answered(call):
    return await call


async def test_info_tells_what_runs_and_nothing_of_how_it_goes(api, own):
    asked = asyncio.ensure_future(own.GetInfo(pb.GetInfoRequest(), metadata=await bearer(api)))
    query = await asyncio.to_thread(api.hear)
    whole = pb.GetInfoResponse(version="1", health="977 exchanges", scope=["user x"], processes={"api": 5})
    api.tell(ipc.Answer(number=query.number, payload=whole.SerializeToString()))
    found = await asked
    assert (found.version, found.health, list(found.scope), dict(found.processes)) == ("1", "", [], {})


async def test_a_watch_is_flushed_by_its_own_user_only(api, own, stub):
    worker, proof = api.link(), await bearer(api)
    call = own.Watch(pb.WatchRequest(flush_key=7), metadata=proof)
    await asyncio.to_thread(worker.demand)
    assert (await call.read()).items[0].HasField("started")

    assert (await refused(own.Flush(pb.FlushRequest(flush_key=7))))[0] == "UNAUTHENTICATED"
    assert (await refused(stub.Flush(pb.FlushRequest(flush_key=7))))[0] == "NOT_FOUND"
    asked = own.Flush(pb.FlushRequest(flush_key=7), metadata=proof)
    number = await asyncio.to_thread(worker.flush)
    worker.send([of(OTHER, "/theirs"), of(ME, "/mine")])
    worker.flushed(number)
    await asked
    kinds = [item.WhichOneof("kind") for item in (await call.read()).items]
    while len(kinds) < 2:
        kinds += [item.WhichOneof("kind") for item in (await call.read()).items]
    assert kinds == ["exchange", "flushed"]


async def test_no_token_that_was_not_issued_here_opens_anything(api, own):
    genuine = (await bearer(api))[0][1].removeprefix("Bearer ")
    text, _, signature = genuine.rpartition(".")
    uid, pid, roles, expiry = text.split(".")
    foreign, _ = Tokens(None).issue(Peer(ME, os.getpid(), frozenset()), time.time_ns())
    forged = [
        f"{int(uid) + 1}.{pid}.{roles}.{expiry}.{signature}",
        f"{OTHER}.{pid}.{roles}.{expiry}.{signature}",
        f"{uid}.{pid}.r.{expiry}.{signature}",
        f"{uid}.{pid}.{roles}.{int(expiry) + LIFE_NS}.{signature}",
        f"{text}.{signature[:-1]}",
        f"{text}.{'0' * 64}",
        foreign,
        "",
        "." * 200,
        "x" * 100_000,
    ]
    for token in forged:
        metadata = (("authorization", f"Bearer {token}"),)
        code, _ = await refused(own.Watch(pb.WatchRequest(), metadata=metadata).read())
        assert code in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED"), token
    for metadata in ((), (("authorization", genuine),), (("authorization", f"Basic {genuine}"),)):
        code, why = await refused(own.Watch(pb.WatchRequest(), metadata=metadata).read())
        assert (code, "takes a token from" in why) == ("UNAUTHENTICATED", True)


async def test_one_user_takes_the_room_of_no_other(api, own, stub):
    worker = api.link()
    proof = await bearer(api)
    streams = []
    for _ in range(8):
        stream = Stream(own.Watch(pb.WatchRequest(), metadata=proof))
        await asyncio.to_thread(worker.demand)
        await stream.kind("started")
        streams.append(stream)
    code, why = await refused(own.Watch(pb.WatchRequest(), metadata=proof).read())
    assert (code, "end one of yours" in why) == ("RESOURCE_EXHAUSTED", True)
    group = Stream(stub.Watch(pb.WatchRequest()))
    await asyncio.to_thread(worker.demand)
    await group.kind("started")


# ---- the debug log -------------------------------------------------------------------------------


async def switch(api, stub, proof) -> asyncio.Future:
    return asyncio.ensure_future(stub.SetDebug(pb.SetDebugRequest(enabled=True), metadata=proof))


async def test_the_debug_log_takes_a_token_and_a_role(start):
    api = start()
    assert api.hear() == ipc.Ready()
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stub = spliff_pb2_grpc.SpliffStub(channel)
        code, why = await refused(stub.SetDebug(pb.SetDebugRequest(enabled=True)))
        assert (code, why.startswith("SetDebug takes a token")) == ("UNAUTHENTICATED", True)

        asked = await switch(api, stub, await bearer(api))
        query = await asyncio.to_thread(api.hear)
        audited = audit.decode(query.payload)
        assert (query.name, audited.what, audited.filter, audited.uid) == ("Audit", "debug", "on", ME)
        assert audited.granted is (ME == 0)
        api.tell(ipc.Answer(number=query.number, payload=b""))
        if ME:
            assert (await refused(asked))[0] == "PERMISSION_DENIED"
            return
        query = await asyncio.to_thread(api.hear)
        assert (query.name, pb.SetDebugRequest.FromString(query.payload).enabled) == ("SetDebug", True)
        api.tell(ipc.Answer(number=query.number, payload=pb.SetDebugResponse().SerializeToString()))
        assert not (await asked).was_enabled


async def test_without_a_line_in_the_journal_nothing_is_switched(start):
    api = start()
    assert api.hear() == ipc.Ready()
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        asked = await switch(api, spliff_pb2_grpc.SpliffStub(channel), await bearer(api))
        query = await asyncio.to_thread(api.hear)
        api.tell(ipc.Answer(number=query.number, payload=b"", error="the disk is full"))
        code, why = await refused(asked)
        assert (code, "the journal cannot be written" in why) == ("UNAVAILABLE", True)
