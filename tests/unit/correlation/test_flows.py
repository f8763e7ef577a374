"""The join: what an exchange learns of its packets, when it waits for it, and when it does not."""

from __future__ import annotations

import pytest
from wire_records import SERVER, Stage, Tls, flow, get, ok

from spliffd.correlation.flows import BUSY_NS, BUSY_REFRESH, FRESH_NS, HOOKED_AGAIN_NS, LAG_NS
from spliffd.correlation.retry import DELAYS_NS, NEVER, SLOTS
from spliffd.kernel import records

MS = 1_000_000
COOKIE = 5
XDP, TC = 1, 2
NAMES = {1: "lo", 2: "eth0", 7: "wg0"}


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.engine.interfaces(NAMES)
    stage.hooked = True
    stage.now = 1_000 * MS
    return stage


def exchange(stage: Stage, tls: Tls, path: str = "/", *, busy: bool = False) -> None:
    """A request and its answer, now."""
    tls.now = stage.now - 20
    stage.handle(tls.sent(get(path)), tls.received(ok()), busy=busy)


def pass_time(stage: Stage, ns: int) -> None:
    """The loop sleeps, and is woken when a retry is due."""
    until = stage.now + ns
    while stage.engine.waiting.next_ns <= until:
        stage.now = stage.engine.waiting.next_ns
        stage.engine.retry(stage.now)
    stage.now = until


def wires(stage: Stage) -> list[str]:
    return [wire for wire, _, _ in stage.told.joins]


def test_a_flow_that_is_there_is_joined_at_once(stage):
    stage.flows[COOKIE] = flow((7, TC, 10), (2, XDP, 12))
    exchange(stage, Tls())

    assert stage.told.joins == [("TC", 0, 0)]
    (facts,) = stage.told.facts
    assert facts.interface == "wg0"
    assert (facts.packets_sent, facts.packets_received) == (10, 10)
    assert (facts.bytes_sent, facts.bytes_received) == (1000, 10_000)
    assert facts.path == [("wg0", "TC", 20), ("eth0", "XDP", 24)]
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/TC") == 1
    assert (stage.count("correlation_bucket_0"), stage.count("correlation_count")) == (1, 1)
    assert stage.count("correlation_sum_ns") == 0


def test_an_interface_that_is_gone_is_named_by_its_index(stage):
    stage.flows[COOKIE] = flow((99, TC, 1))
    exchange(stage, Tls())
    assert stage.told.facts[0].interface == "if99"


def test_a_flow_that_comes_late(stage):
    exchange(stage, Tls())
    assert stage.told.exchanges == []
    assert stage.count("deferred_pending") == 1
    stage.flows[COOKIE] = flow()  # opened, but no packet seen yet
    pass_time(stage, 6 * MS)
    assert stage.told.exchanges == []
    stage.flows[COOKIE] = flow((2, XDP, 3))
    pass_time(stage, 20 * MS)

    assert stage.told.joins == [("XDP", 2, DELAYS_NS[1])]
    assert (stage.count("deferred_successes"), stage.count("deferred_failures")) == (1, 0)
    assert stage.count("deferred_pending") == 0
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/XDP") == 1
    assert stage.count("correlation_bucket_4") == 1  # up to 10 ms
    assert stage.count("correlation_sum_ns") == DELAYS_NS[1]


def test_a_flow_that_never_comes(stage):
    exchange(stage, Tls())
    pass_time(stage, 45 * MS)
    assert stage.told.joins == [("", 3, DELAYS_NS[-1])]
    assert (stage.count("deferred_successes"), stage.count("deferred_failures")) == (0, 1)
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/NONE") == 1
    assert stage.count("correlation_bucket_6") == 1


def test_exchanges_of_one_connection_leave_in_order(stage):
    tls, other = Tls(1), Tls(2, cookie=6)
    stage.flows[6] = flow((1, TC, 1))
    for n in range(5):
        exchange(stage, tls, f"/{n}")
        exchange(stage, other, f"/other{n}")
        stage.now += MS
    assert stage.paths() == [f"/other{n}" for n in range(5)]  # nobody else is kept
    stage.flows[COOKIE] = flow((1, TC, 9))
    pass_time(stage, 10 * MS)
    assert stage.paths()[5:] == [f"/{n}" for n in range(5)]
    assert set(wires(stage)) == {"TC"}
    assert stage.count("deferred_successes") == 5


def test_a_follower_does_not_overtake_one_that_waits(stage):
    tls = Tls()
    exchange(stage, tls, "/1")
    stage.now += MS
    stage.flows[COOKIE] = flow((1, TC, 9))
    looks = stage.looks
    exchange(stage, tls, "/2")  # could be joined now, but its predecessor goes first
    assert (stage.paths(), stage.looks) == ([], looks)
    pass_time(stage, 2 * MS)
    assert stage.paths() == ["/1", "/2"]


def test_what_waits_outlives_its_connection(stage):
    """A short-lived client is over before its flow shows."""
    tls = Tls()
    exchange(stage, tls)
    stage.handle(tls.close(), tls.exit())
    assert stage.engine.connections == {}
    stage.flows[COOKIE] = flow((1, TC, 9), closed_ns=stage.now)
    pass_time(stage, 50 * MS)
    assert wires(stage) == ["TC"]


def test_after_one_waited_in_vain_the_next_ones_do_not(stage):
    tls = Tls()
    exchange(stage, tls, "/1")
    pass_time(stage, 50 * MS)
    exchange(stage, tls, "/2")
    assert stage.told.joins == [("", 3, DELAYS_NS[-1]), ("", 0, 0)]
    assert stage.count("deferred_failures") == 2
    stage.flows[COOKIE] = flow((1, TC, 9))
    exchange(stage, tls, "/3")
    assert stage.told.joins[2] == ("TC", 0, 0)


def test_a_full_queue_is_a_counted_failure(stage):
    for n in range(SLOTS + 7):
        exchange(stage, Tls(n, cookie=1000 + n), f"/{n}")
    assert stage.paths() == [f"/{n}" for n in range(SLOTS, SLOTS + 7)]
    assert (stage.count("deferred_queue_full"), stage.count("deferred_failures")) == (7, 7)
    assert stage.count("deferred_pending") == SLOTS
    pass_time(stage, 50 * MS)
    assert len(stage.told.exchanges) == SLOTS + 7
    assert stage.count("deferred_failures") == SLOTS + 7
    assert stage.count("correlation_count") == SLOTS + 7


def test_a_full_queue_does_not_change_the_order(stage):
    tls = Tls()
    for n in range(SLOTS + 1):
        exchange(stage, tls, f"/{n}")
    assert stage.paths() == [f"/{n}" for n in range(SLOTS + 1)]
    assert (stage.count("deferred_queue_full"), stage.count("deferred_failures")) == (1, SLOTS + 1)
    assert stage.count("correlation_count") == SLOTS + 1


def test_without_hooks_nobody_waits(stage):
    stage.hooked = False
    tls = Tls()
    exchange(stage, tls)
    exchange(stage, tls)
    assert stage.told.joins == [("", 0, 0)] * 2
    assert (stage.looks, stage.engine.waiting.next_ns) == (1, NEVER)
    assert stage.count("deferred_failures") == 0

    stage.hooked = True  # from now on there are
    stage.flows[COOKIE] = flow((1, TC, 9))
    stage.now += HOOKED_AGAIN_NS
    exchange(stage, tls)
    assert wires(stage) == ["", "", "TC"]


def test_an_interface_that_comes_later_serves_connections_that_are_open(stage):
    tls = Tls()
    stage.hooked = False
    exchange(stage, tls)
    stage.hooked = True
    stage.engine.interfaces(NAMES | {9: "eth1"})
    stage.flows[COOKIE] = flow((9, TC, 9))
    exchange(stage, tls)
    assert wires(stage) == ["", "TC"]
    assert stage.told.facts[1].interface == "eth1"


def test_a_connection_without_a_cookie_waits_for_nothing(stage):
    exchange(stage, Tls(cookie=0))
    assert stage.told.joins == [("", 0, 0)]
    assert stage.looks == 0


def test_a_socket_that_is_named_later_is_looked_up(stage):
    tls = Tls(method=0, cookie=0)
    exchange(stage, tls)
    stage.flows[COOKIE] = flow((1, TC, 9))
    tls.conn |= {"method": 1, "cookie": COOKIE}
    stage.handle(tls.record(records.SOCKET))
    exchange(stage, tls)
    assert wires(stage) == ["", "TC"]
    assert stage.count("exchanges/http1/openssl/NONE/NONE") == 1
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/TC") == 1


def test_another_socket_has_other_packets(stage):
    """Better evidence names another socket: what was known of the first one's packets is gone."""
    tls = Tls(method=2)
    stage.flows[COOKIE] = flow((1, TC, 9))
    exchange(stage, tls)
    tls.conn |= {"method": 1, "cookie": 77}
    exchange(stage, tls)
    assert len(stage.told.exchanges) == 1
    facts = stage.told.facts[0]
    assert (facts.wire, facts.interface, facts.path, facts.packets_sent) == ("", "", [], 0)
    stage.flows[77] = flow((2, XDP, 1))
    pass_time(stage, 50 * MS)
    assert facts.path == [("eth0", "XDP", 2)]


def test_counts_are_looked_up_anew_at_most_every_5_ms(stage):
    tls = Tls()
    seen = []
    for n in range(1, 13):
        stage.flows[COOKIE] = flow((1, TC, n))
        exchange(stage, tls)
        seen.append(stage.told.facts[0].packets_sent)
        stage.now += MS
    assert FRESH_NS == 5 * MS
    assert seen == [1] * 5 + [6] * 5 + [11] * 2
    assert stage.looks == 3


def test_a_busy_worker_looks_few_up_anew_but_all_in_turn(stage):
    connections = [Tls(n, cookie=100 + n, role=SERVER) for n in range(8)]
    for n in range(8):
        stage.flows[100 + n] = flow((1, TC, 1))

    def round_of_exchanges(*, busy: bool) -> int:
        stage.looks = 0
        stage.handle(*(r for t in connections for r in (t.received(get()), t.sent(ok()))), busy=busy)
        stage.now += BUSY_NS
        return stage.looks

    assert round_of_exchanges(busy=True) == 8  # the first time, busy or not
    assert round_of_exchanges(busy=False) == 8  # there is time
    for n in range(8):
        stage.flows[100 + n] = flow((1, TC, 2))
    assert sum(round_of_exchanges(busy=True) for _ in range(BUSY_REFRESH)) == 8
    assert {facts.packets_sent for facts in stage.told.facts} == {2}


def test_what_was_known_outlives_its_entry(stage):
    tls = Tls()
    stage.flows[COOKIE] = flow((1, TC, 9))
    exchange(stage, tls)
    del stage.flows[COOKIE]
    stage.now += 6 * MS
    exchange(stage, tls)
    assert wires(stage) == ["TC", "TC"]
    assert stage.told.facts[1].packets_sent == 9


def test_shutdown_lets_everything_go_after_a_last_look(stage):
    one, two = Tls(1), Tls(2, cookie=6)
    exchange(stage, one, "/1")
    exchange(stage, two, "/2")
    stage.flows[6] = flow((1, TC, 9))
    stage.engine.close_all(stage.now)
    assert sorted(zip(stage.paths(), wires(stage), strict=True)) == [("/1", ""), ("/2", "TC")]
    assert (stage.count("deferred_successes"), stage.count("deferred_failures")) == (1, 1)
    assert stage.count("deferred_pending") == 0


def test_what_a_worker_sees_late_gets_its_time_all_the_same(stage):
    """The host was busy: what makes the worker late makes the flow late."""
    tls = Tls()
    tls.now = stage.now - 200 * MS
    stage.handle(tls.sent(get()), tls.received(ok()))
    for _ in range(2):
        stage.engine.retry(stage.now)
    assert stage.told.exchanges == []
    assert stage.engine.waiting.next_ns == stage.now - LAG_NS + DELAYS_NS[-1]
    pass_time(stage, 50 * MS)
    assert stage.told.joins == [("", 3, DELAYS_NS[-1])]


def test_times_from_the_future_wait_no_longer(stage):
    tls = Tls()
    tls.now = stage.now + 10_000 * MS
    stage.handle(tls.sent(get()), tls.received(ok()))
    pass_time(stage, 50 * MS)
    assert len(stage.told.exchanges) == 1
