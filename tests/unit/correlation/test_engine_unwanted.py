"""What nobody wants: the engine tells the kernel, and what then does not come is no loss."""

from __future__ import annotations

import pytest
from wire_records import Stage, Tls, get, ok

from spliffd.correlation.connection import SPARED_REST
from spliffd.kernel import records
from spliffd.protocols.messages import COMPLETE, GAP

PIECE = 16384
BODY = SPARED_REST + 4 * PIECE
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.unwanted = []
    stage.engine.tell_unwanted = lambda key, sent, received: stage.unwanted.append((sent, received))
    return stage


def begun(stage: Stage) -> Tls:
    """A download of which the first piece has come."""
    tls = Tls()
    stage.handle(tls.sent(get("/a")), tls.received(HEAD + bytes(PIECE)))
    return tls


def test_the_rest_of_a_large_body_but_for_its_last_byte(stage):
    tls = begun(stage)
    assert stage.unwanted == [(0, len(HEAD) + BODY - 1)]
    tls.lose(records.RECEIVED, BODY - PIECE - 1)
    stage.handle(tls.received(b"!"), tls.sent(get("/b")), tls.received(ok(b"hello")))

    assert [(e.state, e.response.body_size, e.missing_bytes) for e in stage.told.exchanges] == [
        (COMPLETE, BODY, 0),
        (COMPLETE, 5, 0),
    ]
    assert (stage.count("gaps"), stage.count("gap_bytes")) == (0, 0)


def test_uploads_are_told_as_well(stage):
    tls = Tls()
    stage.handle(tls.sent(b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % BODY), tls.sent(bytes(PIECE)))

    assert stage.unwanted == [(tls.offsets[0] + BODY - PIECE - 1, 0)]


@pytest.mark.parametrize("body", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"])
def test_nothing_else_is_told(stage, body):
    tls = Tls()
    stage.handle(tls.sent(get("/a")), tls.received(body or ok(bytes(PIECE))), tls.received(bytes(PIECE)))

    assert stage.unwanted == []


def test_nothing_is_told_while_somebody_wants_bodies(stage):
    stage.told.bodies = []
    begun(stage)

    assert stage.unwanted == []


def test_whoever_comes_for_bodies_gets_what_comes_from_then_on(stage):
    tls = begun(stage)
    tls.lose(records.RECEIVED, 2 * PIECE)
    stage.told.bodies = []
    stage.engine.watch_bodies()
    rest = BODY - 3 * PIECE
    stage.handle(tls.received(b"x" * rest))

    assert stage.unwanted[1:] == [(0, 0)]
    assert stage.told.bodies == [(True, b"x" * rest)]
    (exchange,) = stage.told.exchanges
    assert (exchange.state, exchange.missing_bytes, exchange.response.body_size) == (GAP, 2 * PIECE, BODY)


def test_what_is_lost_behind_it_is_a_loss(stage):
    tls = begun(stage)
    tls.lose(records.RECEIVED, BODY - PIECE + 100)
    stage.handle(tls.sent(get("/b")), tls.received(ok(b"hello")))

    assert stage.count("gap_bytes") == 101
    assert stage.told.exchanges[0].state is GAP


def test_a_connection_that_ends_in_it(stage):
    tls = begun(stage)
    tls.lose(records.RECEIVED, 2 * PIECE)
    stage.handle(tls.close())

    assert stage.count("gaps") == 0
    (exchange,) = stage.told.exchanges
    assert (exchange.state, exchange.response.body_size) == ("aborted", 3 * PIECE)
