"""When processes are looked at after their exec, and after they map what nobody has mapped before."""

from __future__ import annotations

import asyncio

import pytest

from spliffd.stages import looks
from spliffd.stages.looks import LOOK_AFTER_SECONDS, LOOKS_AFTER_MAPPING, LOOKS_BESIDE_MAPPINGS, Looks
from spliffd.stages.mapped import Memory
from spliffd.targets.discovery import Candidate, Look, Mapping

FILE = Candidate(8, 77, "/lib/libssl.so.3", False, False, [Mapping(7, "1-2")])


class Host:
    """Processes, and when each was looked at."""

    def __init__(self) -> None:
        self.looked: list[list[int]] = []
        self.found: list[int] = []

    def look(self, due: dict[tuple[int, int], None]) -> tuple[list[tuple[Look, int]], float]:
        self.looked.append([pid for pid, _ in due])
        return [(Look(pid, [FILE], False), start) for pid, start in due if pid != 404], 0.0

    def keep(self, seen: list[Look]) -> None:
        self.found += [look.pid for look in seen]


@pytest.fixture
def host(monkeypatch) -> Host:
    monkeypatch.setattr(looks, "LOOK_AFTER_SECONDS", tuple(s / 100 for s in LOOK_AFTER_SECONDS))
    return Host()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what a thread has done has no event here
            await asyncio.sleep(0.001)


async def test_those_that_start_together_are_looked_at_together(host):
    memory = Memory()
    stage = Looks(memory, host.keep, look=host.look)
    for pid in (7, 8, 404):
        stage.started(pid, 1000 + pid, mappings_told=True)
    await until(lambda: len(host.found) == 2 * len(LOOKS_BESIDE_MAPPINGS))

    assert host.looked == [[7, 8, 404]] * len(LOOKS_BESIDE_MAPPINGS)
    known = memory.recall(8, 1008)
    assert known is not None
    assert [file.path for file in known.files] == [FILE.path]
    assert memory.recall(8, 1) is memory.recall(404, 1404) is None
    stage.close()


async def test_without_mappings_they_are_looked_at_more_often(host):
    stage = Looks(Memory(), host.keep, look=host.look)
    stage.started(7, 1, mappings_told=False)
    await until(lambda: len(host.found) == len(LOOK_AFTER_SECONDS))
    stage.close()


async def test_who_maps_a_new_file_is_looked_at_now_and_later(host):
    stage = Looks(Memory(), host.keep, look=host.look)
    stage.mapped(7, 1)
    stage.mapped(7, 1)
    stage.mapped(8, 1)
    await until(lambda: len(host.found) == 2 * (1 + len(LOOKS_AFTER_MAPPING)))

    assert host.looked[0] == [7, 8]
    stage.close()
    stage.started(9, 1, mappings_told=True)  # a timer that is late finds nobody who looks
    await asyncio.sleep(0.01)
    assert 9 not in host.found
