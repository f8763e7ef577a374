"""The retry queue: finished exchanges whose connection's packets are not known yet.

Takes finished exchanges and asks again, at most ``ATTEMPTS`` times, the last time ``DELAYS_NS[-1]`` after
the exchange was complete; returns them as ``Left``, found or not. 64 slots behind a busy bitmask: what
waits is the exchange, never bytes, and nobody waits for a queue that is full. The exchanges of one
connection leave in the order in which they came: when its flow is found, all of them; when one's attempts
are used up, those before it as well.

Does no I/O, reads no clock: the caller says what time it is (ktime ns) and how to look. Never loses an
exchange and never returns one twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from spliffd.correlation.connection import Connection
from spliffd.protocols.messages import HttpExchange

SLOTS: Final = 64
"""As many as one integer has bits, and one budget of the polling loop: a burst of first requests fits."""

DELAYS_NS: Final = (2_000_000, 10_000_000, 30_000_000)
"""When after its completion an exchange is looked up again. Another processor that is late is so by less than
the pause of the polling loop; 30 ms leaves 20 of the 50 for a busy host and the way to the client."""

ATTEMPTS: Final = len(DELAYS_NS)

NEVER: Final = (1 << 63) - 1
"""Later than any time."""

ALL: Final = (1 << SLOTS) - 1


class Left(NamedTuple):
    """An exchange that waits no longer."""

    connection: Connection
    exchange: HttpExchange
    attempts: int
    waited_ns: int
    """Since it was complete."""
    found: bool


class Slot:
    """An exchange that waits. ``number`` says which came first."""

    __slots__ = ("attempts", "connection", "due_ns", "exchange", "number", "since_ns")

    def __init__(self, connection: Connection, exchange: HttpExchange, since_ns: int, number: int) -> None:
        self.connection = connection
        self.exchange = exchange
        self.since_ns = since_ns
        self.number = number
        self.attempts = 0
        self.due_ns = since_ns + DELAYS_NS[0]


class RetryQueue:
    """``busy`` has a bit for each slot in use; ``next_ns`` is when the next attempt is due, or NEVER.

    ``Connection.waiting`` counts the slots that a connection holds.
    """

    def __init__(self) -> None:
        self.busy = 0
        self.next_ns = NEVER
        self._slots: list[Slot | None] = [None] * SLOTS
        self._number = 0

    def __len__(self) -> int:
        return self.busy.bit_count()

    def put(self, connection: Connection, exchange: HttpExchange, since_ns: int) -> bool:
        """Lets an exchange wait that was complete at ``since_ns``; False when all slots are busy."""
        free = ~self.busy & ALL
        if not free:
            return False
        lowest = free & -free
        slot = Slot(connection, exchange, since_ns, self._number)
        self._number += 1
        self._slots[lowest.bit_length() - 1] = slot
        self.busy |= lowest
        self.next_ns = min(self.next_ns, slot.due_ns)
        connection.waiting += 1
        return True

    def retry(self, now: int, look: Callable[[Connection], bool]) -> list[Left]:
        """A batch: looks for every connection that has an attempt due, once each.

        A worker that was kept from running makes up for its attempts one batch after the other.
        """
        left: list[Left] = []
        if now < self.next_ns:
            return left
        found: dict[Connection, bool] = {}
        for slot in self._waiting(None):
            if slot.due_ns > now:
                continue
            connection = slot.connection
            known = found.get(connection)
            if known is None:
                known = found[connection] = look(connection)
            if known:
                continue
            slot.attempts += 1
            if slot.attempts >= ATTEMPTS:
                left += self._leave(connection, slot.number, now, found=False)
            else:
                slot.due_ns = slot.since_ns + DELAYS_NS[slot.attempts]
        for connection, known in found.items():
            if known:
                left += self._leave(connection, NEVER, now, found=True)
        self._schedule()
        return left

    def release(self, connection: Connection, now: int, *, found: bool) -> list[Left]:
        """Lets all exchanges of a connection go: its flow was found meanwhile, or they must not wait."""
        left = self._leave(connection, NEVER, now, found=found)
        self._schedule()
        return left

    def flush(self, now: int, look: Callable[[Connection], bool]) -> list[Left]:
        """Empties the queue, as at the end of the worker: a last look for each connection."""
        left: list[Left] = []
        for slot in self._waiting(None):
            connection = slot.connection
            if connection.waiting:
                left += self._leave(connection, NEVER, now, found=look(connection))
        self._schedule()
        return left

    def _waiting(self, connection: Connection | None) -> list[Slot]:
        """What waits (of one connection, or all), the oldest first."""
        slots = [
            slot
            for slot in self._slots
            if slot is not None and (connection is None or slot.connection is connection)
        ]
        slots.sort(key=_number)
        return slots

    def _leave(self, connection: Connection, last: int, now: int, *, found: bool) -> list[Left]:
        """Frees the slots of a connection up to number ``last``; a look that finds is an attempt of each."""
        left: list[Left] = []
        mask = 0
        leaving: list[Slot] = []
        for index, slot in enumerate(self._slots):
            if slot is not None and slot.connection is connection and slot.number <= last:
                leaving.append(slot)
                self._slots[index] = None
                mask |= 1 << index
        leaving.sort(key=_number)
        for slot in leaving:
            attempts = slot.attempts + found
            left.append(Left(connection, slot.exchange, attempts, max(0, now - slot.since_ns), found))
        self.busy &= ~mask
        connection.waiting -= len(leaving)
        return left

    def _schedule(self) -> None:
        self.next_ns = min((slot.due_ns for slot in self._slots if slot is not None), default=NEVER)


def _number(slot: Slot) -> int:
    return slot.number
