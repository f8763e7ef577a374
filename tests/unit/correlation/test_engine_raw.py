"""Ring records of what is not HTTP, or not any more: chunks and messages, whole and in order."""

from __future__ import annotations

import pytest
from wire_records import Stage, Tls, flow, get


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_raw_bytes_come_as_chunks_whole_and_in_place(stage):
    stage.engine.wants_chunks = True
    tls = Tls()
    stage.handle(tls.sent(b"\x10\x0e\x00\x04MQTT"), tls.received(b"\x20\x02\x00\x00"), tls.sent(b"\xe0\x00"))
    assert stage.told.chunks == [
        (0, 0, b"\x10\x0e\x00\x04MQTT", 8),
        (1, 0, b"\x20\x02\x00\x00", 4),
        (0, 8, b"\xe0\x00", 2),
    ]
    assert stage.told.exchanges == []


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_what_was_kept_while_undecided_comes_first(stage, size):
    stage.engine.wants_chunks = True
    tls = Tls()
    data = b"EHLO mail.example.com\r\nMAIL FROM:<a@example.com>\r\n"
    stage.handle(*(tls.sent(data[i : i + size]) for i in range(0, len(data), size)))
    assert b"".join(chunk[2] for chunk in stage.told.chunks) == data
    assert stage.told.chunks[0][1] == 0
    for before, after in zip(stage.told.chunks, stage.told.chunks[1:], strict=False):
        assert after[1] == before[1] + before[3]


def test_both_directions_undecided_at_once_lose_nothing(stage):
    stage.engine.wants_chunks = True
    tls = Tls()
    stage.handle(tls.sent(b"GE"), tls.received(b"HT"), tls.sent(b"NUG\x00"), tls.received(b"X\x00"))
    by_direction = {
        way: b"".join(data for direction, _, data, _ in stage.told.chunks if direction == way)
        for way in (0, 1)
    }
    assert by_direction == {0: b"GENUG\x00", 1: b"HTX\x00"}


def test_without_a_watcher_there_are_no_chunks(stage):
    tls = Tls()
    stage.handle(tls.sent(b"\x00\x01\x02\x03"))
    assert stage.told.chunks == []


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"


def test_an_upgraded_connection_becomes_chunks(stage):
    stage.engine.wants_chunks = True
    tls = Tls()
    question = get("/ws", Connection="Upgrade", Upgrade="other")
    answer = SWITCH + b"Upgrade: other\r\n\r\n"
    stage.handle(
        tls.sent(question), tls.received(answer + b"early"), tls.received(b"hello"), tls.sent(b"bye")
    )
    assert [e.response.status for e in stage.told.exchanges] == [101]
    assert [chunk[:3] for chunk in stage.told.chunks] == [
        (1, len(answer), b"early"),
        (1, len(answer) + 5, b"hello"),
        (0, len(question), b"bye"),
    ]


def test_a_websocket_becomes_messages_behind_their_exchange(stage):
    stage.engine.wants_chunks = True
    stage.hooked = True  # so that the exchange waits for its flow
    tls = Tls()
    question = get("/ws", Connection="Upgrade", Upgrade="websocket")
    answer = SWITCH + b"Upgrade: WebSocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    stage.handle(
        tls.sent(question),
        tls.received(answer + b"\x81\x05hel"),
        tls.received(b"lo\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"),
        tls.sent(b"\x88\x80\1\2\3\4"),
    )
    assert stage.told.exchanges == []
    assert stage.told.messages == []
    stage.flows[5] = flow((2, 1, 3))
    stage.now += 2_000_000
    stage.engine.retry(stage.now)
    (exchange,) = stage.told.exchanges
    assert (exchange.response.status, exchange.websocket) == (101, True)
    told = stage.told.messages
    assert [(m.from_server, m.data) for m in told] == [(True, b"hello"), (True, b"Hello"), (False, b"")]
    assert all(message.exchange is exchange for message in told)
    assert (stage.count("websocket_messages_received"), stage.count("websocket_messages_sent")) == (2, 1)
    assert stage.count("exchanges/websocket/openssl/SOCKET_NESTED/XDP") == 1


def test_a_websocket_survives_lost_bytes_and_its_end(stage):
    stage.engine.wants_chunks = True
    tls = Tls()
    stage.handle(tls.sent(get("/ws", Upgrade="websocket", Connection="Upgrade")))
    stage.handle(tls.received(SWITCH + b"Upgrade: websocket\r\n\r\n\x81\x08he"))
    tls.lose(1, 3)
    stage.handle(tls.received(b"lo!\x02\x01x"), tls.close())
    first, second = stage.told.messages
    assert (first.data, first.state, first.missing_bytes) == (b"helo!", "gap", 3)
    assert (second.data, second.state) == (b"x", "aborted")


def test_nobody_who_watches_gets_no_messages_but_they_are_counted(stage):
    tls = Tls()
    stage.handle(tls.sent(get("/ws", Upgrade="websocket", Connection="Upgrade")))
    stage.handle(tls.received(SWITCH + b"Upgrade: websocket\r\n\r\n\x81\x00"))
    assert stage.told.messages == []
    assert stage.count("websocket_messages_received") == 1
