"""Makes every map of bpf/maps.h, and reaches into those that user space shares.

Takes sizes from the configuration; returns ``Maps``: file descriptors by name, and the shared memory of
the arrays that are mapped (counters, armed flags). The supervisor owns them; workers get the fds of
their ring, of ``armed`` and, for looking only, of the tables in LOOKED_INTO. Closing the
last fd frees a map: nothing is pinned.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from spliffd.counters import Region, kernel_bytes, kernel_region
from spliffd.kernel import bpf, unwanted
from spliffd.kernel.flows import FLOW_SIZE
from spliffd.kernel.hellos import HELLO_SIZE
from spliffd.kernel.storage import task_storage

# The numbers of bpf/maps.h.
NUMBERS = {
    1001: "settings",
    1002: "counters",
    1003: "armed",
    1004: "rings",
    1005: "processes",
    1006: "scope",
    1007: "uids",
    1008: "calls",
    1009: "conns",
    1010: "speakers",
    1011: "cookies",
    1012: "flows",
    1013: "blank",
    1014: "interfaces",
    1015: "cgroups",
    1016: "goroutines",
    1018: "candidates",
    1019: "exec",
    1024: "known_files",
    1030: "demand",
    1031: "wanted",
    1020: "asked",
    1021: "hellos",
    1022: "blank_hello",
    1032: "unwanted",
    1033: "witnesses",
    1034: "self_tests",
    1035: "judged",
    1036: "walks",
}

SCOPE_SLOTS = 16
MAX_UIDS = 1024
GOROUTINES = 32768
"""Calls under way in Go programs: one for each connection that waits for data."""
CONNS = 32768
"""Live TLS objects; the least recently used goes first, and the worker counts it."""
SPEAKERS = 8192
COOKIES = 65536
"""Two entries for each live TCP connection in scope: as many connections as there are flows."""
FLOWS = 32768
"""Live TCP connections in scope and those closed within 10 s: more than a host's 28,232 ephemeral ports to
one destination, and as many as the TLS objects that can be told apart. 12 MiB of kernel memory."""
INTERFACES = 4096
"""Interfaces with a hook: a host with a thousand containers has two for each."""
INTERFACE_COUNT = 16
PROCESS_RING_BYTES = 512 << 10
"""Exec events: some 2,000 of usual size (250 bytes) while the supervisor is busy."""
EXEC_VALUE = 12336
KNOWN_FILES = 16384
"""Files mapped by processes in scope: a host has some thousand; one that is forgotten is looked at again."""
FILE_KEY = 16

ASKED, ASKED_VALUE = 4096, 32
"""Threads that are asking a TLS library something right now."""
HELLOS = 2048
"""TLS connections whose beginning is kept: a worker reads it when the handshake or the first exchange ends,
so it is those in between that count. 12.5 MiB of kernel memory."""

CANDIDATES = 8192
"""TLS objects whose sockets have to be told by what is next to TLS calls: one that is evicted
stays without a socket, or is found later."""

CANDIDATE_VALUE = 16
CALLS_VALUE = 24 + 4 * 56 + 72 + 512
GO_KEY, GO_VALUE = 16, 64
CONN_KEY, CONN_VALUE = 24, 208
WALKS = 16384
"""Two for each live HTTP/2 connection: a quarter of all that can be told apart; of one beyond, all is
delivered. 5 MiB of kernel memory."""
WALK_KEY, WALK_VALUE = 24, 256
DEMAND_BYTES, WANTED_KEY = 384, 24
DEMAND_WORD, DEMAND_RATE, DEMAND_SHARE, DEMAND_SINCE = 0, 1, 8, 9
DEMAND_PRESSED, DEMAND_CUT, DEMAND_LOOKED = 11, 16, 17
"""Where they stand in struct demand; the last two for the first shard."""
SHARE_ALL = 1024
WITNESSES, WITNESS_VALUE = 1024, 32
"""Threads between the two places of a call that is compared: a thread that is evicted is not compared."""
SELF_TESTS, SELF_TEST_WORDS = 1024, 4
"""Files whose relocated probes prove themselves, in one run of the daemon; number 0 is none."""
WANTED = 4096
"""Pids, uids and names that watchers ask for, all together; more than that and everybody is delivered."""
JUDGED = 16384
"""Cgroups that were judged by their names: a host with thousands of containers; processes of those beyond
are delivered whoever they are. Made as needed: nobody may ever watch a unit."""
FLOW_KEY, FLOW_VALUE = 48, 32
SETTINGS = struct.Struct("=7I4xQ")
IN_SCOPE, EXCLUDED = 1, 2
LOOKED_INTO = ("conns", "speakers", "flows", "hellos")
"""Tables that workers look into."""

_SO_NETNS_COOKIE = 71


def netns_cookie() -> int:
    """The kernel's number for this process's network namespace (SO_NETNS_COOKIE, 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


class Maps:
    """All maps by name, and the views of the shared ones."""

    def __init__(self, shards: int, ring_bytes: int) -> None:
        self.shards = shards
        self.ring_sizes = [ring_bytes] * shards
        make = bpf.map_create
        self.rings = [make(bpf.MAP_RINGBUF, 0, 0, ring_bytes, name=f"ring{i}") for i in range(shards)]
        self.fd = {
            "settings": make(bpf.MAP_ARRAY, 4, SETTINGS.size, 1, name="settings"),
            "counters": make(bpf.MAP_ARRAY, 4, 8, kernel_bytes() // 8, bpf.F_MMAPABLE, "counters"),
            "armed": make(bpf.MAP_ARRAY, 4, 4, max(shards, 2), bpf.F_MMAPABLE, "armed"),
            "rings": make(bpf.MAP_ARRAY_OF_MAPS, 4, 4, shards, name="rings", inner=self.rings[0]),
            "processes": make(bpf.MAP_RINGBUF, 0, 0, PROCESS_RING_BYTES, name="processes"),
            "exec": make(bpf.MAP_PERCPU_ARRAY, 4, EXEC_VALUE, 1, name="exec"),
            "known_files": make(bpf.MAP_LRU_HASH, FILE_KEY, 1, KNOWN_FILES, name="known_files"),
            "scope": make(bpf.MAP_CGROUP_ARRAY, 4, 4, 2 * SCOPE_SLOTS, name="scope"),
            "cgroups": make(bpf.MAP_HASH, 8, 1, 2 * SCOPE_SLOTS, name="cgroups"),
            "uids": make(bpf.MAP_HASH, 4, 1, MAX_UIDS, name="uids"),
            "calls": task_storage(CALLS_VALUE, "calls"),
            "goroutines": make(bpf.MAP_LRU_HASH, GO_KEY, GO_VALUE, GOROUTINES, name="goroutines"),
            "conns": make(bpf.MAP_LRU_HASH, CONN_KEY, CONN_VALUE, CONNS, name="conns"),
            "speakers": make(bpf.MAP_LRU_HASH, 4, 8, SPEAKERS, name="speakers"),
            "candidates": make(bpf.MAP_LRU_HASH, CONN_KEY, CANDIDATE_VALUE, CANDIDATES, name="candidates"),
            "cookies": make(bpf.MAP_LRU_HASH, FLOW_KEY, FLOW_VALUE, COOKIES, name="cookies"),
            "flows": make(bpf.MAP_LRU_HASH, 8, FLOW_SIZE, FLOWS, name="flows"),
            "asked": make(bpf.MAP_LRU_HASH, 8, ASKED_VALUE, ASKED, name="asked"),
            "hellos": make(bpf.MAP_LRU_HASH, 8, HELLO_SIZE, HELLOS, name="hellos"),
            "blank_hello": make(bpf.MAP_ARRAY, 4, HELLO_SIZE, 1, name="blank_hello"),
            "interfaces": make(
                bpf.MAP_PERCPU_HASH, 4, INTERFACE_COUNT, INTERFACES, bpf.F_NO_PREALLOC, "interfaces"
            ),
            "demand": make(bpf.MAP_ARRAY, 4, DEMAND_BYTES, 1, bpf.F_MMAPABLE, "demand"),
            "witnesses": make(bpf.MAP_LRU_HASH, 8, WITNESS_VALUE, WITNESSES, name="witnesses"),
            "self_tests": make(
                bpf.MAP_ARRAY, 4, 8 * SELF_TEST_WORDS, SELF_TESTS, bpf.F_MMAPABLE, "self_tests"
            ),
            "unwanted": make(
                bpf.MAP_ARRAY, 4, unwanted.ENTRY_BYTES, unwanted.SLOTS, bpf.F_MMAPABLE, "unwanted"
            ),
            "walks": make(bpf.MAP_LRU_HASH, WALK_KEY, WALK_VALUE, WALKS, name="walks"),
            "wanted": make(bpf.MAP_HASH, WANTED_KEY, 1, WANTED, name="wanted"),
            "judged": make(bpf.MAP_HASH, 8, 1, JUDGED, bpf.F_NO_PREALLOC, "judged"),
            "blank": make(bpf.MAP_ARRAY, 4, FLOW_SIZE, 1, name="blank"),
        }
        self.netns_cookie = netns_cookie()
        self.open_by_state = False
        """Whether the state tracepoint opens flows; takes effect with ``set_settings``."""
        self._cgroup_lists: dict[int, int] = {}
        self.to_look = {name: bpf.map_read_only(self.fd[name]) for name in LOOKED_INTO}
        """Their read-only fds."""
        for shard, ring in enumerate(self.rings):
            bpf.map_update(self.fd["rings"], struct.pack("=I", shard), struct.pack("=I", ring))
        self.demand = memoryview(bpf.map_memory(self.fd["demand"], DEMAND_BYTES, writable=True)).cast("Q")
        """struct demand, shared with the programs: 64-bit words."""
        self.demand[DEMAND_SHARE] = SHARE_ALL
        size = 8 * SELF_TEST_WORDS * SELF_TESTS
        self.self_tests = memoryview(bpf.map_memory(self.fd["self_tests"], size, writable=True)).cast("Q")
        """struct self_test by number, as 64-bit words."""
        self.counters: Region = open_counters(self.fd["counters"])

    def swap_ring(self, shard: int, size: int) -> None:
        """Gives a shard a new, empty ring of ``size`` bytes; raises OSError when there is no memory for it.

        Afterwards nothing is written into the old one: updating a map of maps waits until the programs
        that may still hold the old entry are over (kernel/bpf/syscall.c, maybe_wait_bpf_programs). The old
        one lives on for whoever has it mapped.
        """
        ring = bpf.map_create(bpf.MAP_RINGBUF, 0, 0, size, name=f"ring{shard}")
        try:
            bpf.map_update(self.fd["rings"], struct.pack("=I", shard), struct.pack("=I", ring))
        except OSError:
            os.close(ring)
            raise
        os.close(self.rings[shard])
        self.rings[shard] = ring
        self.ring_sizes[shard] = size

    def set_settings(
        self, *, enabled: bool, cgroups: int, excluded_cgroups: int, uids: int, excluded_uids: int
    ) -> None:
        """Writes struct settings; takes effect with the next probe hit."""
        value = SETTINGS.pack(
            enabled, cgroups, excluded_cgroups, uids, excluded_uids, self.shards,
            self.open_by_state, self.netns_cookie,
        )  # fmt: skip
        bpf.map_update(self.fd["settings"], struct.pack("=I", 0), value)

    def set_scope(self, slot: int, cgroup_fd: int) -> None:
        """Puts a cgroup v2 directory into the scope array (0-15 in scope, 16-31 excluded).

        Its id, by which the owner of a socket is judged, is the inode number of its directory.
        """
        cgroup = os.fstat(cgroup_fd).st_ino
        lists = self._cgroup_lists.get(cgroup, 0) | (IN_SCOPE if slot < SCOPE_SLOTS else EXCLUDED)
        self._cgroup_lists[cgroup] = lists  # it may be on both: then it is excluded
        bpf.map_update(self.fd["scope"], struct.pack("=I", slot), struct.pack("=I", cgroup_fd))
        bpf.map_update(self.fd["cgroups"], struct.pack("=Q", cgroup), bytes([lists]))

    def set_uid(self, uid: int, *, excluded: bool) -> None:
        """Puts a uid into the scope."""
        bpf.map_update(self.fd["uids"], struct.pack("=I", uid), b"\x02" if excluded else b"\x01")

    def close(self) -> None:
        """Gives the maps back to the kernel."""
        for fd in (*self.rings, *self.fd.values(), *self.to_look.values()):
            os.close(fd)


def open_counters(fd: int) -> Region:
    """The kernel's counters, read-only; also for a process that was handed the map's fd."""
    size = kernel_bytes()
    return kernel_region(memoryview(bpf.map_memory(fd, size, writable=False)).cast("Q")[: size // 8])


def open_armed(fd: int, shards: int) -> memoryview:
    """The armed flags, one 32-bit word a shard, shared with the eBPF programs: least bytes to wake for."""
    return memoryview(bpf.map_memory(fd, max(shards, 2) * 4, writable=True)).cast("I")
