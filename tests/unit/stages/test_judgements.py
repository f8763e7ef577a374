"""Which cgroups are written into the kernel's table as wanted, from a tree of folders that looks like one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from spliffd.kernel import bpf
from spliffd.stages import judgements
from spliffd.stages.judgements import Judgements, matcher

ID = "5f" * 32
OTHER = "a0" * 32


class Table(dict[int, bool]):
    """The kernel's table; ``full``: it takes no more."""

    full = False

    def update_one(self, _: int, key: bytes, value: bytes) -> None:
        if self.full:
            raise OSError
        self[struct.unpack("=Q", key)[0]] = bool(value[0])

    def delete_one(self, _: int, key: bytes) -> None:
        del self[struct.unpack("=Q", key)[0]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    monkeypatch.setattr(bpf, "map_update", table.update_one)
    monkeypatch.setattr(bpf, "map_delete", table.delete_one)
    return table


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True)


def watch(judged: Judgements, units: list[str], containers: list[str]) -> int:
    """New watchers, and the walk that they ask for; how many steps it took."""
    judged.watch(units, containers)
    return sum(1 for _ in judged.steps())


def said(table: Table, folder: Path) -> bool | None:
    return table.get(folder.stat().st_ino)


@pytest.mark.parametrize(
    ("path", "units", "containers", "wanted"),
    [
        ("/system.slice/nginx.service", ["nginx.service"], [], True),
        ("/system.slice/nginx.service/worker", ["nginx.service"], [], True),
        ("/system.slice/nginx.service", ["ngin*"], [], True),
        ("/system.slice/nginx.service", ["nginx"], [], False),
        ("/user.slice/user@1000.service/app.slice/x.scope", ["user@1000.service"], [], False),
        (f"/system.slice/docker-{ID}.scope", [], [ID[:6]], True),
        (f"/docker/{ID}", [], [ID], True),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", [], [ID[:12]], True),
        (f"/kubepods.slice/crio-{ID}.scope", [], [ID[:12]], True),
        (f"/machine.slice/libpod-{ID}.scope/container", [], [ID[:12]], True),
        (f"/system.slice/docker-{OTHER}.scope", [], [ID[:6]], False),
        (f"/system.slice/docker-{OTHER}.scope", ["docker-*.scope"], [ID], True),
        ("/system.slice/nginx.service", [], [ID[:6]], False),
        ("/", ["nginx.service"], [ID], False),
    ],
)
def test_a_path_is_compared_as_the_filter_compares_what_it_names(path, units, containers, wanted):
    assert matcher(units, containers)(path) is wanted


def test_every_cgroup_is_judged_and_anew_for_other_watchers(tmp_path: Path, table: Table):
    make(tmp_path, "system.slice/a.service", "system.slice/b.service")
    a, b = tmp_path / "system.slice/a.service", tmp_path / "system.slice/b.service"
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["a.service"], [])
    assert (said(table, a), said(table, b), len(table)) == (True, False, 4)
    watch(judged, ["b.service"], [])
    assert (said(table, a), said(table, b), len(table)) == (False, True, 4)


def test_new_ones_are_judged_when_a_process_starts_there(tmp_path: Path, table: Table):
    judged = Judgements(0, str(tmp_path), version1=False)
    make(tmp_path, "a.service")
    judged.seen("/a.service")
    assert table == {}  # nobody asked
    watch(judged, ["b.service"], [])
    make(tmp_path, "b.service", "c.service")
    judged.seen("/b.service")
    for path in ("...b.service", "/../c.service", "/gone.service", "/"):
        judged.seen(path)
    assert said(table, tmp_path / "b.service") is True
    assert said(table, tmp_path / "c.service") is None


def test_one_that_is_made_anew_under_its_old_name_is_another(tmp_path: Path, table: Table):
    make(tmp_path, "a.service")
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["x.service"], [])
    (tmp_path / "a.service").rename(tmp_path / "old")
    make(tmp_path, "a.service")
    judged.seen("/a.service")
    assert said(table, tmp_path / "a.service") is False
    assert said(table, tmp_path / "old") is None


def test_those_that_are_gone_are_forgotten(tmp_path: Path, table: Table):
    make(tmp_path, "a.service")
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["x.service"], [])
    assert len(table) == 2
    (tmp_path / "a.service").rmdir()
    judged.again()
    assert list(judged.steps()) == []
    assert len(table) == 1


def test_what_finds_the_table_full_is_left_unjudged_and_counted(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
):
    make(tmp_path, "a", "b", "c")
    monkeypatch.setattr(judgements, "JUDGED", 2)
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["x.service"], [])
    assert (len(table), judged.refused) == (2, 2)
    table.full = True
    watch(judged, ["*.service", "a"], [])
    assert judged.refused >= 2


def test_threads_of_a_process_above_are_wanted(tmp_path: Path, table: Table):
    make(tmp_path, "a.service/threads")
    (tmp_path / "a.service/threads/cgroup.type").write_text("threaded\n")
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["x.service"], [])
    assert said(table, tmp_path / "a.service/threads") is True
    assert said(table, tmp_path / "a.service") is False


def test_where_version_1_names_the_units_the_root_is_wanted_and_told_once(
    tmp_path: Path, table: Table, capfd: pytest.CaptureFixture[str]
):
    make(tmp_path, "a.service")
    judged = Judgements(0, str(tmp_path), version1=True)
    watch(judged, ["x.service"], [])
    watch(judged, ["y.service"], [])
    assert said(table, tmp_path) is True
    assert said(table, tmp_path / "a.service") is False
    assert capfd.readouterr().out.count("cgroups of version 1") == 1


def test_without_version_2_nothing_is_judged(table: Table):
    judged = Judgements(0, "", version1=True)
    watch(judged, ["x.service"], [])
    judged.seen("/x.service")
    assert table == {}


def test_other_watchers_do_not_wait_for_a_walk_to_see_what_was_unwanted(tmp_path: Path, table: Table):
    make(tmp_path, "a.service", "b.service/threads")
    (tmp_path / "b.service/threads/cgroup.type").write_text("threaded\n")
    judged = Judgements(0, str(tmp_path), version1=False)
    watch(judged, ["x.service"], [])
    assert said(table, tmp_path / "a.service") is False
    judged.watch(["a.service"], [])
    assert judged.pending
    assert said(table, tmp_path / "a.service") is True
    assert said(table, tmp_path / "b.service") is False
    assert said(table, tmp_path / "b.service/threads") is True


def test_a_walk_goes_in_steps_and_one_at_a_time(tmp_path: Path, table: Table):
    make(tmp_path, *(f"{number}.service" for number in range(100)))
    judged = Judgements(0, str(tmp_path), version1=False)
    judged.watch(["7.service"], [])
    assert table == {}  # all are wanted
    walk = judged.steps()
    for step in range(1, 4):
        next(walk)
        assert len(table) == step * judgements.STEP
    judged.watch(["8.service"], [])  # meanwhile: what was said holds for these, and another walk follows
    assert judged.pending
    assert list(judged.steps()) == []  # by whoever walks now
    make(tmp_path, "new.service")
    judged.seen("/new.service")
    assert sum(1 for _ in walk) == 101 // judgements.STEP - 3 + 102 // judgements.STEP
    assert len(table) == 102
    assert [said(table, tmp_path / f"{n}.service") for n in (7, 8)] == [False, True]
    assert not judged.pending


def test_nobody_watches_any_more_while_it_walks(tmp_path: Path, table: Table):
    make(tmp_path, *(f"{number}.service" for number in range(40)))
    judged = Judgements(0, str(tmp_path), version1=False)
    judged.watch(["7.service"], [])
    walk = judged.steps()
    next(walk)
    judged.watch([], [])
    assert len(list(walk)) == 1
    assert watch(judged, ["9.service"], []) == 2
    assert [said(table, tmp_path / f"{n}.service") for n in (7, 9)] == [False, True]
