"""The retry queue with a simulated clock: who leaves when, in which order, and after how many looks."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.correlation.retry import ATTEMPTS, DELAYS_NS, NEVER, SLOTS, RetryQueue
from spliffd.protocols.messages import HttpExchange

MS = 1_000_000
START = 1_000 * MS


def connection(number: int = 0) -> Connection:
    return Connection(number.to_bytes(32, "little"), (1, 1), ConnectionFacts(), joined=False)


class Looks:
    """Finds the flows of ``known``; writes down who was asked for."""

    def __init__(self) -> None:
        self.known: set[Connection] = set()
        self.asked: list[Connection] = []

    def __call__(self, wanted: Connection) -> bool:
        self.asked.append(wanted)
        return wanted in self.known


@pytest.fixture
def queue() -> RetryQueue:
    return RetryQueue()


@pytest.fixture
def look() -> Looks:
    return Looks()


def put(queue: RetryQueue, owner: Connection, since: int = START) -> HttpExchange:
    exchange = HttpExchange()
    assert queue.put(owner, exchange, since)
    return exchange


def test_the_last_look_leaves_time_to_deliver_within_50_ms():
    assert len(DELAYS_NS) == ATTEMPTS == 3
    assert list(DELAYS_NS) == sorted(DELAYS_NS)
    assert DELAYS_NS[-1] <= 45 * MS


def test_an_empty_queue_wants_nothing(queue, look):
    assert (len(queue), queue.busy, queue.next_ns) == (0, 0, NEVER)
    assert queue.retry(START, look) == []
    assert queue.flush(START, look) == []
    assert look.asked == []


def test_a_flow_that_comes_late_is_found(queue, look):
    owner = connection()
    exchange = put(queue, owner)
    assert (queue.next_ns, owner.waiting, queue.busy) == (START + DELAYS_NS[0], 1, 1)

    assert queue.retry(START + DELAYS_NS[0] - 1, look) == []
    assert look.asked == []  # not yet
    assert queue.retry(START + DELAYS_NS[0], look) == []
    assert look.asked == [owner]
    assert queue.next_ns == START + DELAYS_NS[1]

    look.known.add(owner)
    (left,) = queue.retry(START + DELAYS_NS[1] + 7, look)
    assert left == (owner, exchange, 2, DELAYS_NS[1] + 7, True)
    assert (len(queue), owner.waiting, queue.next_ns) == (0, 0, NEVER)


def test_a_flow_that_never_comes_is_waited_for_three_times(queue, look):
    owner = connection()
    exchange = put(queue, owner)
    for delay in DELAYS_NS[:-1]:
        assert queue.retry(START + delay, look) == []
    (left,) = queue.retry(START + DELAYS_NS[-1], look)
    assert left == (owner, exchange, 3, DELAYS_NS[-1], False)
    assert len(look.asked) == 3


def test_when_one_is_found_all_of_its_connection_leave_in_order(queue, look):
    mine, other = connection(1), connection(2)
    exchanges = []
    for n in range(5):
        exchanges.append(put(queue, mine, START + n * MS // 10))
        put(queue, other, START + n * MS // 10)
    look.known.add(mine)
    left = queue.retry(START + DELAYS_NS[0], look)
    assert [entry.exchange for entry in left] == exchanges
    assert [entry.waited_ns for entry in left] == [DELAYS_NS[0] - n * MS // 10 for n in range(5)]
    assert all(entry.found and entry.attempts == 1 for entry in left)
    assert (mine.waiting, other.waiting) == (0, 5)


def test_one_look_serves_all_of_a_connection_that_are_due(queue, look):
    owner = connection()
    for _ in range(7):
        put(queue, owner)
    queue.retry(START + DELAYS_NS[0], look)
    assert look.asked == [owner]


def test_when_the_head_fails_the_others_keep_their_own_time(queue, look):
    owner = connection()
    first, second = put(queue, owner, START), put(queue, owner, START + 9 * MS)
    last = DELAYS_NS[-1]
    for at in range(0, last, 2 * MS):
        assert queue.retry(START + at, look) == []
    assert [entry.exchange for entry in queue.retry(START + last, look)] == [first]
    look.known.add(owner)  # late for the first, in time for the second
    (left,) = queue.retry(START + last + 9 * MS, look)
    assert (left.exchange, left.found, left.waited_ns) == (second, True, last)


def test_one_that_fails_takes_those_before_it_along(queue, look):
    """The times of two threads' calls may cross; the order in which they were finished stays."""
    owner = connection()
    first, second = put(queue, owner, START + 5 * MS), put(queue, owner, START)
    for delay in DELAYS_NS[:-1]:
        assert queue.retry(START + delay, look) == []
    left = queue.retry(START + DELAYS_NS[-1], look)
    assert [entry.exchange for entry in left] == [first, second]
    assert not any(entry.found for entry in left)


def test_a_full_queue_takes_no_more(queue, look):
    owners = [connection(n) for n in range(SLOTS)]
    for owner in owners:
        put(queue, owner)
    late = connection(99)
    assert not queue.put(late, HttpExchange(), START)
    assert (len(queue), late.waiting) == (SLOTS, 0)
    look.known.add(owners[40])
    assert len(queue.retry(START + DELAYS_NS[0], look)) == 1
    assert queue.put(late, HttpExchange(), START)  # into the slot that became free
    assert not queue.put(late, HttpExchange(), START)


def test_a_queue_that_was_not_asked_for_long_makes_up_for_its_attempts(queue, look):
    owner = connection()
    put(queue, owner)
    late = START + 300 * MS
    assert queue.retry(late, look) == []
    assert queue.next_ns < late  # the next batch comes at once
    assert queue.retry(late, look) == []
    (left,) = queue.retry(late, look)
    assert (left.attempts, left.found, left.waited_ns) == (3, False, 300 * MS)


def test_release_and_flush_empty_it_in_order(queue, look):
    one, two = connection(1), connection(2)
    firsts = [put(queue, one), put(queue, one)]
    seconds = [put(queue, two), put(queue, two)]
    assert [e.exchange for e in queue.release(one, START + 1, found=False)] == firsts
    assert queue.release(one, START + 1, found=True) == []
    look.known.add(two)
    left = queue.flush(START + 2, look)
    assert [entry.exchange for entry in left] == seconds
    assert [(entry.found, entry.attempts) for entry in left] == [(True, 1)] * 2
    assert (len(queue), queue.next_ns, two.waiting) == (0, NEVER, 0)


class Simulation(RuleBasedStateMachine):
    """Any connections, any delays, a loop that asks at any time: the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.queue = RetryQueue()
        self.owners = [connection(n) for n in range(5)]
        self.looks = Looks()
        self.came: dict[Connection, list[HttpExchange]] = {owner: [] for owner in self.owners}
        self.went: dict[Connection, list[HttpExchange]] = {owner: [] for owner in self.owners}
        self.since: dict[int, int] = {}
        self.refused = 0

    def left(self, entries) -> None:
        for entry in entries:
            waited = self.now - self.since[id(entry.exchange)]
            assert entry.waited_ns == waited
            assert entry.attempts <= ATTEMPTS
            assert entry.found == (entry.connection in self.looks.known)
            self.went[entry.connection].append(entry.exchange)

    @rule(owner=st.integers(0, 4), ago=st.integers(0, 12 * MS), many=st.integers(1, 20))
    def finish(self, owner: int, ago: int, many: int) -> None:
        for _ in range(many):
            exchange = HttpExchange()
            self.since[id(exchange)] = self.now - ago
            full = len(self.queue) == SLOTS
            assert self.queue.put(self.owners[owner], exchange, self.now - ago) is not full
            if full:
                self.refused += 1
            else:
                self.came[self.owners[owner]].append(exchange)

    @rule(owner=st.integers(0, 4))
    def flow_appears(self, owner: int) -> None:
        self.looks.known.add(self.owners[owner])

    @rule(owner=st.integers(0, 4))
    def flow_vanishes(self, owner: int) -> None:
        self.looks.known.discard(self.owners[owner])

    @rule(wait=st.integers(0, 15 * MS))
    def poll(self, wait: int) -> None:
        """The loop: asks when it is time, at the latest."""
        until = self.now + wait
        while self.queue.next_ns <= until:
            self.now = max(self.now, self.queue.next_ns)
            self.left(self.queue.retry(self.now, self.looks))
        self.now = until
        self.left(self.queue.retry(self.now, self.looks))

    @rule(owner=st.integers(0, 4))
    def found_by_another(self, owner: int) -> None:
        known = self.owners[owner] in self.looks.known
        self.left(self.queue.release(self.owners[owner], self.now, found=known))

    @precondition(lambda self: self.queue.busy)
    @rule()
    def flush(self) -> None:
        self.left(self.queue.flush(self.now, self.looks))
        assert self.queue.busy == 0

    @invariant()
    def order_and_bounds(self) -> None:
        waiting = [slot for slot in self.queue._slots if slot is not None]
        mask = sum(1 << n for n, slot in enumerate(self.queue._slots) if slot is not None)
        assert mask == self.queue.busy
        assert len(self.queue) == len(waiting) <= SLOTS
        assert self.queue.next_ns == min((slot.due_ns for slot in waiting), default=NEVER)
        for owner in self.owners:
            went, came = self.went[owner], self.came[owner]
            assert went == came[: len(went)]  # in order, none twice
            assert owner.waiting == len(came) - len(went)  # none lost
        for slot in waiting:
            assert slot.attempts < ATTEMPTS
            assert self.now - slot.since_ns <= DELAYS_NS[-1]

    def teardown(self) -> None:
        self.now += 50 * MS
        for _ in range(ATTEMPTS):
            self.left(self.queue.retry(self.now, self.looks))
        assert self.went == self.came
        assert self.queue.busy == 0


Simulation.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSimulation = Simulation.TestCase
