"""How full the kernel's tables are: counted when something changed, right to the entry."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from spliffd.counters import TABLES, Area
from spliffd.kernel import bpf
from spliffd.kernel.flows import FLOW_SIZE
from spliffd.kernel.maps import Maps
from spliffd.stages.occupancy import LOOKS_AFTER_CHANGE, SIZES, Occupancy


@pytest.fixture
def maps() -> Iterator[Maps]:
    made = Maps(1, 1 << 20)
    yield made
    made.close()


def flow(closed_ns: int) -> bytes:
    return struct.pack("=QQQ", 1, 2, closed_ns).ljust(FLOW_SIZE, b"\0")


def test_entries_are_counted_right(maps: Maps):
    area = Area.create()
    occupancy = Occupancy(maps, area)
    assert {area.supervisor.get(f"map_capacity_{name}") for name in TABLES} == {8192, 32768, 65536}

    for number in range(2003):
        key = number.to_bytes(SIZES["conns"][0], "little")
        bpf.map_update(maps.fd["conns"], key, bytes(SIZES["conns"][1]))
    for number in range(1, 1010):
        bpf.map_update(maps.fd["flows"], number.to_bytes(8, "little"), flow(closed_ns=number % 3))
    assert occupancy.look()

    got = {name: area.supervisor.get(f"map_entries_{name}") for name in TABLES}
    assert got == {"goroutines": 0, "conns": 2003, "speakers": 0, "cookies": 0, "flows": 1009}
    assert area.supervisor.get("flows") == 336  # every third is open

    bpf.map_delete(maps.fd["flows"], (3).to_bytes(8, "little"))
    assert occupancy.look()
    assert (area.supervisor.get("map_entries_flows"), area.supervisor.get("flows")) == (1008, 335)


def test_nothing_is_read_while_nothing_changes(maps: Maps):
    area = Area.create()
    occupancy = Occupancy(maps, area)
    looks = [occupancy.look() for _ in range(LOOKS_AFTER_CHANGE + 4)]
    assert looks == [True] * (LOOKS_AFTER_CHANGE + 1) + [False] * 3
    area.workers[0].add("records")
    assert occupancy.look()
