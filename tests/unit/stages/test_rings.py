"""When a worker's ring grows and shrinks."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from spliffd.config import Capture
from spliffd.stages import rings
from spliffd.stages.rings import Rings

SMALL, LARGE = 16 << 20, 128 << 20


class FakeMaps:
    """Maps that only remember; ``full`` refuses new rings."""

    def __init__(self, shards: int) -> None:
        self.ring_sizes = [SMALL] * shards
        self.full = False

    def swap_ring(self, shard: int, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.ring_sizes[shard] = size


@pytest.fixture
def maps() -> FakeMaps:
    return FakeMaps(2)


@pytest.fixture
def given() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def stage(maps: FakeMaps, given: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> Rings:
    monkeypatch.setattr(rings, "SHRINK_SECONDS", 0.01)
    return Rings(maps, Capture(), lambda number, size: given.append((number, size)))  # type: ignore[arg-type]


async def test_a_watcher_of_bodies_gets_that_worker_a_large_ring(stage, maps, given):
    stage.wanted(1, bodies=True)

    assert maps.ring_sizes == [SMALL, LARGE]
    assert given == [(1, LARGE)]


async def test_a_watcher_of_heads_changes_nothing(stage, maps, given):
    stage.wanted(0, bodies=False)
    await asyncio.sleep(0.03)

    assert maps.ring_sizes == [SMALL, SMALL]
    assert given == []


async def test_the_large_ring_goes_a_while_after_the_last_watcher_of_bodies(stage, given):
    stage.wanted(0, bodies=True)
    stage.wanted(0, bodies=False)
    assert given == [(0, LARGE)]

    await asyncio.sleep(0.03)
    assert given == [(0, LARGE), (0, SMALL)]


async def test_who_comes_back_in_time_finds_it_there(stage, given):
    stage.wanted(0, bodies=True)
    stage.wanted(0, bodies=False)
    stage.wanted(0, bodies=True)

    await asyncio.sleep(0.03)
    assert given == [(0, LARGE)]


async def test_without_memory_the_small_ring_stays_and_the_log_says_so(stage, maps, given, capfd):
    maps.full = True
    stage.wanted(0, bodies=True)

    assert given == []
    assert maps.ring_sizes == [SMALL, SMALL]
    assert "lower capture.body_ring_mib" in "".join(capfd.readouterr())


async def test_a_configured_ring_that_is_larger_is_never_made_smaller(maps, given):
    maps.ring_sizes = [256 << 20]
    stage = Rings(maps, Capture(ring_mib=256), lambda number, size: given.append((number, size)))
    stage.wanted(0, bodies=True)

    assert given == []
