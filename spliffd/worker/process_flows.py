"""The flows of a process, for connections whose socket nobody named: read from the kernel's table by owner.

Takes a read-only fd of ``flows``; answers ``Claims``. The table is keyed by cookie, so all of it is read at
once, as bytes, and never more often than keeps this below an eighth of the worker's time; only while
there are such connections. Who accepted a connection the table does not know: the supervisor is asked to
enter the owners (``ask``), and what it has answered is waited for.

Never writes.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from spliffd.kernel import bpf
from spliffd.kernel.flows import FLOW_SIZE, KEY_SIZE, SHARED, Flow, unpack_flow
from spliffd.kernel.records import ROLES

BATCH: Final = 1024
"""Entries of one system call."""

LEAST_PAUSE_NS: Final = 2_000_000
"""Between two readings: as long as the polling loop rests."""

PAUSE_FACTOR: Final = 8
"""And this many times as long as a reading takes (1 ms for 1,000 connections, 40 for a full table)."""

ASK_AGAIN_NS: Final = 1_000_000_000
"""A question that a busy supervisor did not take is put again."""

_OWNER_AT: Final = 16
_OWNER = struct.Struct("=Q45xBxBI")
"""closed_ns, role, flags, tgid."""


class ProcessFlows:
    """``ask`` asks the supervisor to enter owners, which ``owners_entered`` ends.

    ``clock`` gives ktime, ``cpu`` this thread's CPU time, both in ns: a busy host makes no reading dearer.
    """

    def __init__(
        self,
        fd: int,
        clock: Callable[[], int],
        ask: Callable[[], None],
        cpu: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._fd = fd
        self._clock = clock
        self._cpu = cpu
        self._ask = ask
        self._by_owner: dict[int, list[tuple[bytes, bytes]]] = {}
        self._unknown = self._unknown_opened = 0
        """Live flows whose owner is not entered, and those of them that were not accepted."""
        self._read_ns = -1
        self._next_ns = 0
        self._asked_ns = -ASK_AGAIN_NS
        self._owners_ns = -1

    def owners_entered(self) -> None:
        """The supervisor's answer: all owners that can be known are entered, as of when it was asked."""
        self._owners_ns = self._asked_ns
        self._asked_ns = -ASK_AGAIN_NS
        self._read_ns = -1

    def __call__(self, pid: int, not_before_ns: int, role: str) -> Sequence[tuple[int, Flow]] | None:
        """Flows of ``pid`` as they were at ``not_before_ns`` or later; None where that is to come.

        ``role`` is that of the TLS connection: a client's flow was opened by somebody, who is known from the
        start, so it need not wait for the owners of accepted ones, of which a busy server always has new.
        """
        if self._read_ns < not_before_ns and not self._read():
            return None
        unknown = self._unknown_opened if role == "client" else self._unknown
        if unknown and self._owners_ns < not_before_ns:
            now = self._clock()
            if now - self._asked_ns > ASK_AGAIN_NS:
                self._asked_ns = now
                self._ask()
            return None
        return [
            (int.from_bytes(key, "little"), unpack_flow(value)) for key, value in self._by_owner.get(pid, ())
        ]

    def _read(self) -> bool:
        began, spent = self._clock(), self._cpu()
        if began < self._next_ns:
            return False
        found: dict[int, list[tuple[bytes, bytes]]] = {}
        unknown = opened = 0
        after = b""
        try:
            while True:
                entries, after = bpf.map_lookup_batch(self._fd, after, KEY_SIZE, FLOW_SIZE, BATCH)
                for entry in entries:
                    closed, role, flags, owner = _OWNER.unpack_from(entry[1], _OWNER_AT)
                    if owner:
                        found.setdefault(owner, []).append(entry)
                    elif not closed and not flags & SHARED:
                        unknown += 1
                        opened += ROLES[role : role + 1] != ("server",)
                if not after:
                    break
        except OSError:
            found = {}  # refused (before 5.19): no process has any
        self._by_owner, self._unknown, self._unknown_opened = found, unknown, opened
        self._read_ns = began
        self._next_ns = began + max(LEAST_PAUSE_NS, PAUSE_FACTOR * (self._cpu() - spent))
        return True
