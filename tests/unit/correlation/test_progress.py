"""Exchanges that go on for long are told of while they do, once, and cost nothing while nothing moves."""

from __future__ import annotations

import pytest
from wire_records import Stage, Tls, flow, get, ok

from spliffd.correlation.progress import LONG_NS, LOOK_AROUND_NS

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.engine.around.wanted = True
    return stage


def look(stage: Stage, later: int = LOOK_AROUND_NS) -> list[str]:
    """Paths of what is told of when that much time has passed."""
    before = len(stage.told.announced)
    stage.now += later
    stage.engine.around.look(stage.now)
    return [exchange.request.path for exchange, _ in stage.told.announced[before:]]


def test_a_stream_of_events_is_told_of_at_once(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.flows[5] = flow((2, 1, 3))
    stage.engine.interfaces({2: "eth2"})
    stage.now = tls.now
    stage.handle(tls.sent(get("/events")), tls.received(HEAD % b"text/event-stream; charset=utf-8"))
    assert look(stage) == ["/events"]
    assert [wire for _, wire in stage.told.announced] == ["XDP"]
    assert stage.told.exchanges == []
    stage.handle(tls.received(b"5\r\ndata\n\r\n0\r\n\r\n"))
    (exchange,) = stage.told.exchanges
    assert (exchange.state, exchange.announced) == ("complete", True)
    assert look(stage) == []


def test_others_are_told_of_when_they_are_long(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.now = tls.now
    stage.handle(tls.sent(get("/slow")), tls.received(HEAD % b"text/plain"))
    assert look(stage) == []
    assert look(stage, LONG_NS) == ["/slow"]
    assert not stage.engine.around.recent  # and nobody looks again until bytes move
    stage.handle(tls.received(b"5\r\nhello\r\n"))
    assert stage.engine.around.recent
    assert look(stage) == []


def test_one_without_an_answer_is_told_of(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.now = tls.now
    stage.handle(tls.sent(get("/poll")))
    assert look(stage, 2 * LONG_NS) == ["/poll"]
    assert stage.told.announced[0][0].response is None


def test_what_is_finished_is_not_told_of_and_costs_one_look(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.now = tls.now
    stage.handle(tls.sent(get("/quick")), tls.received(ok(b"x")))
    assert look(stage, 2 * LONG_NS) == []
    assert not stage.engine.around.recent


def test_it_looks_no_more_often_than_it_should(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.now = tls.now
    stage.handle(tls.sent(get("/events")))
    assert look(stage, 0) == []
    stage.handle(tls.received(HEAD % b"text/event-stream"))
    assert look(stage, LOOK_AROUND_NS - 1) == []
    assert look(stage, 1) == ["/events"]


def test_nobody_who_wants_it_costs_nothing(stage):
    stage.engine.around.wanted = False
    tls = Tls()
    stage.handle(tls.sent(get("/events")), tls.received(HEAD % b"text/event-stream"))
    assert not stage.engine.around.recent


def test_one_that_ended_meanwhile_is_passed(stage):
    tls = Tls(generation=stage.now + 2_000_000)
    stage.now = tls.now
    stage.handle(tls.sent(get("/events")), tls.received(HEAD % b"text/event-stream"), tls.close())
    assert look(stage, LONG_NS) == []
