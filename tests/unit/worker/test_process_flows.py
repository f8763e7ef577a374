"""The flows of a process, read from the kernel's table when they are asked for, and not too often."""

from __future__ import annotations

import struct

import pytest

from spliffd.kernel import bpf
from spliffd.kernel.flows import FLOW_SIZE, SHARED
from spliffd.worker import process_flows
from spliffd.worker.process_flows import ASK_AGAIN_NS, LEAST_PAUSE_NS, PAUSE_FACTOR, ProcessFlows

MS = 1_000_000
_FLOW = struct.Struct("=QQQQ16s16sHHBBBBIIQQ")


class Table:
    """The kernel's map, two entries a system call; ``took`` is what reading it takes."""

    def __init__(self, monkeypatch) -> None:
        self.entries: dict[int, bytes] = {}
        self.now = 1_000 * MS
        self.took = self.spent = 0
        self.readings = 0
        self.asked = 0
        self.refused = False
        monkeypatch.setattr(bpf, "map_lookup_batch", self.batch)
        self.of = ProcessFlows(4711, lambda: self.now, self.ask, lambda: self.spent)

    def ask(self) -> None:
        self.asked += 1

    def put(self, cookie: int, owner: int, *, closed: int = 0, flags: int = 0, role: int = 0) -> None:
        value = _FLOW.pack(1, 2, closed, 3, b"", b"", 1025, 443, 4, role, 0, flags, owner, 1, 0, 0)
        self.entries[cookie] = value.ljust(FLOW_SIZE, b"\0")

    def batch(self, fd, after, key_size, value_size, room):
        assert (fd, key_size, value_size) == (4711, 8, FLOW_SIZE)
        if self.refused:
            raise PermissionError
        at = int.from_bytes(after, "little")
        if not at:
            self.readings += 1
            self.now += self.took
            self.spent += self.took
        found = [
            (cookie.to_bytes(8, "little"), value) for cookie, value in list(self.entries.items())[at : at + 2]
        ]
        at += 2
        return found, b"" if at >= len(self.entries) else at.to_bytes(8, "little")

    def cookies(self, pid: int, not_before: int | None = None, role: str = "") -> list[int] | None:
        found = self.of(pid, self.now if not_before is None else not_before, role)
        return None if found is None else [cookie for cookie, flow in found if flow.tgid == pid]


@pytest.fixture
def table(monkeypatch) -> Table:
    return Table(monkeypatch)


def test_each_process_has_its_own(table):
    for cookie, owner in ((11, 7), (12, 8), (13, 7), (14, 9), (15, 7)):
        table.put(cookie, owner)
    assert table.cookies(7) == [11, 13, 15]
    assert table.cookies(8) == [12]
    assert table.cookies(10) == []
    assert table.readings == 1


def test_an_older_reading_serves_what_is_older(table):
    table.put(11, 7)
    asked_at = table.now
    assert table.cookies(7, asked_at) == [11]
    table.put(12, 7)
    table.now += 100 * MS
    assert table.cookies(7, asked_at) == [11]
    assert table.cookies(7) == [11, 12]
    assert table.readings == 2


def test_reading_takes_an_eighth_of_the_time(table):
    table.took = 3 * MS
    table.put(11, 7)
    assert table.cookies(7) == [11]
    table.now += PAUSE_FACTOR * 3 * MS - 3 * MS - 1
    assert table.cookies(7) is None
    table.now += 1
    assert table.cookies(7) == [11]
    table.took = 0
    table.now += 100 * MS
    assert table.cookies(7) == [11]
    table.now += LEAST_PAUSE_NS - 1
    assert table.cookies(7) is None


def test_owners_that_are_not_known_are_asked_for_once(table):
    table.put(11, 0)
    asked_at = table.now
    assert table.cookies(7, asked_at) is None
    assert table.cookies(7, asked_at) is None
    assert table.asked == 1
    table.put(11, 7)
    table.of.owners_entered()
    assert table.cookies(7, asked_at) is None  # read too lately
    table.now += LEAST_PAUSE_NS
    assert table.cookies(7, asked_at) == [11]
    assert table.asked == 1


def test_a_client_does_not_wait_for_who_accepted_what(table):
    table.put(11, 0, role=2)
    table.put(12, 7, role=1)
    assert table.cookies(7, role="client") == [12]
    assert table.asked == 0
    assert table.cookies(7, role="server") is None
    assert table.cookies(7, role="") is None
    assert table.asked == 1


def test_a_host_that_is_busy_makes_no_reading_dearer(table):
    table.put(11, 7)
    assert table.cookies(7) == [11]
    table.now += 50 * MS  # the worker was not let near a processor
    assert table.cookies(7) == [11]
    table.now += LEAST_PAUSE_NS
    assert table.cookies(7) == [11]


def test_owners_that_nobody_knows_keep_nobody_waiting(table):
    table.put(11, 0)
    table.put(12, 7)
    asked_at = table.now
    assert table.cookies(7) is None
    table.of.owners_entered()
    table.now += LEAST_PAUSE_NS
    assert table.cookies(7, asked_at) == [12]


def test_a_question_that_was_lost_is_put_again(table):
    table.put(11, 0)
    assert table.cookies(7) is None
    table.now += ASK_AGAIN_NS + 1
    assert table.cookies(7) is None
    assert table.asked == 2


@pytest.mark.parametrize("known", [{"closed": 5}, {"flags": SHARED}])
def test_nobody_asks_for_owners_that_cannot_be_known(table, known):
    table.put(11, 0, **known)
    table.put(12, 7)
    assert table.cookies(7) == [12]
    assert table.asked == 0


def test_a_table_that_may_not_be_read_has_no_flows(table):
    table.refused = True
    assert table.cookies(7) == []
    assert process_flows.BATCH >= 512  # the kernel needs room for a whole bucket
