"""The life of the process: socket, privileges, standard services, every way to end."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from api_harness import Stream, exchange, watch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from spliffd import counters, ipc
from spliffd.pb import spliff_pb2 as pb


async def test_the_socket_belongs_to_its_group_alone(api):
    found = api.path.stat()

    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == api.gid
    assert found.st_uid == os.geteuid()


def test_the_process_has_given_up_everything(api):
    process = Path("/proc") / str(api.process.pid)
    tasks = list((process / "task").iterdir())
    assert len(tasks) > 1  # gRPC has threads, and they must have given it up as well
    for task in tasks:
        lines = dict(
            line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line
        )
        assert lines["Uid"].split() == [str(api.uid)] * 4
        assert lines["Gid"].split() == [str(api.gid)] * 4
        assert lines["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert lines["Groups"].strip() == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(lines[name], 16) == 0, name
    # Not dumpable: /proc/PID belongs to root, so others of its user cannot look into it.
    assert (process / "environ").stat().st_uid == 0
    assert psutil.Process(api.process.pid).cmdline()[0] == "spliffd: api"


def test_it_holds_no_fd_that_it_does_not_need(api):
    def targets():
        return [os.readlink(fd) for fd in Path(f"/proc/{api.process.pid}/fd").iterdir()]

    assert not [target for target in targets() if "kernel-counters" in target]
    before = len(targets())
    api.link()
    api.link()  # the second replaces the first
    assert len(targets()) == before + 1


def test_kernel_counters_that_cannot_be_mapped_are_reported(start, monkeypatch):
    area = counters.Area.create()
    monkeypatch.setattr(os, "memfd_create", lambda *_: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    monkeypatch.setattr(counters.Area, "create", lambda: area)
    api = start()

    failed = api.hear()
    assert failed.message.startswith("the kernel's counters cannot be mapped")
    assert api.finish() == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to become somebody else")
def test_root_that_cannot_be_given_up_is_reported_and_nothing_is_served(start):
    api = start(uid=-1)

    failed = api.hear()
    assert failed.message.startswith("the api cannot become uid -1")
    assert "start spliffd as root" in failed.remedy
    assert api.finish() == 1


def test_a_socket_that_cannot_be_bound_is_reported(start, folder):
    (folder / "spliffd.sock").mkdir()
    api = start()

    failed = api.hear()
    assert isinstance(failed, ipc.Failed)
    assert failed.message.startswith(f"cannot listen on {api.path}")
    assert "directory" in failed.remedy
    assert api.finish() == 1
    assert "cannot listen" in api.errors


def test_pings_are_answered(api):
    for number in (1, 1009):
        api.tell(ipc.Ping(number=number))
        assert api.hear() == ipc.Pong(number=number)


async def test_health_and_reflection_are_served(api):
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "spliff.v1.Spliff"):
            found = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await call.read()
        call.cancel()

    names = [service.name for service in answer.list_services_response.service]
    assert "spliff.v1.Spliff" in names
    assert "grpc.health.v1.Health" in names


@pytest.mark.parametrize("how", ["stop", "sigterm"])
async def test_stopping_delivers_what_is_queued_and_ends_streams_with_ok(api, stub, how):
    worker = api.link()
    stream = await watch(stub, worker)
    worker.send([exchange(f"/{i}") for i in range(211)])
    if how == "stop":
        api.tell(ipc.Stop())
    else:
        api.process.send_signal(signal.SIGTERM)

    assert [(await stream.kind("exchange")).id for _ in range(211)] == list(range(1, 212))
    assert await stream.ended()
    assert await stream.call.code() == grpc.StatusCode.OK
    assert await asyncio.to_thread(api.finish) == 0
    assert not api.path.exists() or api.uid != os.geteuid()


async def test_a_watcher_that_does_not_read_is_cut_off_after_two_seconds(api, stub):
    worker = api.link()
    stream = await watch(stub, worker, bodies=True)
    for _ in range(40):
        worker.send([exchange(response_body=b"x" * 500_000)])
    # All taken in before the clock starts.
    api.tell(ipc.Ping(number=1))
    await asyncio.to_thread(api.hear)
    begin = time.monotonic()
    api.tell(ipc.Stop())

    assert await asyncio.to_thread(api.finish) == 0
    assert 1.5 < time.monotonic() - begin < 5
    assert api.area.api.get("subscriber_lost_items") > 0
    del stream


async def test_while_stopping_nobody_new_may_watch(api, stub):
    worker = api.link()
    stream = await watch(stub, worker, bodies=True)
    for _ in range(40):
        worker.send([exchange(response_body=b"x" * 500_000)])
    api.tell(ipc.Stop())
    await asyncio.sleep(0.5)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Watch(pb.WatchRequest()).read()
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    del stream


def test_without_a_supervisor_the_process_ends(api):
    api.control.close()

    assert api.finish() == 1
    assert "the supervisor is gone" in api.errors


def test_an_interrupt_is_the_supervisors_decision(api):
    for number in (signal.SIGINT, signal.SIGHUP):
        api.process.send_signal(number)
    api.tell(ipc.Ping(number=5))

    assert api.hear() == ipc.Pong(number=5)


async def test_debug_switches_the_log(api):
    api.tell(ipc.Debug(enabled=True))
    worker = api.link()
    api.tell(ipc.Debug(enabled=False))
    second = api.link(1)
    api.tell(ipc.Stop())
    await asyncio.to_thread(api.finish)

    assert "worker 0 is connected" in api.errors
    assert "worker 1 is connected" not in api.errors
    del worker, second


async def test_a_65th_watcher_is_refused(api, stub):
    worker = api.link()
    streams = []
    for _ in range(64):
        stream = Stream(stub.Watch(pb.WatchRequest()))
        await asyncio.to_thread(worker.demand)
        await stream.kind("started")
        streams.append(stream)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Watch(pb.WatchRequest()).read()
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "64 watchers" in error.value.details()


async def test_an_idle_process_uses_no_processor_time(api, stub):
    worker = api.link()
    await watch(stub, worker)
    process = psutil.Process(api.process.pid)
    await asyncio.sleep(0.5)
    before = process.cpu_times()
    switches = process.num_ctx_switches().voluntary
    await asyncio.sleep(3)
    after = process.cpu_times()

    assert after.user + after.system - before.user - before.system <= 0.02
    assert process.num_ctx_switches().voluntary - switches < 30
