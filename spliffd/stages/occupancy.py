"""How full the kernel's tables are, as gauges in shared memory.

Takes the maps and the supervisor's counters; ``look`` counts entries and writes ``map_entries_*`` and
``flows``. The kernel keeps no such count, so the tables are walked: a fraction of a millisecond each when
they are nearly empty, 40 ms for all of them full. Nothing is read while nothing has changed.
"""

from __future__ import annotations

import struct

from spliffd.counters import TABLES, Area, Region
from spliffd.journal import logger
from spliffd.kernel import bpf, maps
from spliffd.kernel.flows import FLOW_SIZE, KEY_SIZE

log = logger("occupancy")

SIZES: dict[str, tuple[int, int, int]] = {
    "goroutines": (maps.GO_KEY, maps.GO_VALUE, maps.GOROUTINES),
    "conns": (maps.CONN_KEY, maps.CONN_VALUE, maps.CONNS),
    "speakers": (4, 8, maps.SPEAKERS),
    "cookies": (maps.FLOW_KEY, maps.FLOW_VALUE, maps.COOKIES),
    "flows": (KEY_SIZE, FLOW_SIZE, maps.FLOWS),
}
"""Size of key and value in bytes, and capacity."""

LOOKS_AFTER_CHANGE = 3
"""Closed flows are swept 10 s later, ends of threads are counted nowhere: 30 s show the last of them."""

_BATCH = 1024
_CLOSED_NS = struct.Struct("=16xQ").unpack_from
"""``closed_ns`` of struct flow: 0 while the connection is open."""


class Occupancy:
    """Entries and capacity of the tables."""

    def __init__(self, tables: maps.Maps, area: Area) -> None:
        self._tables = tables
        self._area = area
        self._seen: list[int] = []
        self._looks = 0
        for name in TABLES:
            area.supervisor.set(f"map_capacity_{name}", SIZES[name][2])

    def look(self) -> bool:
        """Counts anew when anything may have changed; returns whether it did."""
        facts = self._facts()
        if facts != self._seen:
            self._seen, self._looks = facts, LOOKS_AFTER_CHANGE
        elif self._looks:
            self._looks -= 1
        else:
            return False
        try:
            for name in TABLES:
                self._count(name, self._area.supervisor)
        except OSError as error:  # a kernel before 5.6; gauges stay where they are
            log.debug("tables cannot be counted", error=str(error))
        return True

    def _facts(self) -> list[int]:
        """Numbers of which one changes whenever entries are made."""
        kernel = self._tables.counters
        events = ("sockets_active", "sockets_passive", "sockets_closed", "sockets_seeded")
        return [*(kernel.get(name) for name in events), *(one.get("records") for one in self._area.workers)]

    def _count(self, name: str, counters: Region) -> None:
        key, value, _ = SIZES[name]
        entries = open_flows = 0
        after = b""
        while True:
            batch, after = bpf.map_lookup_batch(self._tables.fd[name], after, key, value, _BATCH)
            entries += len(batch)
            if name == "flows":
                open_flows += sum(1 for _, data in batch if not _CLOSED_NS(data)[0])
            if not after:
                break
        counters.set(f"map_entries_{name}", entries)
        if name == "flows":
            counters.set("flows", open_flows)
