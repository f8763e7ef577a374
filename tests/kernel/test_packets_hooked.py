"""Packets of real connections through real hooks: whose they are, when namespaces share addresses and ports."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from spliffd.kernel import bpf, flows, netlinks
from tests.support.flow_tracer import FlowTracer, Peer, connected
from tests.support.lab import Lab, wait_for
from tests.support.net import Namespace, Network, inside

MINE, THEIRS = "10.91.0.1", "10.91.0.2"
MARKED = 997
"""Bytes of a call whose packet is rewritten."""
REWRITE = b"".join(
    struct.pack("<BBhi", *instruction)
    for instruction in (
        (0x61, 0x12, 0, 0),  # r2 = skb->len
        (0x55, 0x02, 7, 14 + 20 + 32 + MARKED),  # another size: let it pass
        (0x7A, 0x0A, -8, 0x0100),  # stack: port 1, as it is on the wire
        (0xB7, 0x02, 0, 14 + 20 + 2),  # the destination port
        (0xBF, 0xA3, 0, 0),
        (0x07, 0x03, 0, -8),
        (0xB7, 0x04, 0, 2),
        (0xB7, 0x05, 0, 0),
        (0x85, 0x00, 0, 9),  # bpf_skb_store_bytes
        (0xB7, 0x00, 0, -1),  # the next program decides
        (0x95, 0x00, 0, 0),
    )
)
"""A program for TC that sends packets of one size to another port, by include/uapi/linux/bpf.h."""
NONE = "10.94.0.1/32"
"""For an end that becomes a port of a bridge, which takes its address away."""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("hook") as network:
        yield network


def talk(client: Peer, server: Peer, sent: int, received: int) -> None:
    client.does(f"send {sent}")
    server.does(f"receive {sent}").does(f"send {received}")
    client.does(f"receive {received}")


def hops(tracer: FlowTracer, peer: Peer) -> dict[int, flows.Hop]:
    flow = tracer.flow(peer)
    assert flow is not None
    assert len({hop.ifindex for hop in flow.hops}) == len(flow.hops)
    return {hop.ifindex: hop for hop in flow.hops}


def test_loopback_counts_each_packet_once_for_each_end(lab: Lab, network: Network):
    place = network.namespace()
    with FlowTracer(lab, place) as tracer:
        tracer.hook(place, "lo")
        client, server = connected(lab, place, "127.0.0.1")
        talk(client, server, 1009, 20011)

        mine, theirs = hops(tracer, client)[1], hops(tracer, server)[1]
        assert mine.packets_sent >= 3  # SYN, ACK, data
        assert mine.bytes_sent >= 1009 + 66 * 2
        # All but the SYN, which comes before the server's end is there.
        assert theirs.packets_received == mine.packets_sent - 2  # nor the ACK that makes it
        assert theirs.packets_sent == mine.packets_received - 1  # nor the SYN-ACK
        assert theirs.bytes_sent > 20011
        assert tracer.counted("cookie_misses", "tc_ambiguous") == [0, 0]


def test_the_reset_of_a_closed_socket_is_its_own(lab: Lab, network: Network):
    """A socket that is closed with bytes unread is closed first and resets then (RFC 2525, 2.17)."""
    place = network.namespace()
    with FlowTracer(lab, place) as tracer:
        tracer.hook(place, "lo")
        client, server = connected(lab, place, "127.0.0.1")
        talk(client, server, 101, 103)
        server.does("send 107")
        before, (heard,) = hops(tracer, client)[1], hops(tracer, server).values()
        client.does("close")

        wait_for(lambda: hops(tracer, server)[1].packets_received > heard.packets_received, 30, "the reset")
        flow = tracer.flow(client)
        assert flow is not None
        assert flow.closed_ns
        assert hops(tracer, client)[1].packets_sent == before.packets_sent + 1


def test_what_was_rewritten_on_its_way_is_not_counted(lab: Lab, network: Network):
    """Address translation takes place before our hook: what comes back would not be known, so neither way is."""
    place, far = network.namespace(), network.namespace()
    network.pair(place, far)
    with FlowTracer(lab, place) as tracer:
        tracer.hook(place, "eth0")
        with inside(place):  # what is hooked last runs first
            rewrite = netlinks.tcx_link(
                bpf.prog_load(bpf.PROG_SCHED_CLS, REWRITE, "rewrite"), place.index("eth0"), egress=True
            )
        server = Peer(lab, far, "server", THEIRS)
        client = Peer(lab, place, "client", THEIRS, server.port)
        server.joined()
        talk(client, server, 101, 103)
        before, (own,) = hops(tracer, client), tracer.counted("tc_own")
        client.does(f"send {MARKED}")

        wait_for(lambda: tracer.counted("tc_foreign", "tc_forwarded") != [0, 0], 30, "the packet")
        assert hops(tracer, client) == before
        assert tracer.counted("tc_own") == [own]
    os.close(rewrite)


def test_an_older_connection_misses_until_it_is_seeded(lab: Lab, network: Network):
    place = network.namespace()
    client, server = connected(lab, place, "127.0.0.1")
    with FlowTracer(lab, place) as tracer:
        tracer.hook(place, "lo")
        talk(client, server, 101, 103)
        missed = tracer.counted("cookie_misses")[0]
        assert missed >= 4  # two segments, each at both hooks
        assert tracer.counted("tc_own") == [0]

        tracer.seed()
        talk(client, server, 101, 103)
        assert tracer.counted("cookie_misses") == [missed]
        assert hops(tracer, client)[1].bytes_sent >= 101
        assert hops(tracer, server)[1].bytes_received >= 101


def test_packets_out_of_scope_are_neither_missed_nor_kept(lab: Lab, network: Network):
    place = network.namespace()
    excluded = lab.cgroup / "excluded"
    excluded.mkdir()
    with FlowTracer(lab, place, excluded=(excluded,)) as tracer:
        tracer.hook(place, "lo")
        client, server = connected(lab, place, "127.0.0.1", cgroup=excluded)
        talk(client, server, 101, 103)

        assert tracer.flows() == {}
        assert tracer.counted("cookie_misses", "tc_own") == [0, 0]
        assert tracer.counted("tc_foreign")[0] >= 8


def test_a_container_and_the_host_are_both_seen_at_the_hosts_veth(lab: Lab, network: Network):
    host, container = network.namespace(), network.namespace()
    network.pair(host, container)
    with FlowTracer(lab, host) as tracer:
        tracer.hook(host, "eth0")
        server = Peer(lab, host, "server", MINE)
        client = Peer(lab, container, "client", MINE, server.port)
        server.joined()
        talk(client, server, 1009, 503)

        eth0 = host.index("eth0")
        (mine,), (theirs,) = hops(tracer, client).values(), hops(tracer, server).values()
        assert mine.ifindex == theirs.ifindex == eth0
        assert mine.bytes_sent >= 1009
        assert mine.bytes_received >= 503
        assert theirs.bytes_received >= 1009
        assert theirs.bytes_sent >= 503
        assert tracer.counted("cookie_misses", "tc_ambiguous") == [0, 0]


def test_a_path_through_the_host_lists_its_interfaces_in_order(lab: Lab, network: Network):
    """Two containers on a bridge of the host: out of one veth, in at the other."""
    host, one, other = (network.namespace() for _ in range(3))
    network.pair(host, one, ((NONE, f"{MINE}/24"),), names=("v1", "eth0"))
    network.pair(host, other, ((NONE, f"{THEIRS}/24"),), names=("v2", "eth0"))
    network.bridge(host, "v1", "v2")
    with FlowTracer(lab, host) as tracer:
        tracer.hook(host, "v1", "v2")
        server = Peer(lab, other, "server", THEIRS)
        client = Peer(lab, one, "client", THEIRS, server.port)
        server.joined()
        talk(client, server, 1009, 503)

        flow = tracer.flow(client)
        assert flow is not None
        assert [hop.ifindex for hop in flow.hops] == [host.index("v1"), host.index("v2")]
        first, second = flow.hops
        assert first.first_ns < second.first_ns
        assert (first.packets_sent, first.bytes_sent) == (second.packets_sent, second.bytes_sent)
        assert first.bytes_received == second.bytes_received >= 503


def two_alike(network: Network) -> tuple[Namespace, list[list[Namespace]]]:
    """A host, and two pairs of containers with the same addresses, each on a bridge of its own."""
    host = network.namespace()
    pairs = []
    for letter in "ab":
        ends = [network.namespace(), network.namespace()]
        for i, end in enumerate(ends):
            address = (MINE, THEIRS)[i]
            network.pair(host, end, ((NONE, f"{address}/24"),), names=(f"{letter}{i}", "eth0"))
        network.bridge(host, f"{letter}0", f"{letter}1", name=f"br{letter}")
        pairs.append(ends)
    return host, pairs


def test_the_same_addresses_and_ports_at_once_are_never_mixed(lab: Lab, network: Network):
    """Two pairs of containers, alike to the last port, whose packets all pass the host: each goes to its own."""
    host, pairs = two_alike(network)
    with FlowTracer(lab, host) as tracer:
        tracer.hook(host, "a0", "a1", "b0", "b1")
        servers = [Peer(lab, ends[1], "server", THEIRS, 8443) for ends in pairs]
        clients = [Peer(lab, ends[0], "client", THEIRS, 8443, mine=40009) for ends in pairs]
        for server in servers:
            server.joined()
        assert clients[0].facts["local"] == clients[1].facts["local"]
        for number, (client, server) in enumerate(zip(clients, servers, strict=True)):
            talk(client, server, 1009 + number, 503)
        assert tracer.counted("tc_ambiguous")[0] > 0

        for letter, client, server in zip("ab", clients, servers, strict=True):
            where = {host.index(f"{letter}{i}") for i in (0, 1)}
            assert set(hops(tracer, client)) <= where
            assert set(hops(tracer, server)) <= where
            # What each sends still carries its socket at the host's end of the veth: that names the sender.
            own = hops(tracer, client)[host.index(f"{letter}0")]
            assert own.bytes_sent > 1000

        clients[0].does("close")
        servers[0].does("close")
        before = hops(tracer, clients[1])[host.index("b0")]
        talk(clients[1], servers[1], 101, 103)  # the last packets of the other two may still be on their way
        after = hops(tracer, clients[1])[host.index("b0")]
        assert after.bytes_sent - before.bytes_sent >= 101
        assert set(hops(tracer, clients[1])) <= {host.index("b0"), host.index("b1")}


def test_loopback_knows_its_namespace_whatever_others_do(lab: Lab, network: Network):
    """Containers use 127.0.0.1 with the same ports all the time."""
    host, container = network.namespace(), network.namespace()
    with FlowTracer(lab, host) as tracer:
        tracer.hook(host, "lo")
        ends = []
        for place in (host, container):
            server = Peer(lab, place, "server", "127.0.0.1", 8443)
            client = Peer(lab, place, "client", "127.0.0.1", 8443, mine=40009)
            ends.append((client, server.joined()))
        for client, server in ends:
            talk(client, server, 1009, 503)

        assert hops(tracer, ends[0][0])[1].bytes_sent >= 1009
        assert hops(tracer, ends[0][1])[1].bytes_received >= 1009
        assert hops(tracer, ends[1][0]) == {}
        assert tracer.counted("tc_ambiguous", "cookie_misses") == [0, 0]


def test_a_stranger_with_the_same_tuple_is_not_taken_for_ours(lab: Lab, network: Network):
    """One of two alike containers is out of scope: nothing of it is in any map, and its packets say so."""
    host, pairs = two_alike(network)
    excluded = lab.cgroup / "excluded"
    excluded.mkdir()
    with FlowTracer(lab, host, excluded=(excluded,)) as tracer:
        tracer.hook(host, "a0", "b0")
        ours = Peer(lab, pairs[0][1], "server", THEIRS, 8443)
        client = Peer(lab, pairs[0][0], "client", THEIRS, 8443, mine=40009)
        ours.joined()
        strange = Peer(lab, pairs[1][1], "server", THEIRS, 8443, cgroup=excluded)
        stranger = Peer(lab, pairs[1][0], "client", THEIRS, 8443, mine=40009, cgroup=excluded)
        strange.joined()
        talk(stranger, strange, 1009, 503)
        talk(client, ours, 101, 103)

        assert set(tracer.flows()) == {client.cookie, ours.cookie}
        assert set(hops(tracer, client)) == {host.index("a0")}
