"""Counters in shared memory: one writes, others read, and a successor goes on where one died."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from spliffd import counters
from spliffd.counters import Area, Region


@pytest.fixture
def area():
    return Area.create()


def test_what_one_process_writes_another_reads(area):
    pid = os.fork()
    if pid == 0:
        area.workers[3].add("records", 7)
        area.api.set("subscribers", 2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert area.workers[3].get("records") == 7
    assert area.api.get("subscribers") == 2


def test_a_second_mapping_of_the_fd_sees_the_same(area):
    area.supervisor.add("worker_restarts", 3)
    other = Area(os.dup(area.fd))
    assert other.supervisor.get("worker_restarts") == 3
    other.supervisor.add("worker_restarts")
    assert area.supervisor.get("worker_restarts") == 4


def test_regions_do_not_touch(area):
    everyone = [area.supervisor, area.api, *area.workers]
    for value, region in enumerate(everyone, 1):
        for name in region.names:
            region.set(name, value)
    for value, region in enumerate(everyone, 1):
        assert set(region.values().values()) == {value}


def test_a_new_area_is_all_zero_and_not_inherited(area):
    assert not os.get_inheritable(area.fd)
    assert not any(any(region.values().values()) for region in (area.supervisor, area.api, *area.workers))


def test_words_are_the_same_numbers(area):
    region = area.workers[0]
    region.words[region.index("sleep_cycles")] += 5
    assert region.get("sleep_cycles") == region.values()["sleep_cycles"] == 5
    region.set("sleep_cycles", (1 << 64) - 1)  # all 64 bits
    assert region.get("sleep_cycles") == (1 << 64) - 1


def test_names_that_are_not_declared(area):
    with pytest.raises(KeyError):
        area.api.add("no_such_counter")
    with pytest.raises(KeyError):
        counters.exchange_slot("http9", "openssl", "NONE", "NONE")


def test_the_exchange_matrix_is_dense_and_each_slot_its_own():
    combinations = list(
        itertools.product(counters.PROTOCOLS, counters.LIBRARIES, counters.METHODS, counters.WIRES)
    )
    slots = [counters.exchange_slot(*combination) for combination in combinations]
    assert len(set(slots)) == len(combinations)
    assert sorted(slots) == list(range(min(slots), min(slots) + len(slots)))
    for combination, slot in zip(combinations, slots, strict=True):
        assert counters.WORKER[slot] == "exchanges/" + "/".join(combination)


@pytest.mark.parametrize("names", [counters.KERNEL, counters.SUPERVISOR, counters.API, counters.WORKER])
def test_names_are_told_apart_and_fit(names):
    assert len(set(names)) == len(names)
    assert len(names) * 8 <= counters.REGION_BYTES


def test_too_many_names_are_refused():
    with pytest.raises(ValueError, match="3 counters do not fit into 2 words"):
        Region(["a", "b", "c"], memoryview(bytearray(16)).cast("Q"))


def test_the_kernels_names_are_in_the_kernels_order():
    text = (Path(__file__).parents[2] / "bpf/events.h").read_text()
    body = re.search(r"enum counter \{(.*?)\}", text, re.DOTALL)
    assert body is not None
    found = re.findall(r"COUNTER_(\w+)", body[1])
    assert [name.lower() for name in found] == list(counters.KERNEL)


def test_the_kernel_adds_up_its_processors():
    words = memoryview(bytearray(3 * counters.KERNEL_STRIDE * 8)).cast("Q")
    kernel = counters.kernel_region(words)
    for cpu in range(3):
        words[cpu * counters.KERNEL_STRIDE + kernel.index("tc_own")] = 10 + cpu
    assert kernel.get("tc_own") == kernel.values()["tc_own"] == 33
    assert kernel.get("xdp_own") == 0


def test_every_processor_has_room_for_the_kernels_counters():
    assert len(counters.KERNEL) <= counters.KERNEL_STRIDE
    assert counters.kernel_bytes() >= (os.cpu_count() or 1) * counters.KERNEL_STRIDE * 8
