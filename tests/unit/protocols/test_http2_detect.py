"""HTTP/2 told in the middle of a connection, and everything else told from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.protocols.http2_detect import EITHER, FROM_CLIENT, FROM_SERVER, OTHER, detect_frames
from spliffd.protocols.http2_frames import PREFACE
from tests.unit.protocols.http2_transcripts import GET, OK, PING, PUSH, SETTINGS, WINDOW, Peer, frame

peer = Peer()
peer.block([*GET, *OK])  # what was sent before we came
REQUEST = peer.headers(41, [*GET, ("x", "y")], end=True)
RESPONSE = peer.headers(41, [*OK, ("x", "z")])


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (REQUEST, FROM_CLIENT),
        (frame(WINDOW, 0, 0, b"\0\0\1\0") + REQUEST, FROM_CLIENT),
        (PREFACE + frame(SETTINGS, 0, 0), FROM_CLIENT),
        (RESPONSE, FROM_SERVER),
        (RESPONSE + peer.data(41, b"x" * 20000)[:9000], FROM_SERVER),
        (peer.data(39, b"x" * 100, end=True) + RESPONSE, FROM_SERVER),
        (frame(PING, 1, 0, bytes(8)) + frame(PUSH, 4, 41, b"\0\0\0\2\x82"), FROM_SERVER),
        (frame(PING, 1, 0, bytes(8)), EITHER),
        (frame(WINDOW, 0, 41, b"\0\0\1\0"), EITHER),
        (peer.data(41, b"x" * 500) + peer.data(41, b"x" * 16384)[:900], EITHER),
        (peer.data(41, b"x" * 16384)[:900], OTHER),  # one header is too little
        (b"", OTHER),
        (bytes(400), OTHER),
        (bytes(8) + b"\x01" + bytes(8) + b"\x01", OTHER),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", OTHER),
        (b"*1\r\n$4\r\nPING\r\n", OTHER),
        (b"\x00\x00\x00\x54\x00\x03\x00\x00user\x00postgres\x00", OTHER),
        (
            b"\x00\x1c\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01",
            OTHER,
        ),
        (b"\x00\x00\x00\x1c\x00\x12\x00\x00\x00\x00\x00\x01\x00\x04test", OTHER),
        (b"\x10\x17\x00\x04MQTT\x04\x02\x00\x3c\x00\x0bclient", OTHER),
    ],
)
def test_what_a_record_is(data, verdict):
    assert detect_frames(data) == verdict


@given(st.binary(max_size=200))
def test_any_bytes_do_no_harm(data):
    assert detect_frames(data) in (OTHER, FROM_CLIENT, FROM_SERVER, EITHER)
