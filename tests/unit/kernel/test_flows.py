"""A struct flow as the kernel writes it, and when closed ones are swept; the map is a dictionary here."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.kernel import bpf, flows
from spliffd.kernel.flows import CLOSED, ESTABLISHED, FLOW_SIZE, LINGER_NS, Hop, Sweeper, Swept, unpack_flow


def flow_bytes(closed_ns: int = 0, hops: tuple[Hop, ...] = (), used: int | None = None) -> bytes:
    head = struct.pack(
        "=QQQQ16s16sHHBBBBIIQQ", 1, 503, closed_ns, 77, b"\xc0\0\2\1", b"\xc6\x33\x64\7", 40009, 443,
        4, 1, len(hops) if used is None else used, 1, 4711, CLOSED if closed_ns else ESTABLISHED, 1009, 2,
    )  # fmt: skip
    return (head + b"".join(struct.pack("=IIQQQQQ", *hop) for hop in hops)).ljust(FLOW_SIZE, b"\0")


def test_every_field_has_its_place():
    hops = (Hop(3, 2, 5, 7, 500, 700, 11), Hop(9, 1, 4, 6, 400, 600, 12))
    flow = unpack_flow(flow_bytes(closed_ns=9, hops=hops))

    assert (flow.first_ns, flow.last_ns, flow.closed_ns, flow.netns_cookie) == (1, 2, 9, 77)
    assert flows.address(flow.local, flow.family) == "192.0.2.1"
    assert flows.address(flow.remote, flow.family) == "198.51.100.7"
    assert (flow.local_port, flow.remote_port, flow.role, flow.flags) == (40009, 443, 1, 1)
    assert (flow.tgid, flow.state, flow.tcp_sent, flow.tcp_received) == (4711, CLOSED, 1009, 503)
    assert flow.hops == hops
    assert flow.wire == "TC"


def test_what_the_ledger_is_told():
    data = bytearray(flow_bytes())
    assert (unpack_flow(data).plaintext, unpack_flow(data).ktls) == (False, False)
    data[77] = 1
    assert (unpack_flow(data).plaintext, unpack_flow(data).ktls) == (True, False)
    data[77:79] = b"\0\1"
    assert (unpack_flow(data).plaintext, unpack_flow(data).ktls) == (False, True)
    assert not unpack_flow(data).handshake
    data[78:80] = b"\0\1"
    assert (unpack_flow(data).ktls, unpack_flow(data).handshake) == (False, True)


def test_no_packet_no_wire():
    assert unpack_flow(flow_bytes()).wire == "NONE"


def test_ipv6_is_written_as_text():
    assert flows.address(b"\xfd\x91" + bytes(13) + b"\1", 6) == "fd91::1"


def test_a_hop_that_is_being_taken_is_left_out():
    assert unpack_flow(flow_bytes(hops=(Hop(3, 2, 1, 1, 1, 1, 1),), used=2)).hops[1:] == ()


@given(st.binary(min_size=FLOW_SIZE, max_size=FLOW_SIZE))
def test_any_bytes_give_a_flow(data: bytes):
    flow = unpack_flow(data)
    assert len(flow.hops) <= flows.HOPS
    assert flow.wire in flows.HOOKS


def test_too_few_bytes_are_an_error():
    with pytest.raises(struct.error):
        unpack_flow(bytes(95))


class Table(dict[int, bytes]):
    """The kernel's map, and how often it was read."""

    def __init__(self, entries: dict[int, bytes]) -> None:
        super().__init__(entries)
        self.reads = 0

    def batch(self, _fd, after, _key, _value, room):
        self.reads += not after
        entries = sorted(self.items())[int(after or b"0") :][:room]
        following = int(after or b"0") + len(entries)
        return (
            [(cookie.to_bytes(8, "little"), data) for cookie, data in entries],
            str(following).encode() if following < len(self) else b"",
        )

    def delete(self, _fd, key):
        self.pop(int.from_bytes(key, "little"), None)


@pytest.fixture
def table(monkeypatch) -> Table:
    table = Table({1: flow_bytes(), 2: flow_bytes(closed_ns=100), 3: flow_bytes(closed_ns=LINGER_NS)})
    monkeypatch.setattr(bpf, "map_lookup_batch", table.batch)
    monkeypatch.setattr(bpf, "map_delete", table.delete)
    return table


def test_what_closed_a_while_ago_goes(table: Table):
    sweeper = Sweeper(0, 100)
    assert sweeper.sweep(3, 2, LINGER_NS + 101) == Swept(1, 0)
    assert set(table) == {1, 3}
    assert sweeper.sweep(3, 2, 2 * LINGER_NS + 1) == Swept(2, 0)
    assert set(table) == {1}


def test_what_is_removed_is_told_before(table: Table):
    told = []
    sweeper = Sweeper(
        0, 100, lambda flows, over: told.append(({cookie for cookie, _ in flows}, set(over), set(table)))
    )
    sweeper.sweep(3, 2, LINGER_NS + 101)
    assert told == [({1, 3}, set(), {1, 2, 3}), ({2}, {2}, {1, 2, 3})]


def test_many_are_removed_some_at_a_time_each_told_before_it_goes(table: Table):
    table.update({cookie: flow_bytes(closed_ns=100) for cookie in range(10, 210)})
    told: list[set[int]] = []

    def looked(flows, over):
        assert {cookie for cookie, _ in flows} <= set(table)
        assert set(over) in (set(), {cookie for cookie, _ in flows})
        told.append(set(over))

    steps = Sweeper(0, 1000, looked).steps(203, 202, LINGER_NS + 101)
    assert len(list(steps)) > 4  # of reading, and of removing
    assert set().union(*told) == {2, *range(10, 210)}
    assert sum(map(len, told)) == 201
    assert set(table) == {1, 3}


def test_nothing_is_read_while_nothing_closes(table: Table):
    sweeper = Sweeper(0, 100)
    sweeper.sweep(3, 2, 3 * LINGER_NS)
    assert table.reads == 1
    for _ in range(3):
        sweeper.sweep(3, 2, 9 * LINGER_NS)
    assert table.reads == 1
    sweeper.sweep(4, 3, 9 * LINGER_NS)  # one more has closed
    assert table.reads == 2


def test_many_new_flows_are_reason_to_look_for_evicted_ones(table: Table):
    sweeper = Sweeper(0, 100)
    sweeper.sweep(3, 2, 3 * LINGER_NS)
    table.update({cookie: flow_bytes() for cookie in range(10, 60)})
    assert sweeper.sweep(53, 2, 3 * LINGER_NS).evicted == 0
    assert table.reads == 1  # 50 of 100 are no reason
    assert sweeper.sweep(54, 2, 3 * LINGER_NS) == Swept(2, 1)
    assert table.reads == 2


def test_what_was_made_while_the_table_was_read_is_no_negative_loss(table: Table):
    assert Sweeper(0, 100).sweep(1, 1, 0) == Swept(0, 0)


def test_more_flows_than_one_batch_holds(table: Table):
    table.update({cookie: flow_bytes(closed_ns=1) for cookie in range(100, 100 + 3 * 1024)})
    assert Sweeper(0, 10000).sweep(3075, 3074, 3 * LINGER_NS) == Swept(2 + 3 * 1024, 0)
    assert set(table) == {1}
