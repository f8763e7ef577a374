"""Owners of sockets are entered when a worker asks, for all who ask at once, and not all the time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

from spliffd import ipc
from spliffd.stages import owners
from spliffd.stages.children import Child
from spliffd.stages.owners import Owners


class Worker:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, message: object) -> None:
        self.told.append(message)


def child(worker: Worker) -> Child:
    return cast(Child, worker)


async def told(worker: Worker, times: int = 1) -> None:
    async with asyncio.timeout(5):
        while len(worker.told) < times:  # noqa: ASYNC110 - the answer comes by a timer
            await asyncio.sleep(0.001)


async def test_one_run_answers_all_who_asked():
    runs = []
    stage = Owners(lambda: runs.append(1))
    one, two = Worker(), Worker()
    for worker in (one, two, one, one):
        stage.asked(child(worker))
    await told(one)
    await told(two)
    assert (one.told, two.told) == ([ipc.OwnersEntered()], [ipc.OwnersEntered()])
    assert len(runs) == 1


async def test_between_two_runs_there_is_a_pause(monkeypatch):
    monkeypatch.setattr(owners, "LEAST_PAUSE_SECONDS", 0.05)
    at = []
    stage = Owners(lambda: at.append(asyncio.get_running_loop().time()))
    worker = Worker()
    for n in range(3):
        stage.asked(child(worker))
        await told(worker, n + 1)
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(at))


async def test_where_there_is_no_iterator_the_worker_is_told_all_the_same():
    def refused() -> None:
        raise OSError("this kernel has no iterator")

    worker = Worker()
    Owners(refused).asked(child(worker))
    await told(worker)
    assert worker.told == [ipc.OwnersEntered()]
