"""The join: a finished exchange learns through which interface and packet hook its connection went.

Takes finished exchanges, and a way to look a socket's flow up (struct flow of bpf/maps.h); fills in wire
hook, interface, path and packet counts of the connection's facts, and says which exchanges may leave. One
whose flow has seen no packet yet waits in the retry queue. A connection whose packets nobody can see (no
interface has a hook, no socket is known) keeps nobody waiting, and after one exchange has waited in vain
the later ones of its connection do not: one look each, that is all.

Does no I/O itself and reads no clock. Never loses an exchange, never changes the order within a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.correlation.retry import NEVER, Left, RetryQueue
from spliffd.counters import CORRELATION_BUCKETS, Region
from spliffd.kernel.flows import HOOKS, Flow
from spliffd.protocols.messages import COMPLETE, HttpExchange

FRESH_NS: Final = 5_000_000
"""How old packet counts may be: a keep-alive connection under load pays one look, not one an exchange."""

BUSY_REFRESHES: Final = 4
"""Looks for newer packet counts in a batch while the worker is at its limit: 0.5 us an exchange. The
others go with counts that are as old as their connection's last turn."""

_BUCKETS_NS: Final = tuple(int(bound * 1e9) for bound in CORRELATION_BUCKETS)

Finished = tuple[Connection, HttpExchange, int, int]
"""Connection, exchange, attempts, and ns that it waited: (.., 0, 0) for one that did not."""

Look = Callable[[int], Flow | None]
"""A socket cookie's flow, as the kernel has it now."""


class Join:
    """What stands between the parsers and the delivery. ``queue`` is for looking only."""

    def __init__(self, counters: Region, look: Look) -> None:
        self.queue = RetryQueue()
        self._look_up = look
        self._names: dict[int, str] = {}
        self._now = 0
        self._refreshes = 0
        self._words = counters.words
        index = counters.index
        self._n_successes, self._n_failures = index("deferred_successes"), index("deferred_failures")
        self._n_pending, self._n_full = index("deferred_pending"), index("deferred_queue_full")
        self._n_count, self._n_sum = index("correlation_count"), index("correlation_sum_ns")
        self._n_bucket = index("correlation_bucket_0")
        self._words[self._n_pending] = 0  # what a worker before this one held is gone

    def interfaces(self, names: dict[int, str]) -> None:
        """The interfaces by index; none at all means that no packet is seen."""
        self._names = names

    def admit(self, finished: list[Finished], now: int, *, busy: bool) -> list[Finished]:
        """Which of these may leave now, with those before them that waited; the others wait.

        ``busy`` says that the worker has more to do than it can.
        """
        for entry in finished:
            if entry[0].fresh_until_ns <= now:
                return self._admit_each(finished, now, busy=busy)
        self._count_immediate(len(finished))
        return finished

    def retry(self, now: int) -> list[Finished]:
        """What the queue lets go: found, or waited for long enough."""
        self._now = now
        left = self.queue.retry(now, self._look)
        for entry in left:
            if not entry.found:
                entry.connection.given_up = True
        return self._gone(left)

    def flush(self, now: int) -> list[Finished]:
        """Everything that waits, after a last look."""
        self._now = now
        return self._gone(self.queue.flush(now, self._look))

    def _admit_each(self, finished: list[Finished], now: int, *, busy: bool) -> list[Finished]:
        self._now = now
        self._refreshes = BUSY_REFRESHES if busy else len(finished)
        ready: list[Finished] = []
        immediate = 0
        for entry in finished:
            connection = entry[0]
            if connection.fresh_until_ns > now or self._may_leave(connection):
                ready.append(entry)
                immediate += 1
                continue
            exchange = entry[1]
            if self.queue.put(connection, exchange, _completed(exchange, now)):
                connection.fresh_until_ns = 0
                continue
            self._words[self._n_full] += 1
            self._words[self._n_failures] += 1
            if connection.waiting:  # it must not overtake those
                ready += self._gone(self.queue.release(connection, now, found=False))
            ready.append(entry)
            immediate += 1
        self._count_immediate(immediate)
        self._words[self._n_pending] = len(self.queue)
        return ready

    def _may_leave(self, connection: Connection) -> bool:
        facts = connection.facts
        if facts.wire:
            if self._refreshes > 0:
                self._refreshes -= 1
                if not self._look(connection):  # thrown out of the table: what was known stays
                    connection.fresh_until_ns = self._now + FRESH_NS
            return True
        if connection.waiting:
            return False
        if not facts.socket_cookie or not self._names:
            connection.fresh_until_ns = NEVER
            return True
        if self._look(connection):
            return True
        if connection.given_up:
            self._words[self._n_failures] += 1
            return True
        return False

    def _look(self, connection: Connection) -> bool:
        """Looks up a connection's flow; True when packets of it were seen."""
        facts = connection.facts
        flow = self._look_up(facts.socket_cookie)
        if flow is None or not flow.hops:
            return False
        self._take(facts, flow)
        connection.fresh_until_ns = self._now + FRESH_NS
        return True

    def _take(self, facts: ConnectionFacts, flow: Flow) -> None:
        hops = flow.hops
        names = self._names
        _, hook, sent, received, bytes_sent, bytes_received, _ = hops[0]
        path = [(names.get(hop[0]) or f"if{hop[0]}", HOOKS[hop[1]], hop[2] + hop[3]) for hop in hops]
        facts.wire = HOOKS[hook]
        facts.interface = path[0][0]
        facts.path = path
        facts.packets_sent, facts.packets_received = sent, received
        facts.bytes_sent, facts.bytes_received = bytes_sent, bytes_received
        facts.traffic = None

    def _count_immediate(self, number: int) -> None:
        self._words[self._n_bucket] += number
        self._words[self._n_count] += number

    def _gone(self, left: list[Left]) -> list[Finished]:
        """Counts what has left the queue."""
        if not left:
            return []
        words = self._words
        gone: list[Finished] = []
        for connection, exchange, attempts, waited_ns, found in left:
            words[self._n_successes if found else self._n_failures] += 1
            bucket = sum(waited_ns > bound for bound in _BUCKETS_NS)
            words[self._n_bucket + bucket] += 1
            words[self._n_count] += 1
            words[self._n_sum] += waited_ns
            gone.append((connection, exchange, attempts, waited_ns))
        words[self._n_pending] = len(self.queue)
        return gone


def look_anew(connection: Connection) -> None:
    """The interfaces have changed: what was not found may be there now."""
    connection.fresh_until_ns = 0
    connection.given_up = False


def forget(connection: Connection) -> None:
    """It has another socket: nothing that was known of its packets is true of that one."""
    facts = connection.facts
    facts.wire = facts.interface = ""
    facts.path = []
    facts.packets_sent = facts.packets_received = facts.bytes_sent = facts.bytes_received = 0
    facts.traffic = None
    look_anew(connection)


def _completed(exchange: HttpExchange, now: int) -> int:
    """When an exchange was complete; one that never became so is as complete as it gets now."""
    response = exchange.response
    if exchange.state is COMPLETE and response is not None:
        return min(response.end_ns, now)
    return now
