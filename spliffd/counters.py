"""Counters in shared memory: written by one process each, read by all, for nothing.

Takes a memory area (an ``mmap`` of a memfd, or of the kernel's counter map) and gives named 64-bit
slots in it. Each *region* has one writer: the eBPF programs, the supervisor, each worker, the api. A
reader needs no message, no lock and no wake-up of the writer: it loads aligned 64-bit words. The
memory belongs to the supervisor, so counters survive a restart of the process that writes them.

Never formats anything: ``metrics`` and ``statistics`` do that, when somebody asks.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Sequence

MAX_WORKERS = 16
"""More workers than this are refused by the configuration: two per shard of a large host."""

PACKET_OUTCOMES: tuple[str, ...] = (
    "own",
    "ambiguous",
    "foreign",
    "forwarded",
    "fragments",
    "not_tcp",
    "malformed",
)
"""What a packet can be: see bpf/events.h. Those of a cookie miss are counted as such instead."""

KERNEL: tuple[str, ...] = (
    # The order is the order of `enum counter` in bpf/events.h; a test compares the two.
    "out_of_scope",
    "ring_full_data_records",
    "ring_full_data_bytes",
    "ring_full_control",
    "fault_records",
    "fault_bytes",
    "oversize_bytes",
    "call_table_full",
    "call_unmatched",
    "conn_table_full",
    "cookie_table_full",
    "process_ring_full",
    "sockets_active",
    "sockets_passive",
    "sockets_closed",
    "cookie_misses",
    "sockets_without_cookie",
    "sockets_seeded",
    "flows_made",
    "flow_table_full",
    "flows_without_hop",
    "unwanted_bytes",
    "unsampled_exchanges",
    "shed_exchanges",
    "unjudged_calls",
    # What became of each packet that a hook saw, in the order of `enum packet_outcome`, for each hook.
    *(f"{hook}_{outcome}" for hook in ("xdp", "tc") for outcome in PACKET_OUTCOMES),
)

KERNEL_STRIDE = 64
"""Room of one processor's counters in the kernel's map: COUNTER_SLOTS in bpf/maps.h."""

HOOK_MODES: tuple[tuple[str, str], ...] = (
    ("XDP", "native"),
    ("XDP", "generic"),
    ("TC", "tcx"),
    ("TC", "clsact"),
)
"""The ways an interface's packets can be seen."""

TABLES: tuple[str, ...] = ("goroutines", "conns", "speakers", "cookies", "flows")
"""The kernel's bounded tables, by the names of bpf/maps.h."""

LIBRARIES: tuple[str, ...] = (
    "openssl",
    "boringssl",
    "libressl",
    "gnutls",
    "nss",
    "wolfssl",
    "mbedtls",
    "go",
    "rustls",
)

KINDS_OF_PROCESS: tuple[str, ...] = ("supervisor", "worker", "api")
"""The daemon's own processes, of which some work all the time (not the inspector, which comes and goes)."""

REASONS: tuple[str, ...] = (
    "static",
    "unknown_library",
    "unsupported",
    "attached_late",
    "ktls",
    "probe_refused",
    "probes_silent",
    "uncovered_namespace",
    "out_of_scope",
    "32bit",
    "unreadable",
    "not_inspected",
)
"""Why a process's TLS is not seen decrypted, or not all of it: see attribution/coverage.py."""

SUPERVISOR: tuple[str, ...] = (
    "worker_restarts",
    "api_restarts",
    "libraries_attached",
    "libraries_refused",
    "placements_tested",
    "placement_fallbacks",
    *(f"probes_{library}" for library in LIBRARIES),
    "execs_seen",
    "mappings_lost",
    "whois_requests",
    "whois_too_late",
    "ready_after_ms",
    *(f"interfaces_{hook}_{mode}" for hook, mode in HOOK_MODES),
    "interface_failures",
    "interface_overruns",
    "interface_table_full",
    "flows",
    "flows_evicted",
    *(f"map_{kind}_{table}" for kind in ("entries", "capacity") for table in TABLES),
    *(f"{unit}_{kind}" for unit in ("cpu_ms", "rss_kib") for kind in KINDS_OF_PROCESS),
    "processes_covered",
    *(f"processes_{covered}_{reason}" for covered in ("partly", "not") for reason in REASONS),
    "processes_forgotten",
)

PROTOCOLS: tuple[str, ...] = ("http1", "http2", "grpc", "websocket", "raw")
METHODS: tuple[str, ...] = (
    "NONE",
    "SOCKET_NESTED",
    "SOCKET_FD",
    "SOCKET_THREAD",
    "PROCESS_TIMING",
)
WIRES: tuple[str, ...] = ("NONE", "XDP", "TC")

HELLO_STATES: tuple[str, ...] = ("read", "cut", "missing")
"""The ClientHello of a connection whose packets were seen: whole, longer than what is kept, or not there."""

CORRELATION_BUCKETS: tuple[float, ...] = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)
"""Upper bounds in seconds; the last attempt of the retry queue is due within 50 ms."""

WORKER: tuple[str, ...] = (
    "tls_records_data",
    "tls_records_handshake",
    "tls_records_socket",
    "tls_records_close",
    "tls_records_fact",
    "tls_records_skipped",
    "tls_records_unknown",
    "captured_bytes_sent",
    "captured_bytes_received",
    "sleep_cycles",
    "busy_polls",
    "iterations",
    "records",
    "connections_opened",
    "connections_closed",
    "connections_evicted",
    "connections_reconciled",
    "exchanges_incomplete",
    "websocket_messages_sent",
    "websocket_messages_received",
    "handshakes_ok",
    "handshakes_failed",
    *(f"hellos_{state}" for state in HELLO_STATES),
    "gap_bytes",
    "gaps",
    "parser_resyncs",
    "body_bytes_shed",
    "output_dropped_frames",
    "output_dropped_bytes",
    "output_stalls",
    "deferred_successes",
    "deferred_failures",
    "deferred_pending",
    "deferred_queue_full",
    "link_restarts",
    *(f"correlation_bucket_{i}" for i in range(len(CORRELATION_BUCKETS) + 1)),
    "correlation_sum_ns",
    "correlation_count",
    # The exchange matrix, densely: protocol x library x method x wire.
    *(
        f"exchanges/{p}/{lib}/{m}/{w}"
        for p, lib, m, w in itertools.product(PROTOCOLS, LIBRARIES, METHODS, WIRES)
    ),
)

API: tuple[str, ...] = (
    "subscribers",
    "subscribers_total",
    "frames_received",
    "items_delivered",
    "items_filtered",
    "subscriber_lost_bodies",
    "subscriber_lost_items",
    "subscriber_lost_bytes",
    "batches_sent",
    "refused_permission",
    "history_dropped",
)

REGION_BYTES = 32768
"""Room of one region: 4,096 counters; the worker's matrix takes 675 of them."""

AREA_BYTES = REGION_BYTES * (2 + MAX_WORKERS)
"""The memfd: supervisor, api, then the workers."""


class Region:
    """Named 64-bit counters in a piece of shared memory, with exactly one writer.

    ``words`` is a ``memoryview`` cast to ``"Q"``; hot code may keep it together with an index from
    :meth:`index` and add in place.
    """

    def __init__(self, names: Sequence[str], words: memoryview) -> None:
        if len(names) > len(words):
            raise ValueError(f"{len(names)} counters do not fit into {len(words)} words")
        self.names = tuple(names)
        self.words = words
        self._index = {name: i for i, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """The slot of ``name``; KeyError for a name that is not declared above."""
        return self._index[name]

    def add(self, name: str, amount: int = 1) -> None:
        """Adds to a counter (only its writer may)."""
        self.words[self._index[name]] += amount

    def set(self, name: str, value: int) -> None:
        """Sets a gauge (only its writer may)."""
        self.words[self._index[name]] = value

    def get(self, name: str) -> int:
        """The value of one counter."""
        return self.words[self._index[name]]

    def values(self) -> dict[str, int]:
        """All values by name."""
        words = self.words
        return {name: words[i] for i, name in enumerate(self.names)}


def exchange_slot(protocol: str, library: str, method: str, wire: str) -> int:
    """Slot of the exchange matrix within a worker's region; KeyError for a value not declared."""
    return _EXCHANGE_SLOT[protocol, library, method, wire]


_EXCHANGE_SLOT: dict[tuple[str, str, str, str], int] = {
    combination: WORKER.index("exchanges/" + "/".join(combination))
    for combination in itertools.product(PROTOCOLS, LIBRARIES, METHODS, WIRES)
}


class Area:
    """The shared area of the user-space processes: supervisor, api and workers.

    ``Area.create()`` in the supervisor, ``Area(fd)`` in the others (the fd is inherited). Values are
    written by one process each; anybody who holds the fd can read all of them.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, AREA_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._map).cast("Q")
        self.supervisor = self._region(SUPERVISOR, 0)
        self.api = self._region(API, 1)
        self.workers = [self._region(WORKER, 2 + i) for i in range(MAX_WORKERS)]

    @classmethod
    def create(cls) -> Area:
        """Makes the memory; the fd is not inheritable until the supervisor says so."""
        fd = os.memfd_create("spliff-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, AREA_BYTES)
        return cls(fd)

    def _region(self, names: Sequence[str], number: int) -> Region:
        size = REGION_BYTES // 8
        return Region(names, self._words[number * size : (number + 1) * size])


class KernelRegion(Region):
    """The eBPF programs' counters: each processor adds to its own, so that none waits for another.

    Reading adds them up; ``words`` holds KERNEL_STRIDE of them for each processor. Never written here.
    """

    def __init__(self, words: memoryview) -> None:
        super().__init__(KERNEL, words)

    def get(self, name: str) -> int:
        """The sum of one counter over all processors."""
        return sum(self.words[self._index[name] :: KERNEL_STRIDE])

    def values(self) -> dict[str, int]:
        """All sums by name."""
        return {name: self.get(name) for name in self.names}


def kernel_region(words: memoryview) -> Region:
    """The eBPF programs' counters, over an mmap of their map."""
    return KernelRegion(words)


def kernel_bytes() -> int:
    """Size of the eBPF programs' counters on this host: a slot for each processor it may ever have."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().rpartition(",")[2].rpartition("-")[2]
    return (int(last) + 1) * KERNEL_STRIDE * 8
