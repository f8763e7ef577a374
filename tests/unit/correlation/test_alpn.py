"""ALPN names what is spoken, whether it is known before the first byte, comes late, or never; content decides."""

from __future__ import annotations

import pytest
from test_engine_http2 import Pair
from wire_records import Stage, Tls, get, ok

from spliffd.kernel import records
from spliffd.protocols.recognise import ENOUGH

BEFORE, LATE, NEVER = "before", "late", "never"
NOISE = b"\xf3\xa1\x05" * 43
"""What nothing recognises."""


def alpn(tls: Tls, name: bytes) -> bytes:
    """The library says what was agreed on."""
    record = tls.record(records.FACT, records.FACT_ALPN, name)
    tls.offsets[records.FACT_ALPN & 1] -= len(name)
    return record


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.engine.wants_chunks = True
    return stage


@pytest.mark.parametrize("name", [b"h2", b"http/1.1", b""])
@pytest.mark.parametrize("when", [BEFORE, LATE, NEVER])
def test_content_is_believed_whatever_alpn_says_and_when(stage: Stage, name: bytes, when: str):
    tls, other = Tls(), Tls(0xDEF)
    pair = Pair(other)
    for one in (tls, other):
        if when == BEFORE:
            stage.handle(alpn(one, name))
    pair.get(1, "/two")
    stage.handle(tls.sent(get("/one")), pair.requests())
    for one in (tls, other):
        if when == LATE:
            stage.handle(alpn(one, name))
    pair.answer(1, b"abc")
    stage.handle(tls.received(ok(b"abc")), pair.responses())

    assert sorted(stage.paths()) == ["/one", "/two"]
    assert sorted(stage.told.protocols) == ["http1", "http2"]
    assert set(stage.states()) == {"complete"}


@pytest.mark.parametrize("when", [BEFORE, LATE, NEVER])
def test_what_is_no_http_gets_the_name_that_alpn_gives(stage: Stage, when: str):
    """Late: when as much was said as is looked at."""
    tls = Tls()
    if when == BEFORE:
        stage.handle(alpn(tls, b"mqtt"))
    for _ in range(2 * ENOUGH // len(NOISE) + 1):
        stage.handle(tls.sent(NOISE), tls.received(NOISE))
    if when == LATE:
        stage.handle(alpn(tls, b"mqtt"))
    stage.handle(tls.sent(NOISE))
    (connection,) = stage.engine.connections.values()
    assert connection.recogniser is not None
    assert connection.recogniser.name == ("" if when == NEVER else "mqtt")
    assert sum(len(chunk[2]) for chunk in stage.told.chunks) == len(NOISE) * (
        2 * (2 * ENOUGH // len(NOISE) + 1) + 1
    )
