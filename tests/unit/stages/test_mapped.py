"""What ended processes mapped: the last look that saw anything, and no more than there is room for."""

from __future__ import annotations

import pytest

from spliffd.stages import mapped
from spliffd.stages.mapped import MappedFile, Memory
from spliffd.targets.discovery import Candidate, Look


def look(pid: int, *paths: str, bits32: bool = False) -> Look:
    candidates = [Candidate(8, number, path, False, False, []) for number, path in enumerate(paths)]
    return Look(pid, candidates, bits32)


def test_the_last_look_counts():
    memory = Memory()
    memory.keep(look(7, "/a"), 100)
    memory.keep(look(7, "/a", "/b"), 100)
    found = memory.recall(7, 100)
    assert found is not None
    assert found.files == (MappedFile(8, 0, "/a", executable=False), MappedFile(8, 1, "/b", executable=False))
    assert not found.bits32


def test_another_start_is_another_process():
    memory = Memory()
    memory.keep(look(7, "/a", bits32=True), 100)
    assert memory.recall(7, 101) is None
    found = memory.recall(7, 100)
    assert found is not None
    assert found.bits32


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapped, "PROCESSES", 3)
    memory = Memory()
    for pid in range(5):
        memory.keep(look(pid, f"/{pid}"), 1)
    assert [memory.recall(pid, 1) is not None for pid in range(5)] == [False, False, True, True, True]


def test_a_file_of_many_processes_is_kept_once():
    memory = Memory()
    memory.keep(look(1, "/a"), 1)
    memory.keep(look(2, "/a"), 1)
    one, other = memory.recall(1, 1), memory.recall(2, 1)
    assert one is not None
    assert other is not None
    assert one.files[0] is other.files[0]
