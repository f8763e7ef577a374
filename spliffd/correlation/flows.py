"""The join: a finished exchange learns through which interface and packet hook its connection went.

Takes finished exchanges, and a way to look a socket's flow up (struct flow of bpf/flows.h); fills in wire
hook, interface, path and packet counts of the connection's facts, and says which exchanges may leave. One
whose flow has seen no packet yet waits in the retry queue. A connection whose packets nobody can see (no
interface has a hook) keeps nobody waiting, and after one exchange has waited in vain the later ones of its
connection do not: one look each, that is all. A connection whose socket nobody named gets one first, if one
can be told by timing.

Does no I/O itself and reads no clock. Never loses an exchange, never changes the order within a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from spliffd.correlation import accounted, tls_facts
from spliffd.correlation.claims import GIVEN, PERHAPS, FlowsOf
from spliffd.correlation.connection import Connection
from spliffd.correlation.retry import NEVER, Left, RetryQueue
from spliffd.counters import CORRELATION_BUCKETS, Region
from spliffd.kernel.flows import HOOKS, Hop, RecordSide
from spliffd.kernel.hellos import Hello
from spliffd.protocols.messages import COMPLETE, HttpExchange

FRESH_NS: Final = 5_000_000
"""How old packet counts may be: a keep-alive connection under load pays one look, not one an exchange."""

BUSY_REFRESH: Final = 7
"""While the worker is at its limit only every so many connections whose counts are old get new ones; the
others go with what they have for ``BUSY_NS``. A prime, so that connections that take turns all get theirs.
Together this costs 0.5 us an exchange in place of 2.7."""

BUSY_NS: Final = 20_000_000

LAG_NS: Final = 10_000_000
"""How much of a worker's own delay is taken off the time that an exchange waits: 20 ms are left of 30. A
worker rests 2 ms; one that is further behind cannot keep to 50 ms by not waiting."""

_BUCKETS_NS: Final = tuple(int(bound * 1e9) for bound in CORRELATION_BUCKETS)

Finished = tuple[Connection, HttpExchange, int, int]
"""Connection, exchange, attempts, and ns that it waited: (.., 0, 0) for one that did not."""

Look = Callable[[int], tuple[Hop, ...]]
"""Where packets of a socket, by its cookie, were seen so far."""


def no_hello(_cookie: int) -> Hello | None:
    """Nobody keeps how connections begin."""
    return None


class Kernel(NamedTuple):
    """What is asked of the kernel's tables, and how."""

    look: Look
    flows_of: FlowsOf
    hooked: Callable[[], bool]
    """Whether any interface has a packet hook now: without one nobody's packets are waited for."""
    hello: Callable[[int], Hello | None] = no_hello
    """How TLS began on a socket, by its cookie."""
    glance: Look | None = None
    """``look`` for what is no finished exchange, where it is to be told apart: a fault of tests is."""
    sides: Callable[[], tuple[RecordSide, RecordSide]] | None = None
    """The TLS records, sent and received, of the socket that was looked up last."""


Claim = Callable[[Connection], int]
"""Finds a socket for a connection that none was named for: NOTHING, PERHAPS or GIVEN of ``claims``."""

Learn = Callable[[Connection, int], None]
"""Takes what the packets of a connection's beginning said into its facts (ktime)."""


def learn_nothing(_connection: Connection, _now: int) -> None:
    """Nobody reads how connections begin."""


HOOKED_AGAIN_NS: Final = 1_000_000_000
"""Without hooks it is seen this often whether there are some now: they are to serve within a second."""

CLAIM_AGAIN_NS: Final = 100_000_000
"""A connection that could not be given a socket is tried again so often: its flow may fit alone by then."""


class Join:
    """What stands between the parsers and the delivery. ``queue`` is for looking only."""

    def __init__(self, counters: Region, kernel: Kernel, claim: Claim) -> None:
        self.queue = RetryQueue()
        self._look_up = kernel.look
        self._glance_up = kernel.glance or kernel.look
        self._hooked = kernel.hooked
        self._sides = kernel.sides
        self._claim = claim
        self.learn: Learn = learn_nothing
        """Called when a connection's packets are found for the first time."""
        self._names: dict[int, str] = {}
        self._now = 0
        self._busy = False
        self._turn = 0
        self._words = counters.words
        index = counters.index
        self._n_successes, self._n_failures = index("deferred_successes"), index("deferred_failures")
        self._n_pending, self._n_full = index("deferred_pending"), index("deferred_queue_full")
        self._n_count, self._n_sum = index("correlation_count"), index("correlation_sum_ns")
        self._n_bucket = index("correlation_bucket_0")
        self._words[self._n_pending] = 0  # what a worker before this one held is gone

    def interfaces(self, names: dict[int, str]) -> None:
        """The interfaces by index."""
        self._names = names

    def admit(self, finished: list[Finished], now: int, *, busy: bool) -> list[Finished]:
        """Which of these may leave now, with those before them that waited; the others wait.

        ``busy`` says that the worker has more to do than it can.
        """
        for entry in finished:
            connection = entry[0]
            if connection.fresh_until_ns <= now:
                return self._admit_each(finished, now, busy=busy)
            if connection.facts.proved:
                _doubt(connection)
        self._count_immediate(len(finished))
        return finished

    def glance(self, connection: Connection, now: int) -> None:
        """A look for an exchange that is not finished, and waits for nothing."""
        self._now = now
        if connection.facts.socket_cookie and connection.fresh_until_ns <= now and not connection.waiting:
            self._see(connection, self._glance_up)

    def look(self, connection: Connection, now: int) -> None:
        """Looks a connection's flow up for something other than an exchange: those have their own looks."""
        fresh = connection.fresh_until_ns
        if fresh > now:
            return
        self._now = now
        self._see(connection, self._glance_up)
        connection.fresh_until_ns = fresh

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
        self._busy = busy
        ready: list[Finished] = []
        immediate = 0
        for entry in finished:
            connection = entry[0]
            if connection.facts.proved:
                _doubt(connection)
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
            self._turn += 1
            if self._busy and self._turn % BUSY_REFRESH:
                connection.fresh_until_ns = self._now + BUSY_NS
            elif not self._look(connection):  # thrown out of the table: what was known stays
                connection.fresh_until_ns = self._now + FRESH_NS
            return True
        if connection.waiting:
            return False
        if not facts.socket_cookie:
            if connection.method:  # its socket is known, but has no cookie
                connection.fresh_until_ns = NEVER
                return True
            claimed = self._claim(connection)
            if claimed != GIVEN:
                if claimed == PERHAPS and not connection.given_up:
                    return False
                connection.fresh_until_ns = self._now + CLAIM_AGAIN_NS
                return True
        if self._look(connection):
            return True
        if connection.given_up:
            self._words[self._n_failures] += 1
        return connection.given_up

    def _look(self, connection: Connection) -> bool:
        """Looks up a connection's flow; True when packets of it were seen, or cannot be."""
        return self._see(connection, self._look_up)

    def _see(self, connection: Connection, look_up: Look) -> bool:
        facts = connection.facts
        if not facts.socket_cookie and self._claim(connection) != GIVEN:
            return False
        hops = look_up(facts.socket_cookie)
        if not hops:
            if self._hooked():
                return False
            connection.fresh_until_ns = self._now + HOOKED_AGAIN_NS
            return True
        connection.fresh_until_ns = self._now + FRESH_NS
        names = self._names
        path = [
            (
                names.get(hop.ifindex) or f"if{hop.ifindex}",
                HOOKS[hop.hook],
                hop.packets_sent + hop.packets_received,
            )
            for hop in hops
        ]
        first = hops[0]
        facts.interface, facts.wire, _ = path[0]
        facts.path = path
        facts.packets_sent, facts.packets_received = first.packets_sent, first.packets_received
        facts.bytes_sent, facts.bytes_received = first.bytes_sent, first.bytes_received
        facts.traffic = None
        if facts.hello_of != facts.socket_cookie:
            self.learn(connection, self._now)
        if self._sides is not None and not connection.uncounted:
            self._account(connection, self._sides())
        return True

    def _account(self, connection: Connection, sides: tuple[RecordSide, RecordSide]) -> None:
        """Compares what was captured with the records on the wire.

        Where the first calls may have been missed, they could pass for the handshake's end in TLS 1.3.
        """
        facts, expect = connection.facts, connection.expect
        facts.proved = (
            (facts.from_start or facts.tls_version == accounted.TLS12)
            and accounted.agrees(sides[0], expect[0], facts)
            and accounted.agrees(sides[1], expect[1], facts)
        )
        if facts.proved:
            connection.proved_at = expect.copy()

    def mark_unseen(self, connection: Connection) -> None:
        """The connection is over: tells its last exchange what was on the wire and no call has moved.

        Only where one exchange is under way: of several nobody knows which one's it is.
        """
        cut, facts = connection.under_way(), connection.facts
        if len(cut) != 1 or self._sides is None or not facts.from_start or connection.uncounted:
            return
        if facts.socket_cookie and self._look_up(facts.socket_cookie):
            sides, expect = self._sides(), connection.expect
            size = accounted.unseen(sides[0], expect[0], facts) + accounted.unseen(sides[1], expect[1], facts)
            cut[0].missing_bytes = max(cut[0].missing_bytes, size)

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


def _doubt(connection: Connection) -> None:
    """What has moved since the wire was compared is not proved."""
    if connection.proved_at != connection.expect:
        connection.facts.proved = False


def look_anew(connection: Connection) -> None:
    """The interfaces have changed: what was not found may be there now."""
    connection.fresh_until_ns = 0
    connection.given_up = False


def forget(connection: Connection) -> None:
    """It has another socket: nothing that was known of its packets is true of that one."""
    facts = connection.facts
    facts.wire = facts.interface = ""
    facts.proved = False
    facts.path = []
    facts.packets_sent = facts.packets_received = facts.bytes_sent = facts.bytes_received = 0
    facts.traffic = None
    if facts.hello_of:
        tls_facts.forget(facts)
    look_anew(connection)


def _completed(exchange: HttpExchange, now: int) -> int:
    """When an exchange was complete; one that never became so is as complete as it gets now.

    A worker that is behind sees it late. Then it counts as complete ``LAG_NS`` ago: what is late on the same
    busy host gets its time.
    """
    response = exchange.response
    if exchange.state is COMPLETE and response is not None:
        return max(min(response.end_ns, now), now - LAG_NS)
    return now
