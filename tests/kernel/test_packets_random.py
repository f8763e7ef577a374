"""Each packet program on 13,000 valid, changed, cut and random packets: always on its way, never a wrong flow.

Every packet's meaning is read by the oracle of tests/support/frames.py, which knows the RFCs and nothing of
the programs; after each batch all flows and all counters must be exactly what it predicts.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

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
    Seen,
    dissect,
    ethernet,
    extension,
    ipv4,
    ipv6,
    tcp,
)
from tests.support.net import Network, inside
from tests.support.packet_bench import PacketBench

CASES = 13_000
BATCH = 500
LEAST = 14
"""The kernel runs nothing shorter."""
LEAST_OF_TYPE = {b"\x08\x00": 34, b"\x86\xdd": 54}
"""Nor TC programs on what says there, where Ethernet has its type, that it is IP, without a whole IP header.
XDP programs and tagged frames are cut there as well."""
PROGRAMS = (
    "xdp_l2",
    "xdp_l3",
    "tc_ingress_l2",
    "tc_ingress_l3",
    "tc_egress_l2",
    "tc_egress_l3",
    "xdp_egress_l2",
    "xdp_egress_l3",
)
FLOWS = {1: (CLIENT, SERVER), 2: (SERVER, CLIENT), 6: (CLIENT6, SERVER6), 7: (SERVER6, CLIENT6)}


def valid(dice: random.Random) -> bytes:
    """A sound packet of one of the connections, with whatever is legal."""
    payload = dice.choice([b"", HELLO, dice.randbytes(dice.randrange(200))])
    ends = dice.choice(list(FLOWS.values()))
    (source, sport), (destination, dport) = ends
    options = dice.randbytes(dice.choice([0, 0, 4, 12, 40]))
    segment = tcp(sport, dport, payload, options, flags=dice.randrange(64))
    if "." in source:
        fragment = dice.choice([0, 0, 0x4000, 0x2000, 0x2010, 0x0010])
        return ipv4(source, destination, segment, dice.randbytes(dice.choice([0, 0, 8, 40])), fragment)
    headers = [
        extension(dice.choice([HOP_BY_HOP, ROUTING, DESTINATION]), dice.choice([8, 16, 24]))
        if dice.random() < 0.7
        else extension(AH, 24)
        if dice.random() < 0.5
        else extension(FRAGMENT, fragment=dice.choice([0, 1, 8]))
        for _ in range(dice.choice([0, 0, 1, 2, 3, 8, 9]))
    ]
    return ipv6(source, destination, segment, tuple(headers))


def case(dice: random.Random, is_ethernet: bool) -> bytes:
    """One packet: sound, changed in a few bytes, cut short, or nothing but noise."""
    kind = dice.random()
    if kind < 0.1:
        return dice.randbytes(dice.randrange(LEAST, 120))
    packet = valid(dice)
    if is_ethernet:
        tags = tuple(dice.choice([0x8100, 0x88A8, 0x9100]) for _ in range(dice.choice([0, 0, 1, 2, 3])))
        packet = ethernet(packet, 0x0800 if packet[0] >> 4 == 4 else 0x86DD, tags)
    if kind < 0.3:
        return packet
    changed = bytearray(packet)
    if kind < 0.7:
        # Mostly in the headers: there a changed byte means something else.
        for _ in range(dice.randrange(1, 5)):
            changed[dice.randrange(min(len(changed), 80))] = dice.choice([0, 1, 255, dice.randrange(256)])
    if kind > 0.6:
        changed = changed[: dice.randrange(LEAST, max(len(changed), LEAST + 1))]
    if kind > 0.9:
        changed += dice.randbytes(dice.randrange(40))
    return bytes(changed)


def runnable(dice: random.Random, program: str) -> bytes:
    """A case that the kernel is willing to run."""
    while True:
        packet = case(dice, program.endswith("l2"))
        if program.startswith("xdp_l") or len(packet) >= LEAST_OF_TYPE.get(packet[12:14], LEAST):
            return packet


def expected(seen: Seen, egress: bool) -> tuple[str, int]:
    """The outcome, and the cookie of the flow that it belongs to (0: none)."""
    if seen.kind != "tcp":
        return seen.kind, 0
    ends = (seen.source, seen.destination) if egress else (seen.destination, seen.source)
    for cookie, flow in FLOWS.items():
        if flow == ends:
            # A SYN opens a connection: it belongs to none that is open.
            return ("foreign", 0) if seen.syn else ("own", cookie)
    return "forwarded", 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_any_packet_goes_on_and_is_nobody_elses(program: str):
    dice = random.Random(f"{program}: issue 3")
    is_ethernet, egress = program.endswith("l2"), "egress" in program
    outcomes: Counter[str] = Counter()
    with Network("rnd") as network, inside(network.namespace()), PacketBench() as bench:
        for cookie, (local, remote) in FLOWS.items():
            bench.add_flow(cookie, local, remote, role=2 - cookie % 2)
        packets: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        for start in range(0, CASES, BATCH):
            batch = [runnable(dice, program) for _ in range(BATCH)]
            for packet in batch:
                bench.run(program, packet)  # asserts that it goes on, unchanged
                kind, cookie = expected(dissect(packet, is_ethernet), egress)
                outcomes[kind] += 1
                if cookie:
                    packets[cookie] += 1
                    sizes[cookie] += len(packet)
            assert bench.counted() == dict(outcomes), f"within packets {start} to {start + BATCH}"
            assert {
                cookie: (sent + received, out + into)
                for cookie, (sent, received, out, into) in bench.totals().items()
            } == {cookie: (packets[cookie], sizes[cookie]) for cookie in FLOWS}
        for cookie, (sent, received, _, _) in bench.totals().items():
            assert packets[cookie] > 100  # each connection was met often enough to be mistaken
            assert (received if egress else sent) == 0
    assert sum(outcomes.values()) == CASES
    assert set(outcomes) == {"own", "foreign", "forwarded", "fragments", "not_tcp", "malformed"}
