"""What a worker reads of the flows map, by the read-only fd that it is handed."""

from __future__ import annotations

import os
import struct

import pytest

from spliffd.kernel import bpf
from spliffd.kernel.flows import FLOW_SIZE, Hop, HopLookup
from spliffd.worker.process_flows import ProcessFlows
from spliffd.worker.tables import Tables

HOP = struct.Struct("=IIQQQQQ")
HEAD = struct.Struct("=QQQQ16s16sHHBBBBIIQQ")


@pytest.fixture
def flows():
    fd = bpf.map_create(bpf.MAP_LRU_HASH, 8, FLOW_SIZE, 4096, name="test_flows")
    looking = bpf.map_read_only(fd)
    yield fd, looking
    os.close(looking)
    os.close(fd)


def put(fd: int, cookie: int, hops: list[tuple[int, int]], owner: int = 7) -> None:
    head = HEAD.pack(1, 2, 0, 3, b"", b"", 1025, 443, 4, 1, len(hops), 0, owner, 1, 0, 0)
    body = b"".join(HOP.pack(index, hook, 10, 20, 1000, 1 << 40, 5) for index, hook in hops)
    bpf.map_update(fd, cookie.to_bytes(8, "little"), (head + body).ljust(FLOW_SIZE, b"\0"))


def test_hops_by_cookie(flows):
    fd, looking = flows
    look = HopLookup(looking)
    assert look(1) == ()
    put(fd, 1, [])
    put(fd, (1 << 64) - 1, [(3, 2), (4, 1)])
    put(fd, 2, [(3, 2), (4, 0)])  # the second is just being taken
    assert look(1) == ()
    assert look((1 << 64) - 1) == (Hop(3, 2, 10, 20, 1000, 1 << 40, 5), Hop(4, 1, 10, 20, 1000, 1 << 40, 5))
    assert look(2) == (Hop(3, 2, 10, 20, 1000, 1 << 40, 5),)
    assert look(1) == ()


def test_what_may_not_be_read_has_no_hops():
    with open(os.devnull, "rb") as file, pytest.raises(OSError, match="argument"):
        HopLookup(file.fileno())(1)
    with open(os.devnull, "rb") as file:
        assert Tables(-1, -1, file.fileno(), file.fileno()).hops(1) == ()


def test_flows_by_owner(flows):
    fd, looking = flows
    for cookie in range(1, 2048):
        put(fd, cookie, [], owner=cookie % 13 + 1)
    found = ProcessFlows(looking, lambda: 10, lambda: None)(7, 5, "client")
    assert found is not None
    assert sorted(cookie for cookie, _ in found) == [n for n in range(1, 2048) if n % 13 == 6]
    assert {flow.tgid for _, flow in found} == {7}
