"""mitmproxy's flow file, read back by a reader of tnetstrings that shares nothing with the writer.

The names and types below are those that mitmproxy's own reader insists on for this version of the format.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.export.mitmproxy import Mitmproxy, tnetstring
from spliffctl.parts import Body
from spliffd.pb import spliff_pb2 as pb

NOTHING = (Body(), Body())
ADDRESS = (list, type(None))
TEXT = (str, type(None))
TIME = (float, type(None))
CONNECTION = {
    "id": str, "peername": ADDRESS, "sockname": ADDRESS, "transport_protocol": str, "error": TEXT, "tls": bool,
    "tls_version": TEXT, "cipher": TEXT, "alpn": (bytes, type(None)), "sni": TEXT, "alpn_offers": list,
    "cipher_list": list, "certificate_list": list, "timestamp_start": TIME, "timestamp_tls_setup": TIME,
    "timestamp_end": TIME,
}  # fmt: skip
MESSAGE = {
    "http_version": bytes, "headers": list, "content": bytes, "trailers": (list, type(None)),
    "timestamp_start": float, "timestamp_end": float,
}  # fmt: skip
PARTS = {
    "client_conn": {**CONNECTION, "mitmcert": type(None), "proxy_mode": str},
    "server_conn": {**CONNECTION, "address": ADDRESS, "timestamp_tcp_setup": TIME, "via": type(None)},
    "request": {
        **MESSAGE, "host": str, "port": int, "method": bytes, "scheme": bytes, "authority": bytes, "path": bytes,
    },
    "response": {**MESSAGE, "status_code": int, "reason": bytes},
    "websocket": {
        "messages": list, "closed_by_client": (bool, type(None)), "close_code": (int, type(None)),
        "close_reason": TEXT, "timestamp_end": TIME,
    },
}  # fmt: skip
FLOW = {
    "version": int, "type": str, "id": str, "error": (dict, type(None)), "intercepted": bool,
    "is_replay": type(None), "marked": str, "comment": str, "metadata": dict, "timestamp_created": float,
    "backup": type(None),
}  # fmt: skip


def body(data: bytes) -> Body:
    return Body(((0, data),)) if data else Body()


def read(data: bytes) -> tuple[Any, bytes]:
    """The first value of a tnetstring, and what follows it."""
    length, _, rest = data.partition(b":")
    assert str(int(length)).encode() == length
    payload, kind, rest = rest[: int(length)], rest[int(length) : int(length) + 1], rest[int(length) + 1 :]
    assert len(payload) == int(length)
    match kind:
        case b",":
            return payload, rest
        case b";":
            return payload.decode(), rest
        case b"#":
            return int(payload), rest
        case b"^":
            return float(payload), rest
        case b"!":
            return {b"true": True, b"false": False}[payload], rest
        case b"~":
            assert payload == b""
            return None, rest
        case b"]" | b"}":
            values = every(payload)
            if kind == b"]":
                return values, rest
            assert all(isinstance(key, str) for key in values[::2])
            return dict(zip(values[::2], values[1::2], strict=True)), rest
        case _:
            pytest.fail(f"type {kind!r}")


def every(data: bytes) -> list[Any]:
    values = []
    while data:
        value, data = read(data)
        values.append(value)
    return values


def check(state: dict[str, Any], layout: dict[str, Any]) -> None:
    assert set(layout) <= set(state), set(layout) - set(state)
    for name, kind in layout.items():
        # A bool is an int in Python; here it is not.
        assert isinstance(state[name], kind), name
        assert isinstance(state[name], bool) == (
            kind is bool or (isinstance(kind, tuple) and bool in kind and state[name] is not None)
        ), name


def flows(data: bytes) -> list[dict[str, Any]]:
    found = every(data)
    for flow in found:
        check(flow, FLOW)
        assert set(flow) == set(FLOW) | set(PARTS)
        for name, layout in PARTS.items():
            if flow[name] is not None:
                check(flow[name], layout)
                assert set(flow[name]) == set(layout)
        json.loads(flow["metadata"]["spliff"])
    return found


def test_an_exchange(build):
    exchange = build.exchange(
        request__path="/users?a=1", request__version="2", response__version="2", response__reason=""
    )
    exchange.request.headers.add(name="accept", value="*/*")
    exchange.response.headers.add(name="content-type", value="text/plain")
    exchange.response.body_size = 5
    (flow,) = flows(Mitmproxy().exchange(exchange, (Body(), body(b"hello"))))
    assert flow["version"] == 20
    assert flow["type"] == "http"
    assert flow["comment"] == "curl (403410), SOCKET_NESTED, xdp:eth0"
    assert json.loads(flow["metadata"]["spliff"])["process"]["comm"] == "curl"
    request, response = flow["request"], flow["response"]
    assert (request["method"], request["host"], request["port"]) == (b"GET", "api.example.com", 443)
    assert (request["path"], request["authority"]) == (b"/users?a=1", b"api.example.com")
    assert (request["http_version"], request["headers"]) == (b"HTTP/2.0", [[b"accept", b"*/*"]])
    assert (response["status_code"], response["content"]) == (200, b"hello")
    assert request["timestamp_start"] == pytest.approx(1795348859.346)
    assert response["timestamp_end"] - request["timestamp_start"] == pytest.approx(0.2933, abs=1e-5)
    assert flow["client_conn"]["peername"] == ["192.0.2.10", 48372]
    assert flow["server_conn"]["address"] == ["198.51.100.25", 443]
    assert flow["server_conn"]["sni"] == "api.example.com"


def test_a_server_is_the_accepter(build):
    (flow,) = flows(Mitmproxy().exchange(build.exchange(connection__role="server"), NOTHING))
    assert flow["client_conn"]["peername"] == ["198.51.100.25", 443]
    assert flow["server_conn"]["address"] == ["192.0.2.10", 48372]


def test_exchanges_of_a_connection_have_it_in_common(build):
    form = Mitmproxy()
    data = b"".join(form.exchange(build.exchange(n, connection__packets_sent=n), NOTHING) for n in (1, 2))
    first, second = flows(data + form.exchange(build.exchange(3, connection__socket_cookie=4), NOTHING))[:2]
    assert first["server_conn"]["id"] == second["server_conn"]["id"]
    assert first["id"] != second["id"]


def test_no_response(build):
    exchange = build.exchange(completeness__state="response_missing")
    exchange.ClearField("response")
    (flow,) = flows(Mitmproxy().exchange(exchange, NOTHING))
    assert flow["response"] is None
    assert flow["error"]["msg"] == "spliff: response missing"
    assert flow["marked"] == ":warning:"


def test_headers_fit_a_body_that_the_daemon_decoded(build):
    exchange = build.exchange(
        response__content_encoding="gzip", response__body_size=40, response__decoded_size=11
    )
    for name, value in (("Content-Length", "40"), ("Content-Encoding", "gzip"), ("Server", "x")):
        exchange.response.headers.add(name=name, value=value)
    (flow,) = flows(Mitmproxy().exchange(exchange, (Body(), body(b"hello world"))))
    assert flow["response"]["headers"] == [[b"Content-Length", b"11"], [b"Server", b"x"]]
    assert "body decoded by spliffd, was gzip in 40 bytes" in flow["comment"]


def test_a_websocket_is_one_flow(build):
    form = Mitmproxy()
    exchange = build.exchange(response__status=101, protocol="websocket", part_key=7)

    def said(direction: str, kind: str, data: bytes) -> bytes:
        return form.message(
            pb.Message(
                time_ns=build.noon, exchange_part_key=7, direction=direction, type=kind, data=data,
                close_code=int.from_bytes(data[:2], "big") if kind == "close" else 0,
                connection=exchange.connection,
            )
        )  # fmt: skip

    assert form.exchange(exchange, NOTHING) == b""
    assert said("sent", "text", b"hello") == said("received", "binary", b"\0") == b""
    assert said("received", "ping", b"") == said("received", "close", b"\x03\xe9gone") == b""
    (flow,) = flows(said("sent", "close", b"\x03\xe9"))
    moment = build.noon / 1e9
    assert flow["websocket"] == {
        "messages": [
            [1, True, b"hello", moment, False, False],
            [2, False, b"\0", moment, False, False],
        ],
        "closed_by_client": False, "close_code": 1001, "close_reason": "gone", "timestamp_end": moment,
    }  # fmt: skip


def test_an_open_websocket_is_written_at_the_end(build):
    form = Mitmproxy()
    exchange = build.exchange(response__status=101, protocol="websocket", part_key=7)
    assert form.exchange(exchange, NOTHING) == b""
    (flow,) = flows(form.end())
    assert flow["websocket"]["close_code"] is None
    assert form.end() == b""


def test_what_has_no_place_is_counted():
    form = Mitmproxy()
    assert form.chunk(pb.Chunk(data=b"x")) == form.loss(pb.Loss(count=1)) == b""
    assert form.handshake(pb.Handshake()) == form.message(pb.Message()) == form.head() == form.tail() == b""
    assert form.left_out() == {"raw chunk": 1, "WebSocket message": 1}


def test_a_value_that_a_tnetstring_does_not_know():
    with pytest.raises(TypeError, match="no set"):
        tnetstring({"a": {1}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    )
)
def test_every_value_comes_back(value):
    assert read(tnetstring(value)) == (value, b"")


@given(st.data())
def test_anything_of_the_contract_gives_a_flow(build, data):
    exchange = data.draw(build.any_message(pb.Exchange, st.text(max_size=12)))
    form = Mitmproxy()
    parts = st.binary(max_size=40).map(body)
    written = form.exchange(exchange, (data.draw(parts), data.draw(parts)))
    written += form.message(data.draw(build.any_message(pb.Message, st.text(max_size=12))))
    assert len(flows(written + form.end())) == 1
