"""When an exchange is proved by the wire, for how long, and what the wire adds to one that is cut off."""

from __future__ import annotations

import pytest
from wire_records import BEGAN, Stage, Tls, flow, get, ok

from spliffd.correlation.flows import FRESH_NS
from spliffd.kernel.flows import RecordSide
from spliffd.kernel.hellos import Hello
from tests.support.hellos import client_hello, record, server_hello

SUITE, EACH = 0xC02B, 24
"""TLS 1.2 with AES-GCM."""
HELLO = Hello(record(22, client_hello([SUITE])), record(22, server_hello(SUITE)), 0, 0, True)


def on_the_wire(size: int) -> RecordSide:
    """One record that holds so much."""
    return RecordSide(1, size + EACH, 0, 0, 1, 0, size + EACH, 1, 0)


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.hooked = True
    stage.flows[5] = flow((1, 2, 3))
    stage.hellos[5] = HELLO
    stage.engine.interfaces({1: "lo"})
    return stage


def talk(stage: Stage, tls: Tls, *, beyond: int = 0) -> bool:
    """A request and its answer, with so much more on the wire; returns whether the exchange was proved."""
    told = tls.sent(get()), tls.received(ok(b"x" * 100))
    stage.sides = on_the_wire(tls.offsets[0]), on_the_wire(tls.offsets[1] + beyond)
    stage.handle(*told)
    return stage.told.facts[-1].proved


def test_what_is_on_the_wire_and_captured_is_proved_until_more_moves(stage):
    tls = Tls()
    assert talk(stage, tls)
    assert not talk(stage, tls), "looked at a moment ago: nothing was compared"
    stage.now += FRESH_NS
    assert talk(stage, tls)


@pytest.mark.parametrize("beyond", [1, -1, 16384])
def test_another_sum_proves_nothing(stage, beyond):
    assert not talk(stage, Tls(), beyond=beyond)


def test_a_connection_that_was_joined_later_is_not_proved(stage):
    assert not talk(stage, Tls(generation=BEGAN - 1), beyond=500)


def test_a_new_socket_proves_nothing_of_the_old_ones_bytes(stage):
    tls = Tls()
    assert talk(stage, tls)
    tls.conn["cookie"], tls.conn["method"] = 6, 2
    assert not talk(stage, tls)


@pytest.mark.parametrize("beyond", [0, 70_000])
def test_what_was_never_read_is_missing_from_what_was_cut_off(stage, beyond):
    """A body without a length: only the wire knows that there was more."""
    tls = Tls()
    assert talk(stage, tls)
    begun = tls.sent(get()), tls.received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n")
    stage.sides = on_the_wire(tls.offsets[0]), on_the_wire(tls.offsets[1] + beyond)
    stage.handle(*begun, tls.close())
    cut = stage.told.exchanges[-1]
    assert (cut.state, cut.missing_bytes) == ("aborted", beyond)
