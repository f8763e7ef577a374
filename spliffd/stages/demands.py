"""Tells the kernel whose connections are wanted, and how much those of nobody's interest may cost.

Takes what each worker says of its watchers; writes the union into the kernel's tables (bpf/demand.bpf.c).
When ``wanted`` returns it is in force: connections that were left out are delivered again from the next
call on. A worker that has not spoken yet counts as one without watchers. Never reads what is captured.

Connections keep the answer to "is this one watched?" together with the word it was found for, so every
change of the table is framed by words: names are there before the word that lets them be looked up, and
after names are gone another word makes everybody ask again.
"""

from __future__ import annotations

import struct

from spliffd import ipc
from spliffd.journal import logger
from spliffd.kernel import bpf
from spliffd.kernel.maps import DEMAND_RATE, DEMAND_WORD, Maps

log = logger("demands")

EVERYBODY, PIDS, UIDS, COMMS = 1, 2, 4, 8
"""enum demand_flag"""

FLAG_BITS = 8
"""Of the word: the rest is a number that is never the same again."""

RECORDS_PER_EXCHANGE = 2
WINDOWS_PER_SECOND = 10
"""WINDOW_NS of bpf/demand.bpf.c: short enough that a burst costs one window, long enough to count in."""

_KEY = struct.Struct("=16sI4x")

Names = dict[bytes, int]
"""Keys of the kernel's table, and the flag that stands for their kind."""


class Demands:
    """What the watchers of all workers want together. ``rate`` is in exchanges a second, 0: no limit."""

    def __init__(self, maps: Maps, rate: int) -> None:
        self._maps = maps
        self._by_worker: dict[int, Names | None] = {}
        """None: everybody."""
        self._table: Names = {}
        self._number = 0
        maps.demand[DEMAND_RATE] = max(rate > 0, rate * RECORDS_PER_EXCHANGE // WINDOWS_PER_SECOND)

    def wanted(self, number: int, watchers: int, whom: ipc.Whom | None) -> None:
        """Worker ``number`` has this many watchers, who want to see the connections of ``whom``."""
        known = number in self._by_worker
        names = {} if not watchers else None if whom is None else names_of(whom)
        if known and self._by_worker[number] == names:
            return
        self._by_worker[number] = names
        self._push()

    def _push(self) -> None:
        table: Names = {}
        everybody = False
        for names in self._by_worker.values():
            if names is None:
                everybody = True
            else:
                table.update(names)
        fd = self._maps.fd["wanted"]
        try:
            for key in table.keys() - self._table.keys():
                bpf.map_update(fd, key, b"\x01")
                self._table[key] = table[key]
        except OSError as error:  # more than the table holds, or no memory
            log.warning("everybody's connections are delivered", error=error.strerror)
            everybody = True
        flags = 0
        for flag in table.values():
            flags |= flag
        self._word(flags | (EVERYBODY if everybody else 0))
        gone = self._table.keys() - table.keys()
        if not gone:
            return
        for key in gone:
            bpf.map_delete(fd, key)
            del self._table[key]
        self._word(flags | (EVERYBODY if everybody else 0))

    def _word(self, flags: int) -> None:
        """One store of 64 bits: a program sees the old word or the new one."""
        self._number += 1
        self._maps.demand[DEMAND_WORD] = self._number << FLAG_BITS | flags


def names_of(whom: ipc.Whom) -> Names:
    """The keys of the kernel's table."""
    return {
        **{_KEY.pack(pid.to_bytes(8, "little"), PIDS): PIDS for pid in whom.pids},
        **{_KEY.pack(uid.to_bytes(8, "little"), UIDS): UIDS for uid in whom.uids},
        **{_KEY.pack(comm.encode(), COMMS): COMMS for comm in whom.comms},
    }
