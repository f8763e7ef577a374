"""The interface stage against a kernel that refuses, is slow, or has too many interfaces."""

import asyncio
import errno
import os

import pytest

from spliffd import config
from spliffd.counters import Area
from spliffd.interfaces import policy
from spliffd.interfaces.hooks import Hook
from spliffd.kernel import rtnetlink
from spliffd.stages import interfaces
from spliffd.stages.interfaces import Interfaces


def link(index: int, name: str, up: bool = True) -> bytes:
    return rtnetlink.LINK.pack(0, 1, index, 1 if up else 0, 0) + rtnetlink.attribute(3, name.encode() + b"\0")


class FakeHooks:
    """Stands for the kernel: what there is, what it refuses, and what is attached."""

    def __init__(self, programs):
        self.there: list[bytes] = []
        self.refuse: list[int] = []
        self.attached: list[int] = []
        self.order: list[int] = []
        self.hurried: list[int] = []
        self.promoted: list[int] = []
        self.during = lambda index: None

    def sweep(self):
        return 0

    def links(self, body):
        return self.there

    def attach(self, index, plan, *, hurry=False):
        self.order.append(index)
        self.during(index)
        if self.refuse:
            number = self.refuse.pop(0)
            raise OSError(number, os.strerror(number))
        self.attached.append(index)
        if hurry:
            self.hurried.append(index)
        return Hook("TC", "clsact" if hurry else "tcx", plan.reason, index, [], provisional=hurry)

    def promote(self, hook, plan):
        self.promoted.append(hook.index)
        hook.mode, hook.provisional = "tcx", False

    def is_attached(self, hook):
        return True

    def detach(self, hook):
        self.attached.remove(hook.index)

    def close(self):
        assert not self.attached


class FakeCounts:
    def __init__(self, fd):
        self.counted: set[int] = set()

    def start(self, index):
        assert index not in self.counted
        self.counted.add(index)

    def stop(self, index):
        self.counted.remove(index)


@pytest.fixture
async def stage(monkeypatch):
    monkeypatch.setattr(interfaces, "Hooks", FakeHooks)
    monkeypatch.setattr(interfaces, "Counts", FakeCounts)
    monkeypatch.setattr(interfaces, "RETRY_SECONDS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(interfaces, "CALM_SECONDS", 0)
    warned: list[str] = []
    monkeypatch.setattr(interfaces.log, "warning", lambda event, **_: warned.append(event))
    area = Area.create()
    stage = Interfaces(config.Interfaces(), {}, -1, area.supervisor, lambda message: None)
    stage.area = area
    stage.warned = warned
    yield stage
    await stage.close()
    assert not stage._counts.counted


async def settle(stage: Interfaces) -> None:
    while stage._working is not None:
        await asyncio.wait((stage._working,))
        await asyncio.sleep(0)


async def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


def appear(stage: Interfaces, *bodies: bytes, kind: int = rtnetlink.NEW_LINK) -> None:
    """Messages, as if they had come."""
    waiting = [[rtnetlink.Message(kind, 0, 0, body) for body in bodies], []]

    class Events:
        def receive(self):
            return waiting.pop(0)

        def fileno(self):
            return -1

        def close(self):
            pass

    real, stage._events = stage._events, Events()
    stage._readable()
    stage._events = real


def counted(stage: Interfaces, name: str) -> int:
    return stage.area.supervisor.get(name)


async def test_a_refusal_is_tried_again_with_growing_pauses_and_told_once(stage):
    stage._hooks.there = [link(2, "eth0")]
    stage._hooks.refuse = [errno.EMFILE] * 5
    await stage.start()
    await settle(stage)
    entry = stage.table[2]
    assert (entry.hook, entry.error) == (None, "Too many open files")
    assert stage.feature().state == "degraded"
    assert "1 failed" in stage.feature().detail
    began = asyncio.get_running_loop().time()
    await until(lambda: entry.hook is not None)
    assert asyncio.get_running_loop().time() - began > 0.01 + 0.02 + 0.04 * 3 - 0.03
    assert (entry.error, entry.attempts) == ("", 0)
    assert counted(stage, "interface_failures") == 5
    assert stage.warned == ["not attached"]
    await settle(stage)
    assert stage.feature().state == "ok"
    assert counted(stage, "interfaces_TC_tcx") == 1


async def test_an_interface_that_is_gone_is_no_failure(stage):
    stage._hooks.refuse = [errno.ENODEV]
    await stage.start()
    appear(stage, link(5, "veth5"))
    await settle(stage)
    assert counted(stage, "interface_failures") == 0
    assert stage.table[5].retry is None


async def test_those_that_are_up_come_first(stage):
    await stage.start()
    appear(stage, *(link(index, f"v{index}", up=index % 2 == 0) for index in range(2, 8)))
    await settle(stage)
    assert stage._hooks.order == [2, 4, 6, 3, 5, 7]


async def test_in_a_rush_filters_come_first_and_links_later(stage):
    await stage.start()
    appear(stage, *(link(index, f"v{index}") for index in range(2, 213)))
    await settle(stage)
    hurried = 211 - interfaces.HURRY_ABOVE
    assert stage._hooks.hurried == list(range(2, 2 + hurried))
    assert stage._hooks.promoted == stage._hooks.hurried
    assert counted(stage, "interfaces_TC_tcx") == 211
    assert counted(stage, "interfaces_TC_clsact") == 0


async def test_an_interface_that_goes_while_it_is_hooked_is_let_go(stage):
    await stage.start()
    loop = asyncio.get_running_loop()

    def replaced(index: int) -> None:
        stage._hooks.during = lambda index: None
        done = asyncio.run_coroutine_threadsafe(replace(), loop)
        done.result(5)

    async def replace() -> None:
        appear(stage, link(9, "old"), kind=rtnetlink.DEL_LINK)
        appear(stage, link(9, "new"))

    stage._hooks.during = replaced
    appear(stage, link(9, "old"))
    await settle(stage)
    assert stage.table[9].device.name == "new"
    assert stage._hooks.attached == [9]
    assert stage._hooks.order == [9, 9]


async def test_a_full_table_is_counted_and_room_in_it_is_used(stage, monkeypatch):
    monkeypatch.setattr(interfaces, "MAX_INTERFACES", 3)
    bodies = [link(index, f"v{index}") for index in range(2, 7)]
    stage._hooks.there = bodies
    await stage.start()
    await settle(stage)
    assert sorted(stage.table) == [2, 3, 4]
    assert counted(stage, "interface_table_full") == 2
    stage._hooks.there = bodies[1:]
    appear(stage, bodies[0], kind=rtnetlink.DEL_LINK)
    await settle(stage)
    assert sorted(stage.table) == sorted(stage._hooks.attached) == [3, 4, 5]


async def test_hardware_that_joins_a_bridge_keeps_its_hook(stage):
    stage._hooks.there = [link(2, "eth0") + rtnetlink.attribute(56, b"0000:00:1f.6\0")]
    await stage.start()
    await settle(stage)
    assert stage.table[2].plan.hook == policy.XDP_NATIVE
    appear(stage, stage._hooks.there[0] + rtnetlink.attribute(10, (7).to_bytes(4, "little")))
    await settle(stage)
    assert stage._hooks.order == [2]
    stage.reload(config.Interfaces(mode="tc"))
    await settle(stage)
    assert stage._hooks.order == [2, 2]
    stage.reload(config.Interfaces(mode="off"))
    await settle(stage)
    assert stage._hooks.attached == []
    assert stage.feature().detail == "packet hooks are switched off in the configuration"


async def test_a_table_that_cannot_be_read_is_read_later(stage, monkeypatch):
    await stage.start()
    attempts = []

    def refused(body):
        attempts.append(body)
        if len(attempts) == 1:
            raise TimeoutError("timed out")
        return [link(2, "eth0")]

    monkeypatch.setattr(stage._hooks, "links", refused)
    stage._read_again()
    await until(lambda: 2 in stage.table)
    assert len(attempts) == 2


async def test_a_new_name_between_the_works_last_look_and_its_end_is_not_left(stage):
    busy, loop = stage._busy, asyncio.get_running_loop()
    told = []

    def look() -> bool:
        found = busy()
        if not found and not told:
            # Runs before the callback of the task that ends now: both are in the loop's queue, in this order.
            told.append(loop.call_soon(appear, stage, link(5, "uplink0")))
        return found

    await stage.start()
    await settle(stage)
    stage._busy = look
    appear(stage, link(4, "eth0"))
    await until(lambda: stage._hooks.attached == [4, 5])
    assert told
