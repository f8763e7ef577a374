"""Children: real processes that behave, die, hang or refuse, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spliffd import ipc
from spliffd.stages import children
from spliffd.stages.children import Child

REPOSITORY = Path(__file__).resolve().parents[3]

PRELUDE = """
import os, signal, socket, sys, time
from spliffd import ipc
link = socket.socket(fileno=int(sys.argv[1]))
def say(message):
    link.send(ipc.encode(message))
def hear():
    data = link.recv(1 << 20)
    return ipc.decode_to_child(data) if data else None
"""

GOOD = """
say(ipc.Ready())
while (message := hear()) is not None and not isinstance(message, ipc.Stop):
    if isinstance(message, ipc.Ping):
        say(ipc.Pong(message.number))
"""


INHERITED = """
fds = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")}
secret = os.environ.get("SECRET_OF_THE_CALLER", "")
say(ipc.Failed("|".join(sorted(fds)), f"{os.getcwd()} {secret} {os.getpgid(0) == os.getpid() != os.getsid(0)}"))
"""


class Stage:
    """What the supervisor would do: counts starts and restarts, collects messages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started = self.restarted = 0
        self.messages: list[object] = []
        self.child: Child

    def make(self, program: str, fds: Callable[[], list[int]] = list) -> Child:
        (self._folder / "a_child.py").write_text(PRELUDE + program)
        self.child = Child(
            "test", lambda control: ["a_child", str(control)], fds,
            lambda _, message: self.messages.append(message), self._start, self._restart,
        )  # fmt: skip
        self.child.start()
        return self.child

    def _start(self, _child: Child) -> None:
        self.started += 1

    def _restart(self) -> None:
        self.restarted += 1


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    path = {**children.environment(), "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    monkeypatch.setattr(children, "environment", lambda: path)
    stage = Stage(tmp_path)
    yield stage
    await stage.child.stop(2)
    assert stage.child.pid == 0


async def until(condition, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of other processes have no event
            await asyncio.sleep(0.005)


async def ready(child: Child) -> int:
    await asyncio.wait_for(child.ready.wait(), 5)
    return child.pid


async def test_a_child_comes_up_answers_and_goes(stage):
    child = stage.make(GOOD)
    pid = await ready(child)
    assert (stage.started, stage.restarted) == (1, 0)
    child.ping(1)
    child.ping(2)
    await until(lambda: stage.messages == [ipc.Pong(1), ipc.Pong(2)])
    await child.stop(2)
    assert child.pid == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # no zombie either
    assert stage.restarted == 0


async def test_a_child_inherits_what_it_is_given_and_nothing_else(stage, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "secret")
    mine, other = os.memfd_create("mine", 0), os.memfd_create("other", 0)
    child = stage.make(INHERITED + GOOD, lambda: [mine])
    await ready(child)
    assert child.failure is not None
    assert "mine" in child.failure.message
    assert "other" not in child.failure.message
    assert child.failure.remedy == "/  True"
    os.close(mine)
    os.close(other)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_child_that_dies_comes_back(stage, number):
    child = stage.make(GOOD)
    first = await ready(child)
    os.kill(first, number)
    await until(lambda: stage.restarted == 1)
    assert not child.ping(1)  # nobody is there: no sign of life
    await until(lambda: stage.started == 2)
    assert child.pid not in (0, first)
    child.ping(2)
    await until(lambda: ipc.Pong(2) in stage.messages)


async def test_restarts_in_a_row_take_longer_and_longer(stage, monkeypatch):
    monkeypatch.setattr(children, "RESTART_SECONDS", (0.01, 0.15, 0.3))
    loop = asyncio.get_running_loop()
    child = stage.make(GOOD)
    delays = []
    for lives in range(1, 5):
        await until(lambda lives=lives: stage.started == lives)
        begin = loop.time()
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda lives=lives: stage.restarted == lives and child.pid != 0)
        delays.append(loop.time() - begin)
    assert delays[0] < 0.14
    assert delays[1] >= 0.15
    assert delays[2] >= 0.3
    assert 0.3 <= delays[3] < 0.6  # the longest, from then on


async def test_a_long_life_forgives(stage, monkeypatch):
    monkeypatch.setattr(children, "RESTART_SECONDS", (0.01, 60))
    monkeypatch.setattr(children, "STABLE_SECONDS", 0.0)
    child = stage.make(GOOD)
    for lives in range(1, 4):
        await until(lambda lives=lives: stage.started == lives)
        os.kill(child.pid, signal.SIGKILL)
    await until(lambda: stage.started == 4)


async def test_a_child_that_hangs_shows_at_the_next_ping_and_is_killed(stage, monkeypatch):
    monkeypatch.setattr(children, "SILENT_SECONDS", 0.4)
    child = stage.make(GOOD)
    first = await ready(child)
    os.kill(first, signal.SIGSTOP)
    assert child.ping(1)  # nothing was asked of it yet
    await asyncio.sleep(0.1)
    assert not child.ping(2)  # the first is not answered
    assert child.pid == first  # it may be slow
    await asyncio.sleep(0.4)
    assert not child.ping(3)
    await until(lambda: stage.started == 2)
    assert child.pid != first
    child.ping(4)
    await until(lambda: ipc.Pong(4) in stage.messages)
    assert child.ping(5)


async def test_a_supervisor_that_was_busy_does_not_blame_the_child(stage, monkeypatch):
    monkeypatch.setattr(children, "SILENT_SECONDS", 0.4)
    child = stage.make(GOOD)
    pid = await ready(child)
    for number in (1, 2):
        time.sleep(0.6)  # noqa: ASYNC251 - the loop stands still: nobody asks, and answers are not read
        assert child.ping(number)
    assert child.pid == pid


async def test_a_slow_child_is_alive_again_when_it_answers(stage):
    child = stage.make(GOOD)
    pid = await ready(child)
    os.kill(pid, signal.SIGSTOP)
    child.ping(1)
    assert not child.ping(2)
    os.kill(pid, signal.SIGCONT)
    await until(lambda: ipc.Pong(2) in stage.messages)
    assert child.ping(3)
    assert child.pid == pid


async def test_many_pings_to_a_child_that_hangs_do_not_block(stage):
    child = stage.make(GOOD)
    pid = await ready(child)
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    for number in range(20_000):  # more than the link holds
        child.send(ipc.Ping(number))
    assert time.monotonic() - begin < 5
    os.kill(pid, signal.SIGCONT)


async def test_a_child_that_cannot_serve_says_why_and_is_not_started_again(stage):
    child = stage.make('say(ipc.Failed("the port is taken", "take another"))')
    await ready(child)
    assert child.failure == ipc.Failed("the port is taken", "take another")
    await asyncio.sleep(0.2)
    assert (stage.started, stage.restarted, child.pid) == (0, 0, 0)


async def test_a_child_that_dies_before_it_is_ready_is_tried_again(stage, tmp_path):
    mark = tmp_path / "mark"
    child = stage.make(
        f"if not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w').close(); os._exit(9)\n" + GOOD
    )
    await ready(child)
    assert stage.restarted == 1


async def test_a_child_that_closes_its_link_is_ended(stage):
    child = stage.make("say(ipc.Ready())\nif len(sys.argv) == 2:\n    link.close(); time.sleep(60)\n")
    first = child.pid
    await until(lambda: stage.restarted >= 1)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_a_child_that_does_not_stop_is_killed(stage):
    child = stage.make("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(ipc.Ready())\ntime.sleep(60)\n")
    await ready(child)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await child.stop(0.2)
    assert 0.2 <= loop.time() - begin < 2
    assert child.pid == 0
    await asyncio.sleep(0.1)
    assert stage.restarted == 0


async def test_a_stop_between_two_lives_starts_none(stage, monkeypatch):
    monkeypatch.setattr(children, "RESTART_SECONDS", (0.1,))
    child = stage.make(GOOD)
    os.kill(await ready(child), signal.SIGKILL)
    await until(lambda: stage.restarted == 1)
    await child.stop(1)
    await asyncio.sleep(0.3)
    assert (child.pid, stage.started) == (0, 1)


async def test_what_cannot_be_read_ends_the_child_and_not_the_supervisor(stage):
    child = stage.make(
        "say(ipc.Ready())\nlink.send(b'\\xff no message')\n" + GOOD.replace("say(ipc.Ready())", "")
    )
    first = child.pid
    await until(lambda: stage.restarted >= 1)
    assert child.pid != first


def test_what_children_see_of_the_environment(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    monkeypatch.setenv("PYTHONSTARTUP", "/evil.py")
    monkeypatch.setenv("LANG", "C.UTF-8")
    seen = children.environment()
    assert seen["LANG"] == "C.UTF-8"
    assert seen["PYTHONPATH"] == str(REPOSITORY)
    assert not {"LD_PRELOAD", "PYTHONSTARTUP"} & seen.keys()
    assert not any(name.startswith("SPLIFF_") for name in seen)
    monkeypatch.setenv("SPLIFF_FAULT_FLOW_DELAY_MS", "20")
    assert children.environment()["SPLIFF_FAULT_FLOW_DELAY_MS"] == "20"
    assert sys.executable
