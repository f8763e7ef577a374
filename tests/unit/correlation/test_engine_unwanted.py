"""What nobody wants: the engine tells the kernel, and what then does not come is no loss."""

from __future__ import annotations

import struct

import pytest
from wire_records import Stage, Tls, get, ok

from spliffd.correlation.unwanted import SPARED_REST
from spliffd.kernel import records
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.http2_unwanted import LARGE_BODY
from spliffd.protocols.messages import COMPLETE, GAP
from tests.unit.protocols.http2_transcripts import GET, OK, Peer, frame

PIECE = 16384
BODY = SPARED_REST + 4 * PIECE
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.unwanted = []
    stage.engine.unwanted.tell_until = lambda key, sent, received: stage.unwanted.append((sent, received))
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


# ---- HTTP/2: whose bodies ------------------------------------------------------------------------------


def skipped(tls: Tls, *parts: tuple[int, int, int], left: int, current: int = 1, size: int = 0) -> bytes:
    """What the kernel says of received data frames that it left out: stream, frames, payload."""
    rows = [*parts, *[(0, 0, 0)] * (4 - len(parts))]
    columns = [number for column in zip(*rows, strict=True) for number in column]
    size = size or sum(9 * part[1] + part[2] for part in parts)
    return tls.record(
        records.SKIPPED, records.RECEIVED, struct.pack("=4I4I4QII", *columns, left, current), size=size
    )


@pytest.fixture
def streams(stage: Stage) -> list:
    told: list = []
    stage.engine.unwanted.tell_streams = lambda key, sent, received: told.append((list(sent), list(received)))
    return told


def download(stage: Stage, size: int = LARGE_BODY) -> Tls:
    tls, up, down = Tls(), Peer(), Peer()
    stage.handle(tls.sent(PREFACE + frame(4, 0, 0) + up.headers(1, GET, end=True)))
    stage.handle(tls.received(frame(4, 0, 0) + down.headers(1, OK) + frame(0, 0, 1, bytes(size))))
    return tls


def test_of_http2_the_stream_is_told_and_what_was_left_out_is_no_loss(stage, streams):
    tls = download(stage)
    assert streams == [([0] * 4, [1, 0, 0, 0])]
    stage.handle(skipped(tls, (1, 3, 70000), left=50), tls.received(bytes(50) + frame(0, 1, 1, b"!")))

    (exchange,) = stage.told.exchanges
    assert (exchange.state, exchange.response.body_size) == (COMPLETE, LARGE_BODY + 70000 + 51)
    assert (stage.count("gaps"), stage.count("tls_records_skipped")) == (0, 1)


def test_a_stream_that_is_over_gives_its_place_to_another(stage, streams):
    tls, up, down = Tls(), Peer(), Peer()
    stage.handle(tls.sent(PREFACE + frame(4, 0, 0)), tls.received(frame(4, 0, 0)))
    for number in (1, 3, 5, 7, 9):
        stage.handle(tls.sent(up.headers(number, GET, end=True)))
        stage.handle(tls.received(down.headers(number, OK) + frame(0, 0, number, bytes(LARGE_BODY))))
        if number == 3:
            stage.handle(tls.received(frame(0, 1, 3, b"!")))

    assert [received for _, received in streams] == [
        [1, 0, 0, 0],
        [1, 3, 0, 0],
        [1, 5, 0, 0],
        [1, 5, 7, 0],
        [1, 5, 7, 9],
    ]
    stage.handle(tls.sent(up.headers(11, GET, end=True)))
    stage.handle(tls.received(down.headers(11, OK) + frame(0, 0, 11, bytes(LARGE_BODY))))
    assert len(streams) == 5  # all places are taken


def test_a_small_one_is_not_told(stage, streams):
    download(stage, LARGE_BODY - 1)
    assert streams == []


def test_what_does_not_fit_is_a_gap(stage, streams):
    tls = download(stage)
    stage.handle(skipped(tls, (1, 3, 70000), left=50, size=80000), tls.close())

    assert (stage.count("gaps"), stage.count("gap_bytes")) == (1, 80000)
    assert [each.state for each in stage.told.exchanges] == [GAP]


def test_what_is_lost_before_it_is_a_gap(stage, streams):
    tls = download(stage)
    tls.lose(records.RECEIVED, 77)
    stage.handle(skipped(tls, (1, 3, 70000), left=50), tls.close())

    assert stage.count("gap_bytes") == 77 + 70027


def test_whoever_comes_for_bodies_takes_it_back(stage, streams):
    tls = download(stage)
    stage.told.bodies = []
    stage.engine.watch_bodies()
    stage.handle(skipped(tls, (1, 1, 8000), left=0), tls.received(frame(0, 1, 1, b"x" * 8000)))

    assert stage.unwanted == [(0, 0)]
    assert stage.told.bodies == [(True, b"x" * 8000)]
    (exchange,) = stage.told.exchanges
    assert (exchange.state, exchange.missing_bytes, exchange.response.body_size) == (
        GAP,
        8000,
        LARGE_BODY + 16000,
    )


def test_a_record_of_another_connection_s_kind_is_a_gap(stage):
    tls = begun(stage)
    stage.handle(skipped(tls, (1, 1, 8000), left=0), tls.close())

    assert stage.count("gap_bytes") == 8009
