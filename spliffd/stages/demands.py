"""Tells the kernel whose connections are wanted, and how much those of nobody's interest may cost.

Takes what each worker says of its watchers; writes the union into the kernel's tables (bpf/demand.bpf.c).
When ``wanted`` returns it is in force: connections that were left out are delivered again from the next
call on. A worker that has not spoken yet counts as one without watchers. Never reads what is captured.

Connections keep the answer to "is this one watched?" together with the word it was found for, so every
change of the table is framed by words: names are there before the word that lets them be looked up, and
after names are gone another word makes everybody ask again. Which cgroups the watchers of units and
containers mean is in a table of its own (``stages.judgements``); one that is not in it yet is wanted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from spliffd import ipc
from spliffd.journal import logger
from spliffd.kernel import bpf
from spliffd.kernel.maps import DEMAND_RATE, DEMAND_WORD, Maps
from spliffd.stages.judgements import Judgements

log = logger("demands")

EVERYBODY, PIDS, UIDS, COMMS, CGROUPS = 1, 2, 4, 8, 16
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
        self.judgements = Judgements(maps.fd["judged"])
        self._by_worker: dict[int, Names | None] = {}
        """None: everybody."""
        self._cgroups: dict[int, ipc.Whom] = {}
        """By worker: the units and containers that its watchers want."""
        self._table: Names = {}
        self._asked: tuple[list[str], list[str]] = ([], [])
        self._number = 0
        self._unjudged = 0
        maps.demand[DEMAND_RATE] = max(rate > 0, rate * RECORDS_PER_EXCHANGE // WINDOWS_PER_SECOND)

    def wanted(self, number: int, watchers: int, whom: ipc.Whom | None) -> None:
        """Worker ``number`` has this many watchers, who want to see the connections of ``whom``."""
        known = number in self._by_worker
        names = {} if not watchers else None if whom is None else names_of(whom)
        cgroups = ipc.Whom()
        if watchers and whom is not None:
            cgroups = ipc.Whom(units=whom.units, containers=whom.containers)
        if known and self._by_worker[number] == names and self._cgroups[number] == cgroups:
            return
        self._by_worker[number], self._cgroups[number] = names, cgroups
        self._push()

    def look(self) -> Iterator[None]:
        """Judges the cgroups that the kernel has met and that nobody judged, if there are any, in steps."""
        unjudged = self._maps.counters.get("unjudged_calls")
        if unjudged != self._unjudged:
            self._unjudged = unjudged
            self.judgements.again()
        yield from self.judgements.steps()

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
        flags = CGROUPS if self._judge() else 0
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

    def _judge(self) -> bool:
        """Whether some are wanted for their cgroups; which these are is in the kernel's table then."""
        units = sorted({unit for one in self._cgroups.values() for unit in one.units})
        containers = sorted({prefix for one in self._cgroups.values() for prefix in one.containers})
        if (units, containers) != self._asked:
            self.judgements.watch(units, containers)
            self._asked = units, containers
        return bool(units or containers)

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
