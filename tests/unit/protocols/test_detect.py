"""The first bytes of a direction, and what they are taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.protocols.detect import (
    ENOUGH,
    HTTP1_REQUEST,
    HTTP1_RESPONSE,
    HTTP2_PREFACE,
    OTHER,
    PREFACE,
    UNDECIDED,
    detect,
)

WHOLE = [
    (b"GET / HTTP/1.1\r\n", HTTP1_REQUEST),
    (b"\r\nGET /a b?c HTTP/1.0\n", HTTP1_REQUEST),
    (b"M-SEARCH * HTTP/1.1\r\n", HTTP1_REQUEST),
    (b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n", HTTP1_REQUEST),
    (b"GET http://h/x HTTP/1.1\r\n", HTTP1_REQUEST),
    (b"HTTP/1.1 200 OK\r\n", HTTP1_RESPONSE),
    (b"HTTP/1.0 404\r\n", HTTP1_RESPONSE),
    (b"\r\nHTTP/1.1 100 ", HTTP1_RESPONSE),
    (PREFACE, HTTP2_PREFACE),
    (PREFACE + b"\x00\x00\x12\x04", HTTP2_PREFACE),
]


@pytest.mark.parametrize(("data", "what"), WHOLE)
def test_http_and_all_its_beginnings(data, what):
    assert detect(data) == what
    for end in range(len(data)):
        assert detect(data[:end]) in (UNDECIDED, what)
    assert detect(data[:1]) == UNDECIDED


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n$4\r\nPING\r\n",  # Redis
        b"PING\r\n",  # Redis, inline
        b"SET /a 1\r\n",
        b"+OK POP3 server ready\r\n",
        b"220 mail.example.org ESMTP\r\n",
        b"EHLO client.example.org\r\n",
        b"a001 LOGIN user password\r\n",
        b"\x4a\x00\x00\x00\x0a8.0.36\x00",  # MySQL greeting
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # PostgreSQL SSLRequest
        b"R\x00\x00\x00\x08\x00\x00\x00\x00",  # PostgreSQL AuthenticationOk
        b"\x10\x0e\x00\x04MQTT\x04\x02",
        b"\x16\x03\x01\x02\x00\x01",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET\x00/ HTTP/1.1\r\n",
        b"GET /\x01 HTTP/1.1\r\n",
        b"THISMETHODISLONGERTHANTWENTYFOUR / HTTP/1.1\r\n",
        b"HTTP/1.1 099 Low\r\n",
        b"HTTP/1.1 20x\r\n",
        b"HTTP/2 200\r\n",
        b"PRI * HTTP/1.1\r\n",
        b'{"json": true}\n',
        b"\n\n\n\n\nGET / HTTP/1.1\r\n",
    ],
)
def test_what_is_not_http(data):
    assert detect(data) == OTHER


def test_a_long_target_is_believed_by_its_beginning():
    assert detect(b"GET /" + b"x" * 100) == UNDECIDED
    assert detect(b"GET /" + b"x" * ENOUGH) == HTTP1_REQUEST
    assert detect(b"x" * ENOUGH) == OTHER


@given(st.binary(max_size=400))
def test_any_bytes_are_decided_in_the_end(data):
    assert detect(data) in (UNDECIDED, HTTP1_REQUEST, HTTP1_RESPONSE, HTTP2_PREFACE, OTHER)
    assert detect(data.ljust(ENOUGH, b"\x00")) != UNDECIDED


@given(st.binary(max_size=60))
def test_other_stays_other(data):
    if detect(data) == OTHER:
        assert (
            detect(data + b"GET / HTTP/1.1\r\n") in (OTHER, HTTP1_REQUEST, HTTP1_RESPONSE)
            or data[:4] == b"PRI "
        )
        assert detect(data + b"\x00") == OTHER
