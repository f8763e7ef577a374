"""How TLS begins, kept by every packet program: in one packet or many, in any order, and nothing else is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliffd.kernel import flows
from spliffd.kernel.hellos import HELLO_ROOM, Hello, HelloLookup
from tests.support.frames import CLIENT, CLIENT6, SERVER, SERVER6, ethernet, ipv4, ipv6, tcp
from tests.support.hellos import client_hello, record, server_hello, server_name
from tests.support.net import Network, inside
from tests.support.packet_bench import L2, L3, PacketBench

ASKED = record(22, client_hello([0x1301], server_name(b"example.org" * 200)))
ANSWERED = record(22, server_hello(0x1301)) + record(23, b"\xee" * 500)
ISN, PEER_ISN = 0xFFFF_FF00, 77
"""The client's sequence numbers go round within its hello."""


def asked(payload: bytes, at: int = 0, *, ack: int = PEER_ISN) -> bytes:
    """A packet of the client, ``at`` bytes behind the beginning of its hello."""
    sequence = ISN + at & 0xFFFF_FFFF
    return ipv4(
        CLIENT[0], SERVER[0], tcp(CLIENT[1], SERVER[1], payload, sequence=sequence, acknowledgement=ack)
    )


def answered(payload: bytes, at: int = 0) -> bytes:
    """A packet of the server."""
    return ipv4(
        SERVER[0], CLIENT[0], tcp(SERVER[1], CLIENT[1], payload, sequence=PEER_ISN + at, acknowledgement=1)
    )


@pytest.fixture(scope="module")
def loaded() -> Iterator[PacketBench]:
    with Network("hello") as network, inside(network.namespace()), PacketBench() as bench:
        yield bench


@pytest.fixture
def bench(loaded: PacketBench) -> PacketBench:
    loaded.reset()
    loaded.add_flow(1, CLIENT, SERVER, role=1)
    return loaded


def kept(bench: PacketBench, cookie: int = 1) -> Hello:
    found = HelloLookup(bench.maps.fd["hellos"])(cookie)
    assert found is not None
    return found


def send(bench: PacketBench, *packets: bytes) -> None:
    """As the client's host sees them: what it sends at egress, what comes at ingress."""
    for packet in packets:
        egress = packet[12:16] == asked(b"")[12:16]
        bench.run("tc_egress_l3" if egress else "tc_ingress_l3", packet)


@pytest.mark.parametrize("program", [*L2, *L3])
def test_each_program_keeps_it(bench: PacketBench, program: str):
    """Egress programs see the client's hello leave, the others see it come to the server."""
    bench.add_flow(2, SERVER, CLIENT, role=2)
    packet = asked(ASKED)
    bench.run(program, ethernet(packet, 0x0800) if program in L2 else packet)
    cookie = 1 if "egress" in program else 2
    found = kept(bench, cookie)
    assert (found.client, found.server, found.sent) == (ASKED, b"", cookie == 1)
    assert bench.flow(cookie).flags & flows.CLIENT_HELLO


def test_over_ipv6(bench: PacketBench):
    bench.add_flow(6, CLIENT6, SERVER6, role=1)
    packet = ipv6(CLIENT6[0], SERVER6[0], tcp(CLIENT6[1], SERVER6[1], ASKED))
    bench.run("tc_egress_l2", ethernet(packet, 0x86DD))
    assert kept(bench, 6).client == ASKED


def test_both_directions(bench: PacketBench):
    send(bench, asked(ASKED), answered(ANSWERED), asked(b"\x17\x03\x03more", len(ASKED)))
    found = kept(bench)
    assert found.client == ASKED + b"\x17\x03\x03more"
    assert found.server == ANSWERED
    assert (found.client_alert, found.server_alert) == (0, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_in_pieces_and_twice(loaded: PacketBench, data: st.DataObject):
    """Pieces of an Ethernet frame; each may come again, the later ones of three also before their turn."""
    loaded.reset()
    loaded.add_flow(1, CLIENT, SERVER, role=1)
    size = data.draw(st.sampled_from([536, 1220, 1448]))
    pieces = [(at, ASKED[at : at + size]) for at in range(0, len(ASKED), size)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    later = data.draw(st.permutations(pieces[1:])) if len(pieces) == 3 else pieces[1:]
    send(loaded, *(asked(payload, at) for at, payload in (pieces[0], *later, *again)))
    assert kept(loaded).client == ASKED


def test_a_piece_that_never_comes_ends_what_is_known(bench: PacketBench):
    send(bench, asked(ASKED[:700]), asked(ASKED[1400:], 1400))
    assert kept(bench).client == ASKED[:700]


def test_a_hello_that_is_longer_than_its_room_is_kept_so_far(bench: PacketBench):
    long = record(22, client_hello([0x1301], server_name(b"n" * 3500)))
    send(bench, asked(long))
    assert kept(bench).client == long[:HELLO_ROOM]


def test_behind_a_proxys_lines(bench: PacketBench):
    """CONNECT and its answer go before; the bases of both directions are the hello's own."""
    line, ok = b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    send(bench, asked(line, -len(line)), answered(ok, -len(ok)), asked(ASKED), answered(ANSWERED))
    assert (kept(bench).client, kept(bench).server) == (ASKED, ANSWERED)


def test_alerts_beyond_the_room(bench: PacketBench):
    """A server's certificates take more than is kept; what it says of the client's is a packet of its own."""
    send(bench, asked(ASKED), answered(ANSWERED))
    send(bench, answered(record(21, b"\x02\x30", 0x0303), 9000), asked(record(21, b"\x02\x2a"), 9000))
    assert (kept(bench).client_alert, kept(bench).server_alert) == (0x22A, 0x230)


@pytest.mark.parametrize("other", [record(21, b"\x02\x30\0"), record(21, b"\x02"), record(20, b"\x02\x30")])
def test_what_is_no_alert(bench: PacketBench, other: bytes):
    send(bench, asked(ASKED), answered(other, 9000))
    assert kept(bench).server_alert == 0


def test_nothing_is_kept_of_other_protocols(bench: PacketBench):
    send(bench, asked(b"GET / HTTP/1.1\r\n\r\n"), answered(b"HTTP/1.1 200 OK\r\n\r\n"), answered(ANSWERED))
    assert HelloLookup(bench.maps.fd["hellos"])(1) is None


def test_nothing_is_kept_of_a_connection_joined_in_the_middle(bench: PacketBench):
    bench.reset()
    bench.add_flow(1, CLIENT, SERVER, role=1, flags=flows.SEEDED)
    send(bench, asked(ASKED))
    assert HelloLookup(bench.maps.fd["hellos"])(1) is None


def test_another_connections_hello_is_another(bench: PacketBench):
    bench.add_flow(3, ("192.0.2.12", 1), SERVER, role=1)
    packet = ipv4("192.0.2.12", SERVER[0], tcp(1, SERVER[1], ASKED[:100]))
    send(bench, asked(ASKED))
    bench.run("tc_egress_l3", packet)
    assert (kept(bench).client, kept(bench, 3).client) == (ASKED, ASKED[:100])
