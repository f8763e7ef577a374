"""History on disk: across restarts of a real api process, beyond memory, and when the file is damaged."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc.aio
import pytest
from api_harness import Api, Worker, exchange, summary

from spliffd import counters, ipc
from spliffd.api import archive
from spliffd.api.archive import DiskArchive
from spliffd.api.history import History, Record
from spliffd.config import History as Settings
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(memory_mib=1, exchanges=7, path=str(folder / "history" / "history.db"))


@pytest.fixture
def boot(start, folder):
    """Starts the api; one after the other, each ended politely or killed."""

    def run(settings: Settings) -> tuple[Api, Worker]:
        folder.chmod(0o777)
        one = start(history=settings)
        assert one.hear() == ipc.Ready()
        return one, one.link()

    return run


async def listed(api: Api, **wishes) -> list[pb.Item]:
    async with grpc.aio.insecure_channel(f"unix:{api.path}") as channel:
        call = spliff_pb2_grpc.SpliffStub(channel).Watch(pb.WatchRequest(follow=False, **wishes), timeout=30)
        return [item async for response in call for item in response.items]


def kinds(items: list[pb.Item]) -> list[str]:
    """What came, short: s1 for ids from 1 on, the path of an exchange, the reason of a loss."""
    shown = []
    for item in items:
        if item.HasField("started"):
            shown.append(f"s{item.started.next_id}")
        elif item.HasField("loss"):
            shown.append(item.loss.reason)
        else:
            shown.append(item.exchange.request.path)
    return shown


def damage(file: Path, where: int) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:where] + b"\xa5" * 3000 + whole[where + 3000 :])


async def until(api: Api, path: str) -> None:
    deadline = time.monotonic() + 30
    while kinds(await listed(api, last=1))[-1] != path:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def stop(api: Api) -> None:
    api.tell(ipc.Stop())
    assert api.finish() == 0


async def test_it_survives_a_restart_and_tells_the_epochs_apart(boot, settings):
    first, worker = boot(settings)
    worker.send([exchange(f"/a{n}") for n in range(1, 102)])
    await until(first, "/a101")
    epoch = (await listed(first, last=1))[0].started.epoch
    since = time.time_ns()
    stop(first)
    second, worker = boot(settings)
    worker.send([exchange(f"/b{n}") for n in range(1, 12)])
    await until(second, "/b11")

    anew = ["restart", "s1", *(f"/b{n}" for n in range(1, 12))]
    assert kinds(await listed(second, last=200)) == ["s1", *(f"/a{n}" for n in range(1, 102)), *anew]
    assert kinds(await listed(second, last=13)) == ["s100", "/a100", "/a101", *anew]
    # Who was at a number of the first epoch gets all that came behind it, once.
    assert kinds(await listed(second, after_id=99, after_epoch=epoch)) == ["s100", "/a100", "/a101", *anew]
    assert kinds(await listed(second, after_id=101, after_epoch=epoch)) == ["s102", *anew]
    assert kinds(await listed(second, since_time_ns=since))[-11:] == anew[2:]
    assert kinds(await listed(second, after_id=9)) == ["s10", "/b10", "/b11"]
    assert kinds(await listed(second, after_id=0)) == ["s1", *anew[2:]]
    filtered = await listed(second, last=3, filter=pb.Filter(paths=["/a5", "/a77", "/b2"]))
    assert kinds(filtered) == ["s5", "/a5", "/a77", "restart", "s1", "/b2"]
    async with grpc.aio.insecure_channel(f"unix:{second.path}") as channel:
        stub = spliff_pb2_grpc.SpliffStub(channel)
        found = await stub.GetExchange(pb.GetExchangeRequest(id=7, epoch=epoch))
        assert (found.exchange.request.path, found.epoch) == ("/a7", epoch)


async def test_a_killed_process_loses_the_last_moment_at_most(boot, settings):
    first, worker = boot(settings)
    worker.send([exchange(f"/a{n}") for n in range(1, 102)])
    await until(first, "/a101")
    # What lies behind memory is read from the file: then it is written.
    assert len(await listed(first, after_id=0)) == 102
    first.process.kill()
    first.finish()
    second, worker = boot(settings)
    worker.send([exchange("/b1")])
    await until(second, "/b1")

    shown = kinds(await listed(second, last=500))
    written = [path for path in shown if path.startswith("/a")]
    assert written == [f"/a{n}" for n in range(1, len(written) + 1)]
    assert len(written) >= 94
    assert shown[-3:] == ["restart", "s1", "/b1"]


@pytest.mark.parametrize("where", [0, 4096, 30_000])
async def test_a_damaged_file_is_set_aside_and_another_made(boot, settings, where):
    first, worker = boot(settings)
    worker.send([exchange(f"/a{n}" + "x" * 300) for n in range(1, 202)])
    await until(first, "/a201" + "x" * 300)
    stop(first)
    file = Path(settings.path)
    damage(file, where)
    second, worker = boot(settings)
    worker.send([exchange("/b1")])
    await until(second, "/b1")

    assert kinds(await listed(second, last=500)) == ["s1", "/b1"]
    stop(second)
    aside = list(file.parent.glob("history.db.corrupt-*"))
    assert aside
    assert f"is set aside as {min(aside, key=lambda path: len(path.name))}" in second.errors
    third, _ = boot(settings)
    assert kinds(await listed(third, last=500))[:2] == ["s1", "/b1"]


async def test_a_folder_of_somebody_else_is_refused(start, folder):
    api = start(history=Settings(path=f"{folder}/history.db"), uid=65533)
    failed = api.hear()
    assert "belongs to another user" in failed.message
    assert api.finish() == 1


# ---- the file itself -------------------------------------------------------------------------------


def record(position: int, size: int = 1000, time_ns: int = 0) -> Record:
    return Record(
        position, 1, position, 0, 5, time_ns or position, False, b"m" * size, b"", b"", b"s%d" % position
    )


@pytest.fixture
def disk(folder):
    made = []

    def run(**settings) -> tuple[DiskArchive, counters.Region]:
        region = counters.Area.create().api
        made.append(DiskArchive(Settings(path=f"{folder}/h.db", **settings), region))
        return made[-1], region

    yield run
    for one in made:
        if one._thread.is_alive():
            one.close()


async def everything(disk: DiskArchive) -> list[Record]:
    found, position = [], await disk.first_position()
    while position and (some := await disk.read(position, 1000)):
        found += some
        position = some[-1].position + 1
    return found


async def test_records_come_back_as_they_were(disk):
    one, _ = disk()
    assert one.open() == 1
    kept = [record(n) for n in range(1, 1010)]
    one.offer(kept)
    one.close()
    again, _ = disk()
    assert again.open() == 1010
    assert await everything(again) == kept
    assert await again.behind(1, 500) == 501
    assert await again.behind(1, 5000) == 1010
    assert await again.behind(0, 5) == 0
    assert await again.since(700) == 700
    assert await again.since(1) == 1


async def test_the_oldest_give_way_to_size_and_age(disk):
    one, _ = disk(file_mib=1, hours=1)
    one.open()
    one.offer([record(n) for n in range(1, 2003)])
    one.close()
    again, _ = disk(file_mib=1, hours=1)
    again.open()
    left = await everything(again)
    assert left[-1].position == 2002
    assert 900 < len(left) < 960  # of 1,100 bytes each, in 1 MiB
    again.offer([record(2003, time_ns=4 * 3600 * 10**9)])
    again.close()
    third, _ = disk(file_mib=1, hours=1)
    third.open()
    assert [one.position for one in await everything(third)] == [2003]


async def test_what_the_disk_cannot_take_is_dropped_counted_and_told(disk, monkeypatch):
    monkeypatch.setattr(archive, "QUEUE_BYTES", 20_000)
    one, region = disk()
    one.offer([record(n) for n in range(1, 102)])  # nobody writes yet
    dropped = region.get("history_dropped")
    assert 80 < dropped < 101
    one.open()
    one.close()
    again, _ = disk()
    again.open()
    found = await everything(again)
    loss = pb.Loss.FromString(found[-1].message)
    assert found[-1].loss
    assert (loss.stage, loss.reason, loss.count) == ("history", "queue_full", dropped)
    assert len(found) - 1 + dropped == 101


async def test_without_a_disk_memory_goes_on(folder):
    region = counters.Area.create().api
    gone = DiskArchive(Settings(path=f"{folder}/no/such/h.db"), region)
    history = History(Settings(memory_mib=1), 1, gone.open(), gone)
    frame = ipc.Frame(ipc.EXCHANGE, 0, ipc.encode(summary(pid=1)), b"")
    for number in range(1, 102):
        history.add(frame, number, 0, number)
        history.flush()
    gone.close()

    assert len(history.read(1, 1000)) == 101
    assert region.get("history_dropped") == 101
    assert await everything(gone) == []
