"""TLS records counted by their headers, in packets cut anywhere, and never more than there were."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliffd.kernel.flows import RecordSide
from tests.support.frames import CLIENT, SERVER, ethernet, ipv4, tcp
from tests.support.hellos import client_hello, record, server_hello, server_name
from tests.support.net import Network, inside
from tests.support.packet_bench import L2, L3, PacketBench

HELLO = record(22, client_hello([0x1301], server_name(b"example.org")))
ANSWER = record(22, server_hello(0x1301)) + record(20, b"\x01")
FINISHED = record(23, b"\xf1" * 53)
ISN, PEER_ISN = 0xFFFF_FF80, 77
"""The client's sequence numbers go round early."""
MOST = 3000


class Talk:
    """A connection of the client, as its host's hooks see it; streams are what was sent on so far."""

    def __init__(self, bench: PacketBench) -> None:
        bench.reset()
        bench.add_flow(1, CLIENT, SERVER, role=1)
        self.bench = bench
        self.at = [0, 0]

    def packet(self, side: int, payload: bytes, at: int) -> None:
        """One packet of the client (0) or the server (1), at an offset of its stream."""
        ends, isn, ack = ((CLIENT, SERVER), ISN, PEER_ISN), ISN, PEER_ISN
        source, target = ends[0]
        if side:
            source, target, isn, ack = SERVER, CLIENT, PEER_ISN, ISN
        segment = tcp(source[1], target[1], payload, sequence=isn + at & 0xFFFF_FFFF, acknowledgement=ack)
        program = "tc_ingress_l3" if side else "tc_egress_l3"
        self.bench.run(program, ipv4(source[0], target[0], segment))

    def says(self, side: int, stream: bytes, cuts: Sequence[int] = ()) -> None:
        """Goes on with the stream, in packets that end at ``cuts`` and hold no more than a test run takes."""
        start = 0
        ends = sorted({cut for cut in cuts if cut < len(stream)} | set(range(MOST, len(stream), MOST)))
        for end in [*ends, len(stream)]:
            self.packet(side, stream[start:end], self.at[side] + start)
            start = end
        self.at[side] += len(stream)

    def shakes_hands(self) -> None:
        self.says(0, HELLO)
        self.says(1, ANSWER + record(23, b"\xaa" * 900))
        self.says(0, record(20, b"\x01") + FINISHED)

    def side(self, side: int) -> RecordSide:
        return self.bench.flow(1).sides[side]


@pytest.fixture(scope="module")
def loaded() -> Iterator[PacketBench]:
    with Network("lengths") as network, inside(network.namespace()), PacketBench() as bench:
        yield bench


@pytest.fixture
def talk(loaded: PacketBench) -> Talk:
    return Talk(loaded)


def first(*lengths: int) -> int:
    return int.from_bytes(struct.pack("<4H", *lengths, *[0] * (4 - len(lengths))), "little")


def test_a_conversation_is_counted_apart_from_its_handshake(talk: Talk):
    talk.shakes_hands()
    talk.says(1, record(23, b"t" * 250) * 2)
    talk.says(0, record(23, b"q" * 100))
    talk.says(1, record(23, b"a" * 1017) + record(23, b"!" * 19))

    client, server = talk.side(0), talk.side(1)
    assert (client.records, client.size, client.first) == (2, 153, first(53, 100))
    assert (client.flight_records, client.begun, client.last) == (0, 1, 100)
    assert (server.records, server.size) == (5, 900 + 250 * 2 + 1017 + 19)
    assert (server.flight_records, server.flight_size) == (1, 900)
    assert (server.first, server.last) == (first(250, 250, 1017, 19), 19)


@pytest.mark.parametrize("program", [*L2, *L3])
def test_each_program_walks(talk: Talk, program: str):
    """Egress programs see the client's records leave, the others see them come to the server."""
    bench = talk.bench
    bench.add_flow(2, SERVER, CLIENT, role=2)
    packet = ipv4(CLIENT[0], SERVER[0], tcp(CLIENT[1], SERVER[1], HELLO + FINISHED, acknowledgement=5))
    bench.run(program, ethernet(packet, 0x0800) if program in L2 else packet)
    sides = bench.flow(1).sides[0] if "egress" in program else bench.flow(2).sides[1]
    assert (sides.records, sides.size, sides.first) == (1, 53, first(53))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cut_anywhere_the_count_is_the_same(talk: Talk, data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(0, 60) | st.integers(0, 16401), min_size=1, max_size=9))
    stream = b"".join(record(23, bytes(length)) for length in lengths)
    borders = [sum(lengths[:i]) + 5 * i + at for i in range(len(lengths)) for at in range(7)]
    cuts = data.draw(st.lists(st.sampled_from(borders) | st.integers(1, len(stream)), max_size=12))
    talk.__init__(talk.bench)
    talk.shakes_hands()
    talk.says(1, stream, [cut for cut in cuts if cut])

    side = talk.side(1)
    assert side.walk & 0xFFFF_FFFF <= PEER_ISN + talk.at[1]
    if side.walk & 0xFFFF_FFFF == PEER_ISN + talk.at[1] and not side.walk >> 32 & 7:
        assert (side.records - 1, side.size - 900) == (len(lengths), sum(lengths))
        assert side.first == first(*lengths[:4])
    else:
        # A header in three packets is given up: what was counted until then is right.
        known = side.records - 1
        assert known < len(lengths)
        assert side.size - 900 == sum(lengths[:known])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_lost_doubled_and_turned_round_it_is_never_too_much(talk: Talk, random, lengths: list[int]):
    talk.__init__(talk.bench)
    talk.shakes_hands()
    stream = b"".join(record(23, bytes(length)) for length in lengths)
    size = random.randrange(8, 1500)
    packets = [(at, stream[at : at + size]) for at in range(0, len(stream), size)]
    for at, payload in [*packets, *random.choices(packets, k=3)]:
        if random.random() < 0.9:
            talk.packet(1, payload, talk.at[1] + at)
            if random.random() < 0.3:
                talk.packet(1, payload, talk.at[1] + at)

    side = talk.side(1)
    known = side.records - 1
    assert 0 <= known <= len(lengths)
    assert side.size - 900 == sum(lengths[:known])


def test_more_records_than_one_packet_is_searched_for_end_the_count(talk: Talk):
    talk.shakes_hands()
    talk.says(1, record(23, b"x") * 100)
    assert talk.side(1).records == 1 + 32
    talk.says(1, record(23, b"x"))
    assert talk.side(1).records == 1 + 32


def test_what_is_no_tls_ends_the_count(talk: Talk):
    talk.shakes_hands()
    talk.says(0, b"GET / HTTP/1.1\r\n\r\n")
    talk.says(0, FINISHED)
    assert talk.side(0).records == 1


def test_nothing_is_counted_without_a_client_hello(talk: Talk):
    talk.says(0, FINISHED)
    talk.says(1, FINISHED)
    assert talk.side(0) == talk.side(1) == RecordSide(0, 0, 0, 0, 0, 0, 0, 0, 0)
