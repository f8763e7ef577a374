"""Looks into the kernel's own tables: which packets a connection had, and whether it is over.

By file descriptors that the worker was handed, which needs no privilege. ``hops`` is asked for nearly
every exchange. ``is_over`` is asked only after a loss, for each live connection: the records that end one
(SSL_free, process exit) can find the ring full like any other, and what it still holds would never come out.

Never writes.
"""

from __future__ import annotations

from spliffd.correlation.connection import Connection
from spliffd.counters import HOOK_MODES, Region
from spliffd.kernel import bpf
from spliffd.kernel.flows import Hop, HopLookup, RecordSide
from spliffd.kernel.hellos import Hello, HelloLookup
from spliffd.kernel.maps import CONN_VALUE
from spliffd.kernel.records import KEY_BYTES

_OBJECT_BYTES = 24
"""struct conn_key: all of a connection's key but the generation."""


class Hooked:
    """Whether any interface has a packet hook: the supervisor counts them in memory that all share."""

    def __init__(self, supervisor: Region) -> None:
        self._words = supervisor.words
        self._slots = [supervisor.index(f"interfaces_{hook}_{mode}") for hook, mode in HOOK_MODES]

    def __call__(self) -> bool:
        """Whether there is one now."""
        return any(self._words[slot] for slot in self._slots)


class Tables:
    """The kernel's tables of connections and of processes that speak TLS."""

    def __init__(self, conns_fd: int, speakers_fd: int, flows_fd: int, hellos_fd: int) -> None:
        self._conns = conns_fd
        self._speakers = speakers_fd
        self._hops = HopLookup(flows_fd)
        self._hellos = HelloLookup(hellos_fd)

    def hops(self, cookie: int) -> tuple[Hop, ...]:
        """Where packets of a socket were seen; none where the kernel does not let us look (before 5.19)."""
        try:
            return self._hops(cookie)
        except OSError:
            return ()

    def sides(self) -> tuple[RecordSide, RecordSide]:
        """The TLS records, sent and received, of the socket whose packets were just found."""
        return self._hops.sides()

    def hello(self, cookie: int) -> Hello | None:
        """How TLS began on a socket; None where the kernel does not let us look."""
        try:
            return self._hellos(cookie)
        except OSError:
            return None

    def is_over(self, connection: Connection) -> bool:
        """Whether the object was freed or used anew, or its process has ended.

        A kernel that does not let us look (before 5.19) leaves the question open: then it is not over.
        """
        pid, start_ns = connection.process
        try:
            start = bpf.map_lookup(self._speakers, pid.to_bytes(4, "little"), 8)
            value = bpf.map_lookup(self._conns, connection.key[:_OBJECT_BYTES], CONN_VALUE)
        except OSError:
            return False
        if start is None or int.from_bytes(start, "little") != start_ns:
            return True
        return value is None or value[:KEY_BYTES] != connection.key
