"""HAR: every entry against a schema of the specification, and what an entry says."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffctl.export.har import Har
from spliffctl.parts import Body
from spliffd.pb import spliff_pb2 as pb
from tests.support.har_schema import HAR
from tests.support.readers import har_validator

NOTHING = (Body(), Body())


class Both:
    """Our own schema of the specification, which is stricter, and the one that everybody uses."""

    own, published = jsonschema.Draft202012Validator(HAR), har_validator()

    def validate(self, log: dict) -> None:
        self.own.validate(log)
        self.published.validate(log)


VALIDATOR = Both()


def test_the_published_schema_refuses_what_is_no_har():
    with pytest.raises(jsonschema.ValidationError, match="'version' is a required property"):
        har_validator().validate({"log": {"creator": {"name": "x"}, "entries": []}})
    with pytest.raises(jsonschema.ValidationError, match="is not of type"):
        har_validator().validate(
            {"log": {"version": 1, "creator": {"name": "x", "version": "1"}, "entries": 5}}
        )


def body(data: bytes) -> Body:
    return Body(((0, data),)) if data else Body()


def written(*pieces: bytes, har: Har) -> dict:
    log = json.loads(har.head() + b"".join(pieces) + har.end() + har.tail())
    VALIDATOR.validate(log)
    return log["log"]


def one_entry(exchange: pb.Exchange, bodies=NOTHING) -> dict:
    har = Har()
    head = har.head()
    log = json.loads(head + har.exchange(exchange, bodies) + har.end() + har.tail())
    VALIDATOR.validate(log)
    (entry,) = log["log"]["entries"]
    return entry


def test_an_exchange(build):
    entry = one_entry(build.exchange(request__path="/users?a=1&b=%20x"))
    assert entry["startedDateTime"] == "2026-11-22T12:00:59.346+00:00"
    assert entry["time"] == pytest.approx(294.3)
    assert entry["timings"]["wait"] == pytest.approx(280.0)
    assert entry["timings"]["receive"] == pytest.approx(14.3)
    assert entry["request"]["url"] == "https://api.example.com/users?a=1&b=%20x"
    assert entry["request"]["queryString"] == [{"name": "a", "value": "1"}, {"name": "b", "value": " x"}]
    assert entry["response"]["status"] == 200
    assert entry["response"]["bodySize"] == 1234
    assert entry["response"]["content"] == {"size": 1234, "mimeType": "application/json"}
    assert entry["serverIPAddress"] == "198.51.100.25"
    assert entry["connection"] == str(2**63 + 5)
    assert entry["_process"]["comm"] == "curl"
    assert entry["_connection"]["local"] == {"address": "192.0.2.10", "port": 48372}
    assert entry["_correlation"]["method"] == "SOCKET_NESTED"
    assert entry["_tls"]["sni"] == "api.example.com"
    assert entry["_completeness"] == {"state": "complete"}


def test_a_server_is_the_accepter(build):
    entry = one_entry(build.exchange(connection__role="server"))
    assert entry["serverIPAddress"] == "192.0.2.10"


def test_bodies_are_text_or_base64(build):
    exchange = build.exchange(request__content_type="application/octet-stream", request__body_size=4)
    entry = one_entry(exchange, (body(b"\0\xff\0\xfe"), body('{"name": "Zoë"}'.encode())))
    post = entry["request"]["postData"]
    assert post["_encoding"] == "base64"
    assert b64decode(post["text"]) == b"\0\xff\0\xfe"
    assert entry["response"]["content"]["text"] == '{"name": "Zoë"}'
    assert "encoding" not in entry["response"]["content"]


def test_content_coding_is_undone(build):
    text = b"hello " * 1000
    packed = gzip.compress(text)
    exchange = build.exchange(response__content_encoding="gzip", response__body_size=len(packed))
    content = one_entry(exchange, (Body(), body(packed)))["response"]["content"]
    assert content["text"].encode() == text
    assert content["size"] == len(text)
    assert content["compression"] == len(text) - len(packed)


def test_a_cut_body_of_a_coding_is_left_as_it_is(build):
    packed = gzip.compress(bytes(range(256)) * 50)[:100]
    exchange = build.exchange(response__content_encoding="gzip", response__body_size=5000)
    content = one_entry(exchange, (Body(), body(packed)))["response"]["content"]
    assert b64decode(content["text"]) == packed
    assert content["_contentEncoding"] == "gzip"


def test_a_hole_is_told(build):
    exchange = build.exchange()
    cut = Body(((0, b"abc"), (10, b"def")), ((3, 7),))
    content = one_entry(exchange, (Body(), cut))["response"]["content"]
    assert content["text"] == "abcdef"
    assert content["_missingBytes"] == 7


def test_masked_secrets_stay_masked(build):
    exchange = build.exchange()
    exchange.request.headers.add(name="authorization").masked.CopyFrom(pb.Masked(length=12, hash="ab34cd56"))
    assert one_entry(exchange)["request"]["headers"] == [
        {"name": "authorization", "value": "***(12:ab34cd56)"}
    ]


def test_cookies_trailers_and_redirect(build):
    exchange = build.exchange(response__status=302)
    exchange.request.headers.add(name="Cookie", value="a=1; b=2=3")
    for name, value in (
        ("Location", "/next"),
        (
            "Set-Cookie",
            "sid=x; Path=/; Secure; HttpOnly; Expires=Wed, 21 Oct 2026 07:28:00 GMT; SameSite=Lax",
        ),
        ("grpc-status", "0"),
    ):
        exchange.response.headers.add(name=name, value=value)
    exchange.response.trailer_start = 2
    entry = one_entry(exchange)
    assert entry["request"]["cookies"] == [{"name": "a", "value": "1"}, {"name": "b", "value": "2=3"}]
    (cookie,) = entry["response"]["cookies"]
    assert cookie == {
        "name": "sid", "value": "x", "path": "/", "secure": True, "httpOnly": True,
        "expires": "2026-10-21T07:28:00+00:00",
    }  # fmt: skip
    assert entry["response"]["redirectURL"] == "/next"
    assert entry["response"]["_trailers"] == [{"name": "grpc-status", "value": "0"}]


def test_no_response(build):
    exchange = build.exchange(completeness__state="response_missing")
    exchange.ClearField("response")
    response = one_entry(exchange)["response"]
    assert response["status"] == 0
    assert response["_error"] == "response_missing"


def upgrade(build, key: int = 7) -> pb.Exchange:
    return build.exchange(response__status=101, protocol="websocket", part_key=key)


def said(direction: str, kind: str, data: bytes, key: int = 7) -> pb.Message:
    return pb.Message(
        time_ns=10**18, exchange_part_key=key, direction=direction, type=kind, data=data,
        connection=pb.Connection(role="client"),
    )  # fmt: skip


def test_websocket_messages_are_in_the_entry_of_their_exchange(build):
    har = Har()
    head = har.head()
    pieces = [
        har.exchange(upgrade(build), NOTHING),
        har.exchange(build.exchange(2), NOTHING),
        har.message(said("sent", "text", "hé".encode())),
        har.message(said("received", "binary", b"\0\1")),
        har.message(said("received", "text", b"\xff")),
        har.message(said("sent", "close", b"\x03\xe8")),
        har.message(said("received", "close", b"\x03\xe8")),
        har.message(said("sent", "text", b"after the end")),
    ]
    assert [bool(piece) for piece in pieces] == [False, True, False, False, False, False, True, False]
    log = json.loads(head + b"".join(pieces) + har.end() + har.tail())
    VALIDATOR.validate(log)
    entry = log["log"]["entries"][1]
    assert [(m["type"], m["opcode"], m["data"]) for m in entry["_webSocketMessages"]] == [
        ("send", 1, "hé"),
        ("receive", 2, "AAE="),
        ("receive", 2, "/w=="),  # not text, whatever its type says
        ("send", 8, "A+g="),
        ("receive", 8, "A+g="),
    ]
    assert har.left_out()["WebSocket message"] == 1


def test_what_has_no_place_is_counted_and_losses_are_told():
    har = Har()
    head = har.head()
    for number in range(1, 1004):
        assert har.loss(pb.Loss(stage="subscriber", reason="queue_full", count=number)) == b""
    assert har.chunk(pb.Chunk(data=b"x")) == b""
    assert har.handshake(pb.Handshake()) == b""
    log = json.loads(head + har.end() + har.tail())
    VALIDATOR.validate(log)
    losses = log["log"]["_losses"]
    assert losses[0] == {"stage": "subscriber", "reason": "queue_full", "count": "1"}
    assert len(losses) == 1000
    assert sum(int(loss["count"]) for loss in losses) == sum(range(1, 1004))
    assert har.left_out()["raw chunk"] == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_anything_of_the_contract_gives_a_valid_file(build, data):
    times = st.integers(0, 2**62)
    exchange = data.draw(build.any_message(pb.Exchange, st.text(max_size=12)))
    for name in ("start_time_ns", "first_byte_time_ns", "end_time_ns"):
        setattr(exchange, name, data.draw(times))
    for end in (exchange.connection.local, exchange.connection.remote):
        end.address = data.draw(st.just("") | st.ip_addresses().map(str))
    parts = st.binary(max_size=40).map(body)
    message = data.draw(build.any_message(pb.Message, st.text(max_size=12)))
    har = Har()
    head = har.head()
    pieces = [
        har.exchange(exchange, (data.draw(parts), data.draw(parts))),
        har.message(message),
        har.loss(data.draw(build.any_message(pb.Loss, st.text(max_size=12)))),
    ]
    log = json.loads(head + b"".join(pieces) + har.end() + har.tail())
    VALIDATOR.validate(log)
    assert len(log["log"]["entries"]) == 1
