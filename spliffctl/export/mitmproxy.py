"""mitmproxy's flow file: what `mitmproxy -r`, `mitmweb -r` and `mitmdump -nr` read.

Takes exchanges as they come, returns one flow for each: the state of an HTTPFlow as a tnetstring (a length, a
colon, the payload, a type's letter). The version of the format is that of mitmproxy 10; later ones read it.
Process, evidence and what is missing are the flow's comment, and with everything else the contract knows
they are in its metadata as JSON. Messages of a WebSocket are part of its flow. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spliffctl.export import content
from spliffctl.export.upgrades import Upgraded, Upgrades, is_upgrade
from spliffctl.render import wire
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb

FORMAT = 20
"""mitmproxy's number for the layout below."""

_TYPES = {"text": 1, "continuation": 0}
"""Opcodes of messages that are not binary."""

_CONTROL = ("close", "ping", "pong")


def tnetstring(value: Any) -> bytes:
    """A value as tnetstring; text is mitmproxy's own addition, with the letter ``;``."""
    match value:
        case None:
            return b"0:~"
        case bool():
            return b"4:true!" if value else b"5:false!"
        case int():
            data, kind = b"%d" % value, b"#"
        case float():
            data, kind = repr(value).encode("ascii"), b"^"
        case bytes():
            data, kind = value, b","
        case str():
            data, kind = value.encode("utf-8", "backslashreplace"), b";"
        case list() | tuple():
            data, kind = b"".join([tnetstring(one) for one in value]), b"]"
        case dict():
            data, kind = b"".join([tnetstring(one) for pair in value.items() for one in pair]), b"}"
        case _:
            raise TypeError(f"a tnetstring has no {type(value).__name__}")
    return b"%d:%b%b" % (len(data), data, kind)


class Mitmproxy:
    """The format: one instance for one capture, whatever number of files it is written to."""

    binary = True

    def __init__(self) -> None:
        self._upgrades = Upgrades()
        self._chunks = 0

    def head(self) -> bytes:
        """A flow file has none."""
        return b""

    def exchange(self, exchange: pb.Exchange, bodies: tuple[Body, Body]) -> bytes:
        """A flow; that of a WebSocket waits for its messages."""
        if is_upgrade(exchange):
            return _flows(self._upgrades.add(exchange, bodies))
        return tnetstring(_flow(exchange, bodies))

    def message(self, message: pb.Message) -> bytes:
        """Goes into the flow of its exchange."""
        return _flows(self._upgrades.message(message))

    def handshake(self, handshake: pb.Handshake) -> bytes:
        """Nothing: mitmproxy knows handshakes only as part of a flow."""
        del handshake
        return b""

    def chunk(self, chunk: pb.Chunk) -> bytes:
        """Nothing: a TCP flow would have to wait for the end of its connection, which is not told."""
        del chunk
        self._chunks += 1
        return b""

    def loss(self, loss: pb.Loss) -> bytes:
        """Nothing: the format has no place for it; the summary line tells it."""
        del loss
        return b""

    def end(self) -> bytes:
        """The WebSockets that are still open."""
        return _flows(self._upgrades.drain())

    def tail(self) -> bytes:
        """A flow file has none."""
        return b""

    def left_out(self) -> dict[str, int]:
        """Raw chunks, and messages of WebSockets whose beginning is not in the file."""
        return {"raw chunk": self._chunks, "WebSocket message": self._upgrades.strays}


def _flows(upgraded: list[Upgraded]) -> bytes:
    flows = []
    for one in upgraded:
        flow = _flow(one.exchange, one.bodies)
        flow["websocket"] = _websocket(one)
        flows.append(tnetstring(flow))
    return b"".join(flows)


def _flow(exchange: pb.Exchange, bodies: tuple[Body, Body]) -> dict[str, Any]:
    connection = exchange.connection
    local, remote = connection.local, connection.remote
    opener, accepter = (remote, local) if connection.role == "server" else (local, remote)
    asked, answered = exchange.request, exchange.response
    request = content.consistent(asked, bodies[0])
    response = content.consistent(answered, bodies[1])
    start = _seconds(exchange.start_time_ns or exchange.first_byte_time_ns or exchange.end_time_ns)
    first = _seconds(exchange.first_byte_time_ns or exchange.end_time_ns) or start
    end = _seconds(exchange.end_time_ns) or first
    name, _, port = asked.authority.rpartition(":")
    host = name if port.isdigit() else asked.authority
    state = exchange.completeness.state
    key = f"-{connection.netns_cookie}-{connection.socket_cookie or exchange.id}-{wire.pair(connection)}"
    missing = "" if answered.status else state.replace("_", " ") or "no response was seen"
    return {
        "version": FORMAT,
        "type": "http",
        "id": f"spliff-{exchange.id}-{exchange.start_time_ns}",
        "error": {"msg": f"spliff: {missing}", "timestamp": end} if missing else None,
        "intercepted": False,
        "is_replay": None,
        "marked": "" if state in ("", "complete") else ":warning:",
        "comment": _comment(exchange, request, response),
        "metadata": {"spliff": _metadata(exchange)},
        "timestamp_created": start,
        "backup": None,
        "client_conn": _connection(exchange, f"client{key}", opener, accepter, start),
        "server_conn": _server(exchange, f"server{key}", accepter, start),
        "request": {
            "host": host or exchange.tls.sni or accepter.address,
            "port": accepter.port,
            "method": _bytes(asked.method),
            "scheme": _bytes(asked.scheme or "https"),
            "authority": _bytes(asked.authority) if _version(exchange, asked) != b"HTTP/1.1" else b"",
            "path": _bytes(asked.path),
            **_message(request, _version(exchange, asked), start, start),
        },
        "response": {
            "status_code": answered.status,
            "reason": _bytes(answered.reason),
            **_message(response, _version(exchange, answered), first, end),
        }
        if answered.status
        else None,
        "websocket": None,
    }


def _message(message: content.Message, version: bytes, start: float, end: float) -> dict[str, Any]:
    pairs = [(_bytes(name), _bytes(value)) for name, value in message.headers]
    trailers = [(_bytes(name), _bytes(value)) for name, value in message.trailers]
    return {
        "http_version": version,
        "headers": pairs,
        "content": message.body,
        "trailers": trailers or None,
        "timestamp_start": start,
        "timestamp_end": end,
    }


def _version(exchange: pb.Exchange, message: pb.Request | pb.Response) -> bytes:
    version = message.version or ("2" if exchange.stream_id else "1.1")
    return _bytes(f"HTTP/{version}" if "." in version else f"HTTP/{version}.0")


def _connection(
    exchange: pb.Exchange, key: str, peer: pb.Endpoint, own: pb.Endpoint, start: float
) -> dict[str, Any]:
    """What the two connections of a flow have in common, in the shape of the client's."""
    tls = exchange.tls
    return {
        "id": key,
        "peername": _address(peer),
        "sockname": _address(own),
        "transport_protocol": "tcp",
        "error": None,
        "tls": True,
        "tls_version": tls.version.replace("TLSv1.0", "TLSv1") or None,
        "cipher": tls.cipher or None,
        "alpn": _bytes(tls.alpn) if tls.alpn else None,
        "sni": tls.sni or None,
        "alpn_offers": [],
        "cipher_list": [],
        "certificate_list": [],
        "mitmcert": None,
        "proxy_mode": "regular",
        "timestamp_start": start,
        "timestamp_tls_setup": None,
        "timestamp_end": None,
    }


def _server(exchange: pb.Exchange, key: str, accepter: pb.Endpoint, start: float) -> dict[str, Any]:
    state = _connection(exchange, key, accepter, _opener(exchange), start)
    del state["mitmcert"], state["proxy_mode"]
    return {**state, "address": _address(accepter), "timestamp_tcp_setup": None, "via": None}


def _opener(exchange: pb.Exchange) -> pb.Endpoint:
    connection = exchange.connection
    return connection.remote if connection.role == "server" else connection.local


def _websocket(upgraded: Upgraded) -> dict[str, Any]:
    """The messages, and how it was closed."""
    messages = []
    state: dict[str, Any] = {
        "closed_by_client": None,
        "close_code": None,
        "close_reason": None,
        "timestamp_end": None,
    }
    for message in upgraded.messages:
        from_client = (message.direction == "sent") == (message.connection.role != "server")
        time = _seconds(message.time_ns)
        if message.type == "close":
            if state["closed_by_client"] is None:
                state["closed_by_client"] = from_client
                state["close_code"] = message.close_code or 1005  # none was given (RFC 6455, 7.1.5)
                state["close_reason"] = message.data[2:].decode("utf-8", "backslashreplace")
                state["timestamp_end"] = time
        elif message.type not in _CONTROL:
            kind = _TYPES.get(message.type, 2)
            messages.append([kind, from_client, message.data, time, False, False])
    return {"messages": messages, **state}


def _comment(exchange: pb.Exchange, request: content.Message, response: content.Message) -> str:
    facts = [wire.process(exchange.process, exchange.connection), exchange.correlation.method]
    facts.append(wire.hooks(exchange.correlation.wire, exchange.connection))
    facts += [f"request's {note}" for note in request.notes]
    facts += [f"response's {note}" for note in response.notes]
    if exchange.completeness.state not in ("", "complete"):
        facts.append(exchange.completeness.state.replace("_", " "))
    return quote(", ".join(fact for fact in facts if fact))


def _metadata(exchange: pb.Exchange) -> str:
    """What the contract knows of an exchange beside its messages, as JSON."""
    return "{" + ", ".join(f'"{name}": {text}' for name, text in content.facts(exchange)) + "}"


def _address(end: pb.Endpoint) -> list[Any] | None:
    return [end.address, end.port] if end.address else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _seconds(time_ns: int) -> float:
    return time_ns / 1e9
