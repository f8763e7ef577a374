"""Each packet program on packets made by hand: what belongs to a connection is counted there, exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from spliffd.kernel import bpf, flows
from tests.support.frames import (
    AH,
    CLIENT,
    CLIENT6,
    DESTINATION,
    FRAGMENT,
    HELLO,
    HOP_BY_HOP,
    ROUTING,
    SERVER,
    SERVER6,
    dissect,
    ethernet,
    extension,
    frame4,
    frame6,
    ipv4,
    ipv6,
    tcp,
)
from tests.support.net import Namespace, Network, inside
from tests.support.packet_bench import L2, L3, PacketBench

ELSEWHERE = 987654321
"""The cookie of a network namespace that is not this one."""

PACKETS = {
    "plain": frame4(b"GET /"),
    "IP options": frame4(b"GET /", options=b"\x94\x04\x00\x00" + b"\x01" * 36),
    "TCP options": ipv4(CLIENT[0], SERVER[0], tcp(CLIENT[1], SERVER[1], b"x", b"\x08\x0a" + b"\x01" * 8)),
    "no payload": frame4(),
    "first fragment": frame4(b"x" * 64, fragment=0x2000),
    "do not fragment": frame4(b"x", fragment=0x4000),
    "IPv6": frame6(b"GET /"),
    "hop-by-hop": frame6(b"x", extension(HOP_BY_HOP)),
    "routing": frame6(b"x", extension(ROUTING, 24)),
    "destination": frame6(b"x", extension(DESTINATION, 16)),
    "AH": frame6(b"x", extension(AH, 24)),
    "atomic fragment": frame6(b"x", extension(FRAGMENT)),
    "first IPv6 fragment": frame6(b"x", extension(FRAGMENT, fragment=1)),
    "all of them": frame6(
        b"x",
        extension(HOP_BY_HOP),
        extension(DESTINATION),
        extension(ROUTING, 24),
        extension(FRAGMENT),
        extension(AH, 24),
        extension(DESTINATION),
    ),
    "eight headers": frame6(b"x", *[extension(DESTINATION)] * 8),
}
TAGS = {"no tag": (), "802.1Q": (0x8100,), "QinQ": (0x88A8, 0x8100), "old QinQ": (0x9100, 0x8100)}

OTHERS = {
    "a later fragment": (frame4(b"x" * 40, fragment=0x2004), "fragments"),
    "the last fragment": (frame4(b"x" * 40, fragment=0x0004), "fragments"),
    "a later IPv6 fragment": (frame6(b"x" * 40, extension(FRAGMENT, fragment=8)), "fragments"),
    "UDP": (ipv4(CLIENT[0], SERVER[0], b"\x9c\x49\x01\xbb\x00\x20" + b"\0" * 26, protocol=17), "not_tcp"),
    "ESP": (frame6(b"x" * 30)[:6] + b"\x32" + frame6(b"x" * 30)[7:], "not_tcp"),
    "nine headers": (frame6(b"x", *[extension(DESTINATION)] * 9), "malformed"),
    "a header beyond the end": (frame6(b"x", (DESTINATION, b"\xff" + b"\0" * 6)), "malformed"),
    "cut short": (frame4(b"x" * 40)[:-1], "malformed"),
    "longer than it is": (frame6(b"x" * 40)[:-1], "malformed"),
    "a header of four words": (b"\x44" + frame4(b"x" * 40)[1:], "malformed"),
    "no room for TCP": (ipv4(CLIENT[0], SERVER[0], tcp(1, 2)[:19]), "malformed"),
    "TCP beyond the end": (
        ipv4(CLIENT[0], SERVER[0], tcp(1, 2)[:12] + b"\xf0" + tcp(1, 2)[13:]),
        "malformed",
    ),
    "port 0": (ipv4(CLIENT[0], SERVER[0], tcp(0, 443)), "malformed"),
    "somebody else's": (ipv4("203.0.113.1", SERVER[0], tcp(5, 443)), "forwarded"),
    "another port": (ipv4(CLIENT[0], SERVER[0], tcp(CLIENT[1] + 1, 443)), "forwarded"),
    "IPv4 written as IPv6": (
        ipv6("::ffff:192.0.2.11", "::ffff:198.51.100.7", tcp(CLIENT[1], SERVER[1])),
        "forwarded",
    ),
}


def framed(packet: bytes, tags: tuple[int, ...] = ()) -> bytes:
    return ethernet(packet, 0x86DD if packet[0] >> 4 == 6 else 0x0800, tags)


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    with Network("pkt") as network:
        one = network.namespace()
        network.pair(one, network.namespace())
        with inside(one):
            yield one


@pytest.fixture(scope="module")
def loaded(place: Namespace) -> Iterator[PacketBench]:
    with PacketBench() as bench:
        yield bench


@pytest.fixture
def bench(loaded: PacketBench) -> PacketBench:
    loaded.reset()
    return loaded


def both_ends(bench: PacketBench) -> None:
    """The client's end is 1 (6 for IPv6), the server's 2 (7)."""
    for cookie, client, server in ((1, CLIENT, SERVER), (6, CLIENT6, SERVER6)):
        bench.add_flow(cookie, client, server, role=1)
        bench.add_flow(cookie + 1, server, client, role=2)


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", PACKETS)
def test_a_frame_is_counted_once_for_its_end(bench: PacketBench, name: str, tags: str):
    both_ends(bench)
    frame = framed(PACKETS[name], TAGS[tags])
    base = 6 if PACKETS[name][0] >> 4 == 6 else 1
    for program in L2:
        bench.run(program, frame)

    # Loopback: sent at egress, received at ingress, for both hooks there.
    totals = bench.totals()
    assert totals[base] == (1, 0, len(frame), 0)
    assert totals[base + 1] == (0, 2, 0, 2 * len(frame))
    assert [hop.hook for hop in bench.flow(base + 1).hops] == [1, 2]
    assert bench.counted() == {"own": 3}
    assert dissect(frame, True).kind == "tcp"


@pytest.mark.parametrize("name", PACKETS)
def test_a_packet_without_ethernet(bench: PacketBench, name: str):
    both_ends(bench)
    packet = PACKETS[name]
    base = 6 if packet[0] >> 4 == 6 else 1
    for program in L3:
        bench.run(program, packet)

    assert bench.totals()[base] == (1, 0, len(packet), 0)
    assert bench.totals()[base + 1] == (0, 2, 0, 2 * len(packet))
    assert bench.counted() == {"own": 3}


@pytest.mark.parametrize("name", OTHERS)
def test_what_belongs_to_nobody_says_why(bench: PacketBench, name: str):
    both_ends(bench)
    packet, kind = OTHERS[name]
    for program in L3:
        bench.run(program, packet)
    for program in L2:
        bench.run(program, framed(packet))

    assert set(bench.totals().values()) == {(0, 0, 0, 0)}
    assert bench.counted() == {kind: 6}


def test_frames_that_are_no_ip(bench: PacketBench):
    both_ends(bench)
    inner = frame4(b"x" * 40)
    for frame in (
        ethernet(b"\0\1\x08\0\6\4\0\1" + b"\0" * 20, 0x0806),  # ARP
        ethernet(inner, 0x0800, (0x8100,) * 3),  # three tags
        ethernet(b"\0" * 46, 46),  # a length: LLC
        ethernet(b"\x11\x00\x00\x01\x00\x40\x00\x21" + inner, 0x8864),  # PPPoE
    ):
        for program in L2:
            bench.run(program, frame)

    assert bench.counted() == {"not_tcp": 12}


def test_padding_is_not_payload(bench: PacketBench):
    """Ethernet frames are at least 60 bytes long; what fills them may look like anything."""
    both_ends(bench)
    frame = framed(frame4(HELLO[:3]) + HELLO * 3)
    bench.run("tc_egress_l2", frame)

    assert bench.flow(1).hops[0].bytes_sent == len(frame)
    assert not bench.flow(1).flags & flows.CLIENT_HELLO


def test_a_client_hello_is_noticed_at_both_ends(bench: PacketBench):
    both_ends(bench)
    for program in L2:
        bench.run(program, framed(frame4()))
        bench.run(program, framed(frame4(HELLO)))

    assert bench.flow(1).flags & flows.CLIENT_HELLO
    assert bench.flow(2).flags & flows.CLIENT_HELLO
    assert not bench.flow(6).flags & flows.CLIENT_HELLO


@pytest.mark.parametrize(
    "start", [b"\x17" + HELLO[1:], HELLO[:5] + b"\x02" + HELLO[6:], b"\x16\x02" + HELLO[2:]]
)
def test_other_records_are_no_client_hello(bench: PacketBench, start: bytes):
    both_ends(bench)
    bench.run("tc_egress_l2", framed(frame4(start)))

    assert bench.flow(1).hops
    assert not bench.flow(1).flags & flows.CLIENT_HELLO


def test_only_the_first_packets_can_hold_a_client_hello(bench: PacketBench):
    both_ends(bench)
    for _ in range(33):
        bench.run("tc_egress_l2", framed(frame4(b"x" * 40)))
    bench.run("tc_egress_l2", framed(frame4(HELLO)))

    assert not bench.flow(1).flags & flows.CLIENT_HELLO


def test_merged_packets_count_as_what_was_on_the_wire(bench: PacketBench, place: Namespace):
    """GRO and TSO make one packet of many: headers are counted as often as they are sent."""
    both_ends(bench)
    frame = framed(frame4(b"x" * 3000))
    headers = len(frame) - 3000
    bench.run("tc_egress_l2", frame, gso_segs=3, gso_size=1000)
    assert bench.totals()[1] == (3, 0, len(frame) + 2 * headers, 0)

    bench.run("tc_egress_l2", frame, gso_size=1400)  # left to be counted by whoever cuts it up
    assert bench.totals()[1] == (6, 0, 2 * (len(frame) + 2 * headers), 0)


def test_each_interface_is_a_hop_in_order_of_its_first_packet(bench: PacketBench, place: Namespace):
    both_ends(bench)
    eth0 = place.index("eth0")
    frame = framed(frame4(b"x"))
    for ifindex in (eth0, 1, eth0, eth0):
        bench.run("tc_egress_l2", frame, ifindex=ifindex)

    found = bench.flow(1).hops
    assert [(hop.ifindex, hop.packets_sent) for hop in found] == [(eth0, 3), (1, 1)]
    assert found[0].first_ns < found[1].first_ns
    assert bench.flow(1).wire == "TC"


def test_more_interfaces_than_hops_are_told(bench: PacketBench, place: Namespace):
    both_ends(bench)
    place.ip(*(f"link add more{i} type bridge" for i in range(5)))
    frame = framed(frame4(b"x"))
    for i in range(5):
        bench.run("tc_egress_l2", frame, ifindex=place.index(f"more{i}"))

    assert len(bench.flow(1).hops) == flows.HOPS
    assert bench.flow(1).flags & flows.MORE_HOPS
    assert bench.counter("flows_without_hop") == 1


def test_a_container_is_seen_at_both_hooks_of_our_side(bench: PacketBench, place: Namespace):
    """What it sends comes in at the veth's ingress, what it receives leaves at the veth's egress."""
    bench.add_flow(1, CLIENT, SERVER, netns=ELSEWHERE)
    eth0 = place.index("eth0")
    answer = framed(ipv4(SERVER[0], CLIENT[0], tcp(SERVER[1], CLIENT[1], b"x")))
    bench.run("tc_egress_l2", answer, ifindex=eth0)
    assert bench.totals()[1] == (0, 0, 0, 0)  # a client speaks first: this may be for somebody else

    bench.run("tc_ingress_l2", framed(frame4(b"x")), ifindex=eth0)
    bench.run("tc_egress_l2", answer, ifindex=eth0)
    assert bench.totals()[1][:2] == (1, 1)

    bench.run("tc_ingress_l2", framed(frame4(b"x")))  # on loopback there are no packets but our own
    assert bench.totals()[1][:2] == (1, 1)


def test_a_servers_first_request_is_counted_in_a_container(bench: PacketBench, place: Namespace):
    bench.add_flow(2, SERVER, CLIENT, netns=ELSEWHERE, role=2)
    bench.run("tc_egress_l2", framed(frame4(b"x")), ifindex=place.index("eth0"))

    assert bench.totals()[2][:2] == (0, 1)


def test_two_namespaces_with_the_same_tuple_are_never_mixed(bench: PacketBench, place: Namespace):
    """On loopback the namespace is known; elsewhere the tuple names nobody, and is counted as such."""
    eth0 = place.index("eth0")
    bench.add_flow(1, CLIENT, SERVER)
    bench.add_flow(3, CLIENT, SERVER, netns=ELSEWHERE)
    frame = framed(frame4(b"x"))
    bench.run("tc_egress_l2", frame)
    assert bench.totals() == {1: (1, 0, len(frame), 0), 3: (0, 0, 0, 0)}

    for program in ("tc_egress_l2", "tc_ingress_l2"):
        bench.run(program, frame, ifindex=eth0)
    assert bench.totals() == {1: (1, 0, len(frame), 0), 3: (0, 0, 0, 0)}
    assert bench.counted() == {"own": 1, "ambiguous": 2}


def test_a_tuple_that_was_shared_stays_ambiguous_for_a_while(bench: PacketBench, place: Namespace):
    """The last packets of the connection that has closed must not count for the one that is left."""
    bench.add_flow(1, CLIENT, SERVER)
    eth0 = place.index("eth0")
    for seconds, counted in ((60, {"ambiguous": 1}), (-1, {"ambiguous": 1, "own": 1})):
        bench.shared_until(CLIENT, SERVER, time.monotonic_ns() + seconds * 10**9)
        bench.run("tc_egress_l2", framed(frame4(b"x")), ifindex=eth0)
        assert bench.counted() == counted


def test_a_cookie_without_its_flow_is_a_miss(bench: PacketBench):
    both_ends(bench)
    bpf.map_delete(bench.maps.fd["flows"], (1).to_bytes(8, "little"))
    bench.run("tc_egress_l2", framed(frame4(b"x")))

    assert bench.counted() == {"missed": 1}


def test_nothing_is_counted_while_capture_is_off(bench: PacketBench):
    both_ends(bench)
    bench.maps.set_settings(enabled=False, cgroups=0, excluded_cgroups=0, uids=0, excluded_uids=0)
    for program in L2:
        bench.run(program, framed(frame4(b"x")))

    assert bench.counted() == {}
