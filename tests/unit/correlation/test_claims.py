"""Connections whose socket nobody named: which flow they are given, and what their exchanges then say."""

from __future__ import annotations

import pytest
from wire_records import SERVER, Stage, Tls, flow, get, ok

from spliffd.correlation import claims
from spliffd.correlation.flows import CLAIM_AGAIN_NS
from spliffd.correlation.retry import DELAYS_NS
from spliffd.kernel import records

MS = 1_000_000
PID = 7
TC = 2


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.engine.interfaces({1: "lo"})
    stage.hooked = True
    stage.now = 1_000 * MS
    return stage


def nameless(number: int = 0, **more) -> Tls:
    return Tls(number, pid=PID, **({"method": 0, "cookie": 0, "local": "", "remote": "", "role": 0} | more))


def opened(stage: Stage, *hops, **more):
    """A flow of the process, opened a moment ago."""
    return flow(*hops, **({"tgid": PID, "first_ns": stage.now - 5 * MS, "last_ns": stage.now} | more))


def exchange(stage: Stage, tls: Tls, path: str = "/") -> None:
    tls.now = stage.now - 20
    stage.handle(tls.sent(get(path)), tls.received(ok()))


def pass_time(stage: Stage, ns: int) -> None:
    until = stage.now + ns
    while stage.engine.waiting.next_ns <= until:
        stage.now = stage.engine.waiting.next_ns
        stage.engine.retry(stage.now)
    stage.now = until


def methods(stage: Stage) -> list[str]:
    return [facts.correlation_method for facts in stage.told.facts]


def test_the_only_flow_of_a_process_is_given(stage):
    stage.flows[55] = opened(stage, (1, TC, 9), netns_cookie=17)
    exchange(stage, nameless())

    (facts,) = stage.told.facts
    assert (facts.correlation_method, facts.confidence) == ("PROCESS_TIMING", "low")
    assert (facts.socket_cookie, facts.netns_cookie, facts.family) == (55, 17, "ipv4")
    assert (facts.local_address, facts.local_port) == ("127.0.0.1", 1025)
    assert (facts.remote_address, facts.remote_port) == ("192.0.2.1", 443)
    assert (facts.wire, facts.interface, facts.packets_sent) == ("TC", "lo", 9)
    assert stage.count("exchanges/http1/openssl/PROCESS_TIMING/TC") == 1
    assert stage.told.joins == [("TC", 0, 0)]


def test_without_hooks_it_is_given_all_the_same(stage):
    stage.hooked = False
    stage.flows[55] = opened(stage)
    tls = nameless()
    exchange(stage, tls)
    exchange(stage, tls)
    assert methods(stage) == ["PROCESS_TIMING"] * 2
    assert stage.told.joins == [("", 0, 0)] * 2
    assert len(stage.asked) == 1
    assert stage.count("exchanges/http1/openssl/PROCESS_TIMING/NONE") == 2


def test_the_link_lasts_as_long_as_the_connection(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    tls = nameless()
    exchange(stage, tls)
    stage.flows[56] = opened(stage, (1, TC, 9))  # now two would fit
    exchange(stage, tls)
    assert methods(stage) == ["PROCESS_TIMING"] * 2
    assert {facts.socket_cookie for facts in stage.told.facts} == {55}


def test_two_that_fit_are_not_given(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    stage.flows[56] = opened(stage, (1, TC, 9))
    tls = nameless()
    exchange(stage, tls)
    assert stage.told.exchanges == []  # what they carry may tell them apart yet
    pass_time(stage, 50 * MS)
    exchange(stage, tls)
    assert methods(stage) == ["NONE"] * 2
    assert stage.told.joins == [("", 3, DELAYS_NS[-1]), ("", 0, 0)]
    asked = len(stage.asked)
    exchange(stage, tls)
    assert len(stage.asked) == asked  # not every time
    del stage.flows[56]
    stage.now += CLAIM_AGAIN_NS
    exchange(stage, tls)
    assert stage.told.joins[-1] == ("TC", 0, 0)


def test_a_process_without_flows_waits_for_nothing(stage):
    exchange(stage, nameless())
    assert methods(stage) == ["NONE"]
    assert stage.told.joins == [("", 0, 0)]
    assert stage.count("deferred_failures") == 0


def test_flows_of_other_processes_are_not_given(stage):
    stage.flows[55] = opened(stage, (1, TC, 9), tgid=PID + 1)
    exchange(stage, nameless())
    assert methods(stage) == ["NONE"]


def test_flows_that_cannot_be_read_yet_are_waited_for(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    stage.read = 0
    exchange(stage, nameless())
    assert stage.told.exchanges == []
    stage.read = stage.now
    pass_time(stage, 5 * MS)
    assert stage.told.joins == [("TC", 1, DELAYS_NS[0])]
    assert stage.asked[-1] == (PID, stage.told.exchanges[0].response.end_ns, "client")


def test_what_another_connection_has_is_not_given(stage):
    stage.flows[5] = opened(stage, (1, TC, 9))
    stage.flows[55] = opened(stage, (1, TC, 9))
    exchange(stage, Tls(1, pid=PID), "/named")
    exchange(stage, nameless(2), "/mine")
    exchange(stage, nameless(3), "/none left")
    assert [facts.socket_cookie for facts in stage.told.facts] == [5, 55, 0]
    assert methods(stage) == ["SOCKET_NESTED", "PROCESS_TIMING", "NONE"]


def test_a_flow_that_fits_two_connections_is_not_given(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    one, two = nameless(1), nameless(2)
    one.now = two.now = stage.now - 20
    stage.handle(one.sent(get("/1")), two.sent(get("/2")), one.received(ok()), two.received(ok()))
    pass_time(stage, 50 * MS)
    assert methods(stage) == ["NONE"] * 2


def test_a_client_is_not_given_what_the_process_accepted(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    stage.flows[56] = opened(stage, (1, TC, 9), role=SERVER)
    exchange(stage, nameless())
    assert [facts.socket_cookie for facts in stage.told.facts] == [55]


def test_evidence_that_comes_later_is_better(stage):
    stage.flows[55] = opened(stage, (1, TC, 9))
    stage.flows[77] = flow((1, TC, 3))
    tls = nameless()
    exchange(stage, tls)
    tls.conn |= {"method": 1, "cookie": 77, "local": "127.0.0.1", "remote": "192.0.2.9"}
    stage.handle(tls.record(records.SOCKET))
    exchange(stage, tls)
    facts = stage.told.facts[1]
    assert (facts.correlation_method, facts.confidence, facts.socket_cookie) == ("SOCKET_NESTED", "high", 77)
    assert facts.packets_sent == 3
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/TC") == 1


def test_what_is_remembered_is_bounded(stage, monkeypatch):
    monkeypatch.setattr(claims, "MAX_GIVEN", 3)
    for n in range(5):
        stage.flows.clear()
        stage.flows[100 + n] = opened(stage, (1, TC, 9))
        exchange(stage, nameless(n))
    assert methods(stage) == ["PROCESS_TIMING"] * 5
    assert len(stage.engine._claims._given) == 3
