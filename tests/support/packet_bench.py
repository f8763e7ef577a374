"""The packet programs without a network: flows put in by hand, packets run through BPF_PROG_TEST_RUN.

Nothing is attached to anything. To be made inside a network namespace of the test's own (``net.inside``):
the programs look for sockets in the namespace that they are run in.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Self

from spliffd.counters import PACKET_OUTCOMES
from spliffd.kernel import bpf, flows, runs
from spliffd.kernel.hellos import HELLO_SIZE
from spliffd.kernel.loader import Programs
from spliffd.kernel.maps import FLOW_KEY, FLOW_VALUE, Maps
from tests.support.programs import programs

L2 = ("xdp_l2", "tc_ingress_l2", "tc_egress_l2")
L3 = ("xdp_l3", "tc_ingress_l3", "tc_egress_l3")
XDP_PASS, TCX_NEXT = 2, 0xFFFFFFFF
"""TCX_NEXT is TC_ACT_UNSPEC."""

End = tuple[str, int]


def packed(address: str) -> tuple[bytes, int]:
    """An address as the maps hold it, and its family."""
    value = ipaddress.ip_address(address)
    return value.packed.ljust(16, b"\0"), value.version


class PacketBench:
    """Programs and maps; use as a context manager."""

    def __init__(self) -> None:
        self.maps = Maps(1, 1 << 12)
        self.programs = Programs(programs(), self.maps)
        self.here = self.maps.netns_cookie
        self._before: dict[str, int] = {}
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.programs.close()
        self.maps.close()

    def reset(self) -> None:
        """As new: capture on, no flow, nothing counted. Loading the programs anew would take a second."""
        self.maps.set_settings(enabled=True, cgroups=0, excluded_cgroups=0, uids=0, excluded_uids=0)
        for name, key, value in (
            ("flows", 8, flows.FLOW_SIZE),
            ("cookies", FLOW_KEY, FLOW_VALUE),
            ("hellos", 8, HELLO_SIZE),
        ):
            entries, after = bpf.map_lookup_batch(self.maps.fd[name], b"", key, value, 1024)
            assert not after
            for entry, _ in entries:
                bpf.map_delete(self.maps.fd[name], entry)
        self._before = self.maps.counters.values()

    def counter(self, name: str) -> int:
        """A counter of the kernel, since ``reset``."""
        return self.maps.counters.get(name) - self._before[name]

    def add_flow(
        self, cookie: int, local: End, remote: End, *, netns: int = 0, role: int = 1, flags: int = 0
    ) -> None:
        """An open connection, in this namespace or another; two with one tuple become ambiguous."""
        netns = netns or self.here
        (mine, family), (theirs, _) = packed(local[0]), packed(remote[0])
        flow = struct.pack(
            "=QQQQ16s16sHHBBBBIIQQ", 1, 1, 0, netns, mine, theirs, local[1], remote[1],
            family, role, 0, flags, 0, flows.ESTABLISHED, 0, 0,
        )  # fmt: skip
        bpf.map_update(self.maps.fd["flows"], struct.pack("=Q", cookie), flow.ljust(flows.FLOW_SIZE, b"\0"))
        fd = self.maps.fd["cookies"]
        for where in (netns, 0):
            key = struct.pack("=Q16s16sHHI", where, mine, theirs, local[1], remote[1], family)
            value = struct.pack("=QQQII", cookie, netns, 1, role, 1)
            if not where and (old := bpf.map_lookup(fd, key, 32)):
                have = struct.unpack("=QQQII", old)
                value = struct.pack("=QQQII", have[0] + cookie, have[1] + netns, 1, role, have[4] + 1)
            bpf.map_update(fd, key, value)

    def shared_until(self, local: End, remote: End, when_ns: int) -> None:
        """As if another namespace had had the same tuple, and had closed it a while before ``when_ns``."""
        (mine, family), (theirs, _) = packed(local[0]), packed(remote[0])
        key = struct.pack("=Q16s16sHHI", 0, mine, theirs, local[1], remote[1], family)
        value = bpf.map_lookup(self.maps.fd["cookies"], key, FLOW_VALUE)
        assert value is not None
        bpf.map_update(self.maps.fd["cookies"], key, value[:16] + struct.pack("=Q", when_ns) + value[24:])

    def flow(self, cookie: int) -> flows.Flow:
        """One flow as it is now."""
        found = flows.look_up(self.maps.fd["flows"], cookie)
        assert found is not None
        return found

    def totals(self) -> dict[int, tuple[int, int, int, int]]:
        """Packets and bytes by cookie, sent and received, over all hops."""
        return {
            cookie: (
                sum(hop.packets_sent for hop in flow.hops),
                sum(hop.packets_received for hop in flow.hops),
                sum(hop.bytes_sent for hop in flow.hops),
                sum(hop.bytes_received for hop in flow.hops),
            )
            for cookie, flow in flows.read_flows(self.maps.fd["flows"])
        }

    def counted(self) -> dict[str, int]:
        """What packets have turned out to be, both hooks together; only what is not 0."""
        found = {name: self.counter(f"xdp_{name}") + self.counter(f"tc_{name}") for name in PACKET_OUTCOMES}
        found["missed"] = self.counter("cookie_misses")
        return {name: value for name, value in found.items() if value}

    def run(
        self,
        program: str,
        packet: bytes,
        ifindex: int = 0,
        gso_segs: int = 0,
        gso_size: int = 0,
        repeat: int = 1,
    ) -> runs.Run:
        """Runs one packet; asserts that it goes on as it came. ``ifindex`` 0 is loopback (TC only)."""
        context = b""
        if ifindex or gso_segs or gso_size:
            about = bytearray(192)  # struct __sk_buff
            struct.pack_into("=I", about, 40, ifindex or 1)
            struct.pack_into("=I", about, 164, gso_segs)
            struct.pack_into("=I", about, 176, gso_size)
            context = bytes(about)
        done = runs.run_packet(self.programs.fd[program], packet, repeat, context)
        # xdp_egress_* are TC programs, for what an interface on XDP sends.
        on = XDP_PASS if program.startswith("xdp_l") else TCX_NEXT
        assert done.retval == on, f"{program} returned {done.retval}"
        assert done.data == packet, f"{program} changed a packet"
        return done
