"""The real process over gRPC: watching, filters, bodies, losses, restarts, questions."""

from __future__ import annotations

import asyncio
import os
import time

import grpc
import grpc.aio
import psutil
import pytest
from api_harness import Stream, exchange, summary, watch

from spliffd import ipc, metrics
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_a_new_link_is_told_that_nobody_watches(api):
    assert api.link().first == ipc.Demand(0, bodies=False, body_limit=0, handshakes=False, messages=False)


async def test_started_comes_only_after_the_worker_has_seen_the_demand(api, stub):
    worker = api.link()
    stream = Stream(stub.Watch(pb.WatchRequest(bodies=True, body_limit=100, handshakes=True)))
    started = asyncio.ensure_future(stream.kind("started"))
    demand = await asyncio.to_thread(worker.demand, acknowledge=False)
    # What the worker sends before it acknowledges was captured before: nobody's who begins to watch.
    worker.send([exchange("/early")])
    await asyncio.sleep(0.2)
    assert not started.done()

    worker.send([])
    found = await started

    assert demand == ipc.Demand(1, bodies=True, body_limit=100, handshakes=True, messages=False)
    assert found.next_id == 2
    worker.send([exchange("/first")])
    first = await stream.kind("exchange")
    assert (first.id, first.request.path) == (2, "/first")


async def test_a_hung_worker_delays_the_start_by_a_second_only(api, stub):
    worker = api.link()
    begin = time.monotonic()
    stream = Stream(stub.Watch(pb.WatchRequest()))
    await stream.kind("started")

    assert 0.9 < time.monotonic() - begin < 3
    assert worker.demand().watchers == 1


async def test_a_watcher_waits_for_a_worker_that_is_not_connected_yet(api, stub):
    stream = Stream(stub.Watch(pb.WatchRequest()))
    started = asyncio.ensure_future(stream.kind("started"))
    await asyncio.sleep(0.2)
    assert not started.done()
    worker = await asyncio.to_thread(api.link)
    await started

    assert worker.first.watchers == 1


async def test_demand_is_the_sum_of_all_wishes(api, stub):
    worker = api.link()
    wishes = [{"bodies": True, "body_limit": 10}, {"messages": True}, {"bodies": True, "body_limit": 1009}]
    streams = []
    for wish in wishes:
        stream = Stream(stub.Watch(pb.WatchRequest(**wish)))
        found = await asyncio.to_thread(worker.demand)
        await stream.kind("started")
        streams.append(stream)
    assert found == ipc.Demand(3, bodies=True, body_limit=1009, handshakes=False, messages=True)

    unlimited = Stream(stub.Watch(pb.WatchRequest(bodies=True)))
    assert (await asyncio.to_thread(worker.demand)).body_limit == 0
    for stream in (*streams, unlimited):
        stream.call.cancel()
    while (found := await asyncio.to_thread(worker.demand)).watchers:
        pass
    assert found == ipc.Demand(0, bodies=False, body_limit=0, handshakes=False, messages=False)


async def test_three_watchers_get_what_each_asked_for(api, stub):
    worker = api.link()
    everything = await watch(stub, worker)
    nginx = await watch(stub, worker, filter=pb.Filter(comms=["nginx"]))
    errors = await watch(stub, worker, filter=pb.Filter(statuses=[pb.StatusRange(first=500, last=599)]))
    frames = [
        exchange(f"/{i}", comm="nginx" if i % 3 == 0 else "curl", status=500 if i % 7 == 0 else 200)
        for i in range(211)
    ]
    for i in range(0, 211, 50):
        worker.send(frames[i : i + 50])

    all_seen = [await everything.kind("exchange") for _ in range(211)]
    assert [one.id for one in all_seen] == list(range(1, 212))
    assert [one.request.path for one in all_seen] == [f"/{i}" for i in range(211)]
    assert [(await nginx.kind("exchange")).id for _ in range(71)] == list(range(1, 212, 3))
    assert [(await errors.kind("exchange")).id for _ in range(31)] == list(range(1, 212, 7))
    assert api.area.api.get("items_delivered") == 211 + 71 + 31
    assert api.area.api.get("frames_received") == 211
    assert api.area.api.get("subscribers") == 3


async def test_bodies_follow_each_watchers_wish(api, stub):
    worker = api.link()
    none = await watch(stub, worker)
    whole = await watch(stub, worker, bodies=True)
    short = await watch(stub, worker, bodies=True, body_limit=4)
    worker.send([exchange(request_body=b"question", response_body=b"answer" * 1009)])

    assert (await none.kind("exchange")).response.body == b""
    found = await whole.kind("exchange")
    assert (found.request.body, found.response.body) == (b"question", b"answer" * 1009)
    cut = await short.kind("exchange")
    assert (cut.request.body, cut.response.body) == (b"ques", b"answ")
    assert cut.completeness.body_not_sent == 4 + 6 * 1009 - 4


async def test_parts_and_their_discard_reach_the_watcher(api, stub):
    worker = api.link()
    stream = await watch(
        stub, worker, bodies=True, filter=pb.Filter(statuses=[pb.StatusRange(first=404, last=404)])
    )
    part = ipc.Frame(
        kind=ipc.BODY_PART,
        part_key=77,
        summary=ipc.encode(summary(pid=1)),
        public=b"",
        request_body=b"x" * 70000,
    )
    worker.send([part])
    worker.send([exchange(status=200, part_key=77, request_offset=70000)])

    found = await stream.kind("body_part")
    assert (found.part_key, len(found.data), found.response) == (77, 70000, False)
    assert list((await stream.kind("discard")).part_keys) == [77]


async def test_a_stalled_watcher_costs_its_bound_and_learns_what_it_missed(api, stub):
    worker = api.link()
    other = await watch(stub, worker)
    stalled = await watch(stub, worker, bodies=True, queue_bytes=1 << 20)
    process = psutil.Process(api.process.pid)
    before = process.memory_info().rss
    sent = 0
    body = b"x" * 20_000
    for _ in range(600):  # 120 MB of bodies
        worker.send([exchange(response_body=body) for _ in range(10)])
        sent += 10
        for _ in range(10):
            await other.kind("exchange")
    grown = process.memory_info().rss - before
    # The bound, what gRPC and the socket hold, and the allocator's slack.
    assert grown < 24 << 20

    bodies = heads = 0
    lost = pb.Loss()
    shed = pb.Loss()
    while bodies + heads + lost.count < sent:
        item = await stalled.item()
        if item.WhichOneof("kind") == "loss":
            total = shed if item.loss.reason == "body_shed" else lost
            assert (item.loss.stage, item.loss.reason in ("body_shed", "queue_full")) == ("subscriber", True)
            total.count += item.loss.count
            total.bytes += item.loss.bytes
        elif item.exchange.response.body:
            bodies += 1
        else:
            heads += 1
    assert bodies + heads + lost.count == sent
    assert (shed.count, shed.bytes) == (heads, heads * len(body))
    assert lost.count > 0
    assert heads > 0
    assert api.area.api.get("subscriber_lost_items") == lost.count
    assert api.area.api.get("subscriber_lost_bodies") == shed.count


async def test_a_loss_is_told_within_a_second_while_nothing_else_happens(api, stub):
    worker = api.link()
    stream = await watch(stub, worker)
    loss = pb.Loss(stage="ring", reason="ring_full", count=13, bytes=1300, first_time_ns=5, last_time_ns=9)
    begin = time.monotonic()
    worker.send([ipc.Frame(kind=ipc.LOSS, part_key=0, summary=b"", public=loss.SerializeToString())])

    assert await stream.kind("loss") == loss
    assert time.monotonic() - begin < 1


async def test_garbage_from_a_worker_is_told_and_survived(api, stub):
    worker = api.link()
    stream = await watch(stub, worker)
    worker.sock.send(b"garbage")
    loss = await stream.kind("loss")
    worker.send([exchange("/after")])

    assert (loss.stage, loss.reason, loss.count, loss.bytes) == ("api", "bad_frame", 1, 7)
    assert (await stream.kind("exchange")).request.path == "/after"


async def test_a_restarted_worker_is_told_as_a_loss_and_gets_the_demand(api, stub):
    worker = api.link()
    stream = await watch(stub, worker, handshakes=True)
    worker.send([exchange("/last words")])
    worker.sock.close()
    fresh = await asyncio.to_thread(api.link)

    assert fresh.first == ipc.Demand(1, bodies=False, body_limit=0, handshakes=True, messages=False)
    seen = {item.WhichOneof("kind"): item for item in [await stream.item(), await stream.item()]}
    assert seen["exchange"].exchange.request.path == "/last words"
    loss = seen["loss"].loss
    assert (loss.stage, loss.reason, loss.count) == ("worker", "restart", 1)
    fresh.send([exchange("/again")])
    found = await stream.kind("exchange")
    assert (found.id, found.request.path) == (2, "/again")


async def test_two_workers_are_both_heard(start):
    api = start(workers=2)
    api.hear()
    workers = [api.link(0), api.link(1)]
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        stream = Stream(spliff_pb2_grpc.SpliffStub(channel).Watch(pb.WatchRequest()))
        started = asyncio.ensure_future(stream.kind("started"))
        await asyncio.to_thread(workers[0].demand)
        await asyncio.sleep(0.1)
        assert not started.done()
        await asyncio.to_thread(workers[1].demand)
        await started
        workers[0].send([exchange("/0")])
        workers[1].send([exchange("/1")])
        seen = [await stream.kind("exchange") for _ in range(2)]

    assert sorted(one.request.path for one in seen) == ["/0", "/1"]
    assert [one.id for one in seen] == [1, 2]


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (
            pb.WatchRequest(filter=pb.Filter(expression="x")),
            "INVALID_ARGUMENT",
            "filter.expression, column 1",
        ),
        (pb.WatchRequest(filter=pb.Filter(ports=[70000])), "INVALID_ARGUMENT", "filter.ports: 70000"),
        (pb.WatchRequest(reveal=True), "UNAUTHENTICATED", "auth"),
        (pb.WatchRequest(last=5), "FAILED_PRECONDITION", "no history"),
        (pb.WatchRequest(since_time_ns=5), "FAILED_PRECONDITION", "no history"),
        (pb.WatchRequest(after_id=0), "FAILED_PRECONDITION", "no history"),
        (pb.WatchRequest(follow=False), "FAILED_PRECONDITION", "no history"),
        (pb.WatchRequest(fields=["request.pathh"]), "INVALID_ARGUMENT", "fields: 'request.pathh'"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_the_reason(api, stub, request_, code, said):
    api.link()
    error = await refused(stub.Watch(request_).read())

    assert error.code().name == code
    assert said in error.details()


async def test_questions_go_to_the_supervisor_and_back(api, stub):
    asked = asyncio.ensure_future(stub.ListLibraries(pb.ListLibrariesRequest()))
    query = await asyncio.to_thread(api.hear)
    assert (query.name, query.payload) == ("ListLibraries", b"")
    response = pb.ListLibrariesResponse(libraries=[pb.Library(path="/usr/lib/libssl.so.3", state="attached")])
    api.tell(ipc.Answer(number=query.number + 1, payload=b"not this one"))
    api.tell(ipc.Answer(number=query.number, payload=response.SerializeToString()))

    assert await asked == response


async def test_an_answer_larger_than_a_datagram_comes_whole(api, stub):
    asked = asyncio.ensure_future(stub.ListFlows(pb.ListFlowsRequest(pids=[7])))
    query = await asyncio.to_thread(api.hear)
    assert (query.name, pb.ListFlowsRequest.FromString(query.payload).pids) == ("ListFlows", [7])
    flow = pb.Flow(wire="TC", process=pb.Process(pid=7, cmdline="x" * 1009))
    response = pb.ListFlowsResponse(flows=[flow] * 4099)
    answer, fds = ipc.packed(ipc.Answer(number=query.number, payload=response.SerializeToString()))
    assert answer.payload == b""
    assert answer.size > 4_000_000
    api.tell(answer, fds)
    os.close(fds[0])

    assert await asked == response


async def test_an_answer_without_its_memory_is_an_error(api, stub):
    asked = asyncio.ensure_future(stub.ListFlows(pb.ListFlowsRequest()))
    query = await asyncio.to_thread(api.hear)
    api.tell(ipc.Answer(number=query.number, payload=b"", size=1009))

    error = await refused(asked)
    assert error.details() == "ListFlows: its answer cannot be read: 1009 bytes of the answer are missing"


async def test_info_carries_the_epoch_of_the_ids(api, stub):
    stream = await watch(stub, api.link())
    asked = asyncio.ensure_future(stub.GetInfo(pb.GetInfoRequest()))
    query = await asyncio.to_thread(api.hear)
    info = pb.GetInfoResponse(version="0.10.0", epoch=1)
    api.tell(ipc.Answer(number=query.number, payload=info.SerializeToString()))

    found = await asked
    assert found.version == "0.10.0"
    again = await watch(stub, api.link(), handshakes=True)
    del stream, again
    assert abs(found.epoch - time.time_ns()) < 60e9


async def test_an_error_of_the_supervisor_reaches_the_caller(api, stub):
    asked = asyncio.ensure_future(stub.ListLibraries(pb.ListLibrariesRequest()))
    query = await asyncio.to_thread(api.hear)
    api.tell(ipc.Answer(number=query.number, payload=b"", error="the kernel refuses"))

    error = await refused(asked)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "ListLibraries: the kernel refuses"


async def test_a_supervisor_that_does_not_answer_is_reported(api, stub):
    begin = time.monotonic()
    error = await refused(stub.GetInfo(pb.GetInfoRequest()))

    assert 4.5 < time.monotonic() - begin < 8
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "did not answer within 5 s" in error.details()


async def test_statistics_are_the_block_and_its_numbers(api, stub):
    worker = api.link()
    stream = await watch(stub, worker)
    api.area.supervisor.set("probes_openssl", 4)
    worker.send([exchange() for _ in range(17)])
    for _ in range(17):
        await stream.kind("exchange")

    stats = await stub.GetStats(pb.GetStatsRequest())

    assert stats.values["spliff_items_delivered_total"] == 17
    assert stats.values["spliff_subscribers"] == 1
    assert stats.values['spliff_probes{library="openssl"}'] == 4
    assert "items delivered                            17" in stats.text
    assert 0 <= time.time_ns() - stats.since_time_ns < 60e9
    names = set(metrics.values(metrics.collect(api.area, _kernel(), 1)))
    assert set(stats.values) == names


def _kernel():
    from spliffd import counters

    return counters.kernel_region(memoryview(bytearray(4096)).cast("Q"))
