"""What a packet costs at each hook: ns of the packet programs, without a network.

Each program runs 200,000 times on one packet through BPF_PROG_TEST_RUN, which says how long one run takes;
nothing is attached to anything. Three kinds: of a connection of ours (the whole way: parsed, found, counted),
of nobody here (parsed, looked up three times, counted as forwarded), and no TCP at all (what a host that
only forwards UDP pays). A program that does nothing tells what the call itself costs; it is in every figure.
The memory of the kernel's tables, all of it taken at start, stands beside them.
"""

from __future__ import annotations

import os
import statistics

from bench.report import Figure
from spliffd.counters import TABLES
from spliffd.kernel import bpf, runs
from tests.support.frames import CLIENT, CLIENT6, SERVER, SERVER6, ethernet, frame4, frame6, ipv4, tcp
from tests.support.lab import say
from tests.support.net import Network, inside
from tests.support.packet_bench import L2, L3, PacketBench

REPEAT = 200_000
ROUNDS = 5
PAYLOAD = b"x" * 1400
RETURN = bytes.fromhex("b7000000000000009500000000000000")
"""mov r0, 0; exit"""

PACKETS = {
    "own, IPv4": frame4(PAYLOAD),
    "own, IPv6": frame6(PAYLOAD),
    "forwarded": ipv4("203.0.113.1", "203.0.113.2", tcp(5, 443, PAYLOAD)),
    "not TCP": ipv4("203.0.113.1", "203.0.113.2", PAYLOAD, protocol=17),
}


def table(name: str, fd: int) -> Figure:
    """The memory that the kernel has charged for one map."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        (charged,) = (int(line.split()[1]) for line in file if line.startswith("memlock:"))
    return Figure(
        "packets: memory of the kernel's tables, as the kernel charges it", name, charged / 2**20, "MiB"
    )


def measure() -> list[Figure]:
    """The median of rounds for each program and packet."""
    taken: dict[tuple[str, str], list[float]] = {}
    with Network("bench") as network, inside(network.namespace()), PacketBench() as bench:
        for cookie, (local, remote) in enumerate(
            ((CLIENT, SERVER), (SERVER, CLIENT), (CLIENT6, SERVER6), (SERVER6, CLIENT6)), 1
        ):
            bench.add_flow(cookie, local, remote, role=2 - cookie % 2)
        for number in range(ROUNDS):
            say(f"   round {number + 1} of {ROUNDS}")
            for kind, hook in ((bpf.PROG_XDP, "xdp"), (bpf.PROG_SCHED_CLS, "tc")):
                fd = bpf.prog_load(kind, RETURN, "nothing")
                run = runs.run_packet(fd, ethernet(PACKETS["own, IPv4"], 0x0800), REPEAT)
                taken.setdefault((hook, "a program that does nothing"), []).append(run.nanoseconds)
                os.close(fd)
            for program in (*L2, *L3):
                for name, packet in PACKETS.items():
                    framed = ethernet(packet, 0x86DD if packet[0] >> 4 == 6 else 0x0800)
                    run = bench.run(program, framed if program in L2 else packet, repeat=REPEAT)
                    taken.setdefault((program, name), []).append(run.nanoseconds)
        counted = bench.counted()
        expected = ROUNDS * REPEAT * len(L2 + L3)
        if counted != {"own": 2 * expected, "forwarded": expected, "not_tcp": expected}:
            raise RuntimeError(f"packets were not what they were made to be: {counted}")
        tables = [table(name, bench.maps.fd[name]) for name in TABLES]
    return tables + [
        Figure(
            "packets: one packet of 1,400 bytes at one hook (BPF_PROG_TEST_RUN)",
            f"{program}, {name}",
            statistics.median(samples),
            "ns",
            samples=samples,
        )
        for (program, name), samples in taken.items()
    ]
