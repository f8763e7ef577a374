"""HAR 1.2 (http://www.softwareishard.com/blog/har-12-spec/): what browsers' developer tools open.

Takes exchanges as they come, returns one line of JSON for each, inside one object. What HAR has no name for
stands in fields that begin with an underscore, as its specification asks: process, connection, correlation,
TLS and completeness under their names in the contract, WebSocket messages as Chromium writes them, losses
at the end of the log. Bodies are without content coding where that can be undone; bytes that are not text are
base64. Times that were not measured are -1 where HAR allows that, 0 where it does not.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from spliffctl.export import content
from spliffctl.export.upgrades import Upgraded, Upgrades, is_upgrade
from spliffctl.render import wire
from spliffctl.render.body import encoding_of
from spliffctl.render.json import to_json

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb

MAX_LOSSES = 1000
"""Losses listed one by one; what comes later is added to the last of its kind, or to the last of all."""

_URI = "%:/?#[]@!$&'()*+,;=-._~"
"""Characters that a URI may hold (RFC 3986, 2); others of a path are percent-encoded."""

_OPCODES = {"continuation": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
_VERSIONS = {"http1": "HTTP/1.1", "http2": "HTTP/2", "grpc": "HTTP/2"}
_ATTRIBUTE = re.compile(r"\s*([^=;]+?)\s*(?:=\s*([^;]*?)\s*)?(?:;|$)")


class Har:
    """The format: one instance for one capture, whatever number of files it is written to."""

    binary = False

    def __init__(self) -> None:
        self._first = True
        self._losses: list[dict[str, Any]] = []
        self._upgrades = Upgrades()
        self._chunks = 0

    def head(self) -> bytes:
        """The object up to its list of entries."""
        from importlib.metadata import version

        self._first = True
        self._losses = []
        creator = json.dumps({"name": "spliffctl", "version": version("spliff")})
        return f'{{"log": {{"version": "1.2", "creator": {creator}, "pages": [], "entries": ['.encode()

    def exchange(self, exchange: pb.Exchange, bodies: tuple[Body, Body]) -> bytes:
        """An entry; that of a WebSocket waits for its messages."""
        if is_upgrade(exchange):
            return self._entries(self._upgrades.add(exchange, bodies))
        return self._entry(exchange, bodies, None)

    def message(self, message: pb.Message) -> bytes:
        """Goes into the entry of its exchange."""
        return self._entries(self._upgrades.message(message))

    def handshake(self, handshake: pb.Handshake) -> bytes:
        """Nothing: HAR knows handshakes only as part of an exchange, whose ``_tls`` has it."""
        del handshake
        return b""

    def chunk(self, chunk: pb.Chunk) -> bytes:
        """Nothing: HAR is for HTTP."""
        del chunk
        self._chunks += 1
        return b""

    def loss(self, loss: pb.Loss) -> bytes:
        """Kept for the end of the log."""
        if len(self._losses) < MAX_LOSSES:
            self._losses.append(json.loads(to_json(loss)))
        else:
            last = self._losses[-1]
            last["reason"] = "several"
            last["count"] = str(int(last.get("count", 0)) + loss.count)
            last["last_time_ns"] = str(loss.last_time_ns)
        return b""

    def end(self) -> bytes:
        """The WebSockets that are still open."""
        return self._entries(self._upgrades.drain())

    def tail(self) -> bytes:
        """The end of entries, log and object."""
        return f'\n], "_losses": {json.dumps(self._losses)}}}}}\n'.encode()

    def left_out(self) -> dict[str, int]:
        """Raw chunks, and messages of WebSockets whose beginning is not in the file."""
        return {"raw chunk": self._chunks, "WebSocket message": self._upgrades.strays}

    def _entries(self, upgraded: list[Upgraded]) -> bytes:
        return b"".join([self._entry(one.exchange, one.bodies, one.messages) for one in upgraded])

    def _entry(
        self, exchange: pb.Exchange, bodies: tuple[Body, Body], messages: list[pb.Message] | None
    ) -> bytes:
        start = exchange.start_time_ns or exchange.first_byte_time_ns or exchange.end_time_ns
        wait = exchange.first_byte_ns / 1e6
        receive = max(0.0, exchange.duration_ns / 1e6 - wait)
        entry = {
            "startedDateTime": datetime.fromtimestamp(start / 1e9, UTC).isoformat(timespec="milliseconds"),
            "time": wait + receive,
            "request": _request(exchange, bodies[0]),
            "response": _response(exchange, bodies[1]),
            "cache": {},
            "timings": {
                "blocked": -1,
                "dns": -1,
                "connect": -1,
                "ssl": -1,
                "send": 0,
                "wait": wait,
                "receive": receive,
            },
            "_id": str(exchange.id),
        }
        connection = exchange.connection
        server = connection.local if connection.role == "server" else connection.remote
        if server.address:
            entry["serverIPAddress"] = server.address
        if connection.socket_cookie:
            entry["connection"] = str(connection.socket_cookie)
        if messages is not None:
            entry["_resourceType"] = "websocket"
            entry["_webSocketMessages"] = [_message(message) for message in messages]
        ours = "".join(f', "_{name}": {text}' for name, text in content.facts(exchange))
        comma, self._first = ("" if self._first else ","), False
        return f"{comma}\n{json.dumps(entry)[:-1]}{ours}}}".encode()


def _request(exchange: pb.Exchange, body: Body) -> dict[str, Any]:
    request = exchange.request
    headers, trailers = content.fields(request)
    query = request.path.partition("?")[2]
    result = {
        **_common(exchange, request, headers, trailers),
        "method": request.method,
        "url": quote(wire.url(exchange), safe=_URI),
        "cookies": _cookies(headers),
        "queryString": [
            {"name": name, "value": text} for name, text in parse_qsl(query, keep_blank_values=True)
        ],
    }
    if request.body_size or body.segments:
        text = _text(request, body, "_encoding")
        del text["_size"]
        result["postData"] = {"mimeType": request.content_type, **text}
    return result


def _response(exchange: pb.Exchange, body: Body) -> dict[str, Any]:
    response = exchange.response
    headers, trailers = content.fields(response)
    text = _text(response, body, "encoding")
    size = text.pop("_size")
    body_content = {"size": size, "mimeType": response.content_type or "x-unknown", **text}
    if response.content_encoding and size > response.body_size:
        body_content["compression"] = size - response.body_size
    result = {
        **_common(exchange, response, headers, trailers),
        "status": response.status,
        "statusText": response.reason,
        "cookies": [_set_cookie(value) for name, value in headers if name.lower() == "set-cookie"],
        "content": body_content,
        "redirectURL": next((value for name, value in headers if name.lower() == "location"), ""),
    }
    if not response.status:
        result["_error"] = exchange.completeness.state or "response_missing"
    return result


def _common(
    exchange: pb.Exchange,
    message: pb.Request | pb.Response,
    headers: content.Fields,
    trailers: content.Fields,
) -> dict[str, Any]:
    version = f"HTTP/{message.version}" if message.version else _VERSIONS.get(exchange.protocol, "unknown")
    # The overhead is that of the header only where nothing else of the message is framing.
    plain = exchange.protocol == "http1" and not any(
        name.lower() == "transfer-encoding" for name, _ in headers
    )
    result: dict[str, Any] = {
        "httpVersion": version,
        "headers": [{"name": name, "value": value} for name, value in headers],
        "headersSize": message.overhead_size if plain and message.overhead_size else -1,
        "bodySize": message.body_size,
    }
    if trailers:
        result["_trailers"] = [{"name": name, "value": value} for name, value in trailers]
    return result


def _text(message: pb.Request | pb.Response, body: Body, encoding_field: str) -> dict[str, Any]:
    """Text (or base64) of a body, its size without coding as ``_size``, and what is missing of it."""
    data = content.decoded(message, body)
    result: dict[str, Any] = {}
    if data is None:
        data = body.data
        result["_contentEncoding"] = message.content_encoding
        size = len(data)
    else:
        size = len(data) + body.missing if data else message.decoded_size or message.body_size
    result["_size"] = size
    if body.missing:
        result["_missingBytes"] = body.missing
    if not data:
        return result
    encoding = "" if "_contentEncoding" in result else encoding_of(data, message.content_type)
    try:
        result["text"] = data.decode(encoding) if encoding else None
    except UnicodeDecodeError:
        encoding = ""
    if not encoding:
        result["text"] = b64encode(data).decode("ascii")
        result[encoding_field] = "base64"
    return result


def _cookies(headers: content.Fields) -> list[dict[str, Any]]:
    result = []
    for name, value in headers:
        if name.lower() == "cookie":
            pairs = [pair.strip().partition("=") for pair in value.split(";") if pair.strip()]
            result += [{"name": key, "value": text} for key, _, text in pairs]
    return result


def _set_cookie(value: str) -> dict[str, Any]:
    """A cookie with its attributes (RFC 6265, 4.1.1)."""
    first, *attributes = _ATTRIBUTE.findall(value) or [("", "")]
    cookie: dict[str, Any] = {"name": first[0], "value": first[1]}
    for name, text in attributes:
        match name.lower():
            case "path" | "domain" as known:
                cookie[known] = text
            case "httponly":
                cookie["httpOnly"] = True
            case "secure":
                cookie["secure"] = True
            case "expires":
                try:
                    cookie["expires"] = parsedate_to_datetime(text).isoformat()
                except ValueError:
                    cookie["_expires"] = text
    return cookie


def _message(message: pb.Message) -> dict[str, Any]:
    """A WebSocket message as Chromium's developer tools write it; binary payload is base64."""
    opcode = _OPCODES.get(message.type, 2)
    text = None
    if opcode == 1:
        try:
            text = message.data.decode()
        except UnicodeDecodeError:
            text = None
    # Seen from the opener, as a browser is; a server's own messages are received there.
    along = (message.direction == "sent") == (message.connection.role != "server")
    result = {
        "type": "send" if along else "receive",
        "time": message.time_ns / 1e9,
        "opcode": opcode if text is not None or opcode != 1 else 2,
        "data": text if text is not None else b64encode(message.data).decode("ascii"),
    }
    if message.completeness.state not in ("", "complete"):
        result["_completeness"] = message.completeness.state
    return result
