"""Serialises an exchange once, for all watchers: protobuf's wire format written by hand.

Takes what the correlation engine knows (``ConnectionFacts``) and what a parser read (``HttpExchange``);
returns pieces of one serialised ``Exchange`` of proto/spliff.proto. Concatenating pieces merges them, so what
is constant for a connection is encoded once and cached, bodies and the id are added by the api, and nothing
is encoded twice. By hand because it is several times faster than building messages. Field numbers come from
the generated descriptor, so they cannot drift from the contract. Secrets are masked here, before anything
leaves the worker (``heads``); what was masked is a piece of its own, made only where somebody may see it.

Strings of the wire are carried as they are when they are UTF-8, else as Latin-1 (proto strings must be
UTF-8). Unknown values are left out. Never looks into bodies.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from spliffd.correlation.facts import ConnectionFacts
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.messages import (
    COMPLETE,
    IN_PROGRESS,
    GrpcFacts,
    HttpExchange,
    HttpMessage,
    HttpRequest,
    HttpResponse,
)
from spliffd.protocols.protobuf import SMALL, Field, constants, size_table, to_utf8, varint, varint_field
from spliffd.worker.heads import Heads, Secrets
from spliffd.worker.summaries import told

_E: Final = pb.Exchange
_Q: Final = pb.Request
_R: Final = pb.Response


def _lengths(message: type[Message], name: str) -> list[bytes]:
    """Tag and length of a field, by length."""
    return size_table(Field(message, name).tag)


def _fields(message: type[Message], names: str) -> list[tuple[Field, str]]:
    """Fields with the attributes that they take their values from: "name" or "field=attribute"."""
    pairs = [name.partition("=") for name in names.split()]
    return [(Field(message, field), attribute or field) for field, _, attribute in pairs]


_PROCESS: Final = _fields(
    pb.Process,
    "pid tid start_time_ns=process_start_ns comm exe cmdline ppid uid user cgroup unit container_id",
)
_LOCAL: Final = _fields(pb.Endpoint, "address=local_address port=local_port")
_REMOTE: Final = _fields(pb.Endpoint, "address=remote_address port=remote_port")
_CONNECTION: Final = _fields(
    pb.Connection,
    "role family netns_cookie socket_cookie",
)
_INTERFACE: Final = Field(pb.Connection, "interface")
_PACKETS_SENT: Final = Field(pb.Connection, "packets_sent")
_PACKETS_RECEIVED: Final = Field(pb.Connection, "packets_received")
_BYTES_SENT: Final = Field(pb.Connection, "bytes_sent")
_BYTES_RECEIVED: Final = Field(pb.Connection, "bytes_received")
_CORRELATION: Final = _fields(pb.Correlation, "method=correlation_method confidence")
_TLS: Final = _fields(pb.Tls, "library version=tls_version cipher alpn sni handshake_ns ja4")
_GRPC: Final = _fields(
    pb.Grpc,
    "service method message request_messages response_messages encoding request_message_bytes"
    " response_message_bytes compressed_messages",
)
_PROCESS_OF: Final = Field(_E, "process")
_CONNECTION_OF: Final = Field(_E, "connection")
_CORRELATION_OF: Final = Field(_E, "correlation")
_TLS_OF: Final = Field(_E, "tls")
_GRPC_OF: Final = Field(_E, "grpc")
_COMPLETENESS_OF: Final = Field(_E, "completeness")
_LOCAL_OF: Final = Field(pb.Connection, "local")
_REMOTE_OF: Final = Field(pb.Connection, "remote")
_PATH_OF: Final = Field(pb.Connection, "path")
_HOP_PACKETS: Final = Field(pb.PathHop, "packets")
_RESUMED: Final = Field(pb.Tls, "resumed")
_GRPC_STATUS: Final = Field(pb.Grpc, "status")

# Fields of an exchange, in the order in which they are written.
_PROTOCOL: Final = Field(_E, "protocol")
_STREAM: Final = Field(_E, "stream_id")
_PART_KEY: Final = Field(_E, "part_key")
_START: Final = Field(_E, "start_time_ns").tag
_FIRST_BYTE: Final = Field(_E, "first_byte_time_ns").tag
_END: Final = Field(_E, "end_time_ns").tag
_DURATION: Final = Field(_E, "duration_ns").tag
_TO_FIRST_BYTE: Final = Field(_E, "first_byte_ns").tag
_REQUEST: Final = _lengths(_E, "request")
_RESPONSE: Final = _lengths(_E, "response")
_WIRE: Final = Field(pb.Correlation, "wire")
_ATTEMPTS: Final = Field(pb.Correlation, "attempts")
_LATENCY: Final = Field(pb.Correlation, "latency_ns")
_STATE: Final = Field(pb.Completeness, "state")
_MISSING: Final = Field(pb.Completeness, "missing_bytes")
_GAP: Final = Field(pb.Completeness, "gap_offset")
_CAUSE: Final = Field(pb.Completeness, "cause")

# Fields of both halves: the contract gives them the same numbers in Request and Response.
_HALF: Final = _fields(
    _Q,
    "headers body body_size content_type body_offset overhead_size decoded_size content_encoding version"
    " trailer_start",
)
if any(field.tag != Field(_R, name).tag for field, name in _HALF):
    raise ImportError("Request and Response differ in the numbers of their common fields")  # pragma: no cover
_AUTHORITY: Final = Field(_Q, "authority")
_PATH: Final = _lengths(_Q, "path")
_BODY_SIZE: Final = Field(_Q, "body_size").tag
_OVERHEAD: Final = Field(_Q, "overhead_size").tag
_DECODED: Final = Field(_Q, "decoded_size")
_CONTENT_ENCODING: Final = Field(_Q, "content_encoding")
_TRAILERS: Final = Field(_Q, "trailer_start")
_INTERIM: Final = Field(_R, "interim")
_BODY: Final = Field(_Q, "body")
_BODY_OFFSET: Final = Field(_Q, "body_offset")

_REVEALED: Final = Field(_E, "revealed")
_OF_RESPONSE: Final = Field(pb.Revealed, "response")
_REVEALED_HEADER: Final = Field(pb.Revealed, "header")
_REVEALED_VALUE: Final = Field(pb.Revealed, "value")

_request_constants: Final = constants(
    (Field(_Q, "method"), Field(_Q, "scheme"), Field(_Q, "version")),
)
_response_constants: Final = constants((Field(_R, "status"), Field(_R, "reason"), Field(_R, "version")))

_COMPLETE: Final = _STATE.encode(COMPLETE)
_ON_THE_WIRE: Final = _COMPLETENESS_OF.encode(Field(pb.Completeness, "proof").encode("wire"))
_PROVED: Final = _COMPLETENESS_OF.encode(Field(pb.Completeness, "proof").encode("offsets"))
MAX_USUAL: Final = 64
"""Combinations of protocol and wire hook remembered; there are 15."""
_interface_constants: Final = constants((_INTERFACE,))
_hop_constants: Final = constants((Field(pb.PathHop, "interface"), Field(pb.PathHop, "hook")))
_type_constants: Final = constants((Field(_Q, "content_type"),))
_authority_constants: Final = constants((_AUTHORITY,))
_usual_constants: Final[dict[tuple[str, str], bytes]] = {}
"""Protocol, correlation and completeness of exchanges that are complete and never waited, by (protocol,
wire), which both come from the engine's own short lists."""
MAX_REMEMBERED: Final = 2048
"""Longest request or response without its body that is remembered with its field lines (``Block``)."""
_LOW_BITS: Final = 28
"""Low bits of a time that are encoded afresh; what is above changes every 0.27 s and is cached."""
_high = (-1, b"")


def connection_prefix(facts: ConnectionFacts) -> bytes:
    """The constant part: process, connection, correlation (method, confidence), tls. Cached in ``facts``."""
    tls = _facts(facts, _TLS)
    if facts.resumed is not None:
        tls += _RESUMED.tag + varint(facts.resumed)
    connection = (
        _LOCAL_OF.encode(_facts(facts, _LOCAL))
        + _REMOTE_OF.encode(_facts(facts, _REMOTE))
        + _facts(facts, _CONNECTION)
    )
    facts.prefix = prefix = (
        _PROCESS_OF.encode(_facts(facts, _PROCESS))
        + _CONNECTION_OF.encode(connection)
        + _CORRELATION_OF.encode(_facts(facts, _CORRELATION))
        + _TLS_OF.encode(tls)
        + (_PROVED if facts.from_start else b"")
    )
    facts.told = told(facts)
    return prefix


def traffic_piece(facts: ConnectionFacts) -> bytes:
    """What every packet changes: another piece of the connection. Cached in ``facts`` until the next look."""
    parts = [
        _interface_constants(facts.interface),
        _PACKETS_SENT.encode(facts.packets_sent),
        _PACKETS_RECEIVED.encode(facts.packets_received),
        _BYTES_SENT.encode(facts.bytes_sent),
        _BYTES_RECEIVED.encode(facts.bytes_received),
    ]
    for interface, hook, packets in facts.path:
        data = _hop_constants(interface, hook) + _HOP_PACKETS.encode(packets)
        parts += (_PATH_OF.tag, varint(len(data)), data)
    data = b"".join(parts)
    facts.traffic = piece = _CONNECTION_OF.encode(data)
    return piece


def exchange_bytes(
    facts: ConnectionFacts,
    exchange: HttpExchange,
    protocol: str,
    wire: str,
    attempts: int,
    latency_ns: int,
    wall_offset_ns: int,
    heads: Heads,
    reveal: bool,
) -> tuple[bytes, bytes]:
    """(public, secret): two pieces of one serialised Exchange, without id and bodies.

    ``wall_offset_ns`` turns the parser's clock into nanoseconds since the epoch. ``secret`` is made only with
    ``reveal``, and is empty where nothing is masked.
    """
    request, response = exchange.request, exchange.response
    of_request: Secrets | None = [] if reveal else None
    of_response: Secrets | None = [] if reveal else None
    prefix, traffic = facts.prefix, facts.traffic
    parts = [
        connection_prefix(facts) if prefix is None else prefix,
        traffic_piece(facts) if traffic is None else traffic,
    ]
    start = first_byte = 0
    if request is not None:
        start = request.start_ns
        parts += (_START, _time(start + wall_offset_ns))
        data = _request_bytes(request, heads, of_request)
        size = len(data)
        parts += (_REQUEST[size] if size < SMALL else varint_field(_REQUEST[0], size), data)
    if response is not None:
        first_byte = exchange.first_byte_ns
        data = _response_bytes(response, heads, of_response)
        size = len(data)
        parts += (_RESPONSE[size] if size < SMALL else varint_field(_RESPONSE[0], size), data)
    if first_byte and response is not None:
        end = response.end_ns
        parts += (_FIRST_BYTE, _time(first_byte + wall_offset_ns), _END, _time(end + wall_offset_ns))
        if request is not None:
            if end > start:
                parts += (_DURATION, varint(end - start))
            if first_byte > start:
                parts += (_TO_FIRST_BYTE, varint(first_byte - start))
    usual = _usual_constants.get((protocol, wire))
    if usual is None or attempts or latency_ns or exchange.state != COMPLETE or exchange.gap_offset:
        usual = _how_it_went(exchange, protocol, wire, attempts, latency_ns)
    parts.append(usual)
    if facts.proved and exchange.state != IN_PROGRESS:
        parts.append(_ON_THE_WIRE)  # in place of the prefix's
    if exchange.stream_id:
        parts.append(_STREAM.encode(exchange.stream_id))
    if exchange.part_key:
        parts.append(_PART_KEY.encode(exchange.part_key))
    if exchange.grpc is not None:
        parts.append(_grpc(exchange.grpc))
    secret = b""
    if of_request is not None and of_response is not None:
        secret = _secret_piece(request, heads, of_request, of_response)
    return b"".join(parts), secret


def _secret_piece(
    request: HttpRequest | None, heads: Heads, of_request: Secrets, of_response: Secrets
) -> bytes:
    """What was masked, as a piece that overrides (path, authority) or stands beside (headers)."""
    parts = []
    for response, secrets in ((False, of_request), (True, of_response)):
        for index, value in secrets:
            data = (
                _OF_RESPONSE.encode(response)
                + _REVEALED_HEADER.encode(index)
                + _REVEALED_VALUE.encode(to_utf8(value))
            )
            parts.append(_REVEALED.tag + varint(len(data)) + data)
    if request is not None:
        masker, data = heads.masker, b""
        if masker.path(request.path) != request.path:
            raw = to_utf8(request.path)
            data = varint_field(_PATH[0], len(raw)) + raw
        if masker.authority(request.authority) != request.authority:
            data += _AUTHORITY.encode(request.authority)
        if data:
            parts.append(varint_field(_REQUEST[0], len(data)) + data)
    return b"".join(parts)


def body_piece(response: bool, offset: int, data: bytes) -> bytes:
    """A serialised Exchange that holds nothing but body bytes from ``offset`` on."""
    half = _BODY.tag + varint(len(data)) + data + _BODY_OFFSET.encode(offset)
    return varint_field((_RESPONSE if response else _REQUEST)[0], len(half)) + half


def _facts(facts: ConnectionFacts | GrpcFacts, fields: list[tuple[Field, str]]) -> bytes:
    return b"".join([field.encode(getattr(facts, name)) for field, name in fields])


def _request_bytes(request: HttpRequest, heads: Heads, secrets: Secrets | None) -> bytes:
    head = heads.encode(request.block, secrets) if request.block is not None else None
    if head is not None:
        request.take_host(head[1])
    authority = request.authority
    block = request.block if head is not None and secrets is None else None
    like: tuple[int | str, ...] = ()
    if block is not None and block.repeats:
        like = (request.path, request.method, authority, request.scheme, request.version, *_sizes(request))
        if block.message_of == like:
            return block.message
    masker = heads.masker
    path = to_utf8(masker.path(request.path))
    size = len(path)
    parts = [
        _request_constants(request.method, request.scheme, request.version),
        _PATH[size] if size < SMALL else varint_field(_PATH[0], size),
        path,
        _authority_constants(masker.authority(authority)),
    ]
    _add_half(parts, request, head, heads, secrets)
    data = b"".join(parts)
    if like and block is not None and len(data) <= MAX_REMEMBERED:
        block.message_of, block.message = like, data
    return data


def _response_bytes(response: HttpResponse, heads: Heads, secrets: Secrets | None) -> bytes:
    head = heads.encode(response.block, secrets) if response.block is not None else None
    block = response.block if head is not None and secrets is None and not response.interim else None
    like: tuple[int | str, ...] = ()
    if block is not None and block.repeats:
        like = (response.status, response.reason, response.version, *_sizes(response))
        if block.message_of == like:
            return block.message
    parts = [_response_constants(response.status, response.reason, response.version)]
    _add_half(parts, response, head, heads, secrets)
    if response.interim:
        statuses = b"".join([varint(status) for status in response.interim])
        parts += (_INTERIM.tag, varint(len(statuses)), statuses)
    data = b"".join(parts)
    if like and block is not None and len(data) <= MAX_REMEMBERED:
        block.message_of, block.message = like, data
    return data


def _sizes(message: HttpMessage) -> tuple[int, int, int]:
    """What is written of a message besides its first line and fields; it has no trailers when unread."""
    return message.overhead_size, message.body_size, message.decoded_size


def _add_half(
    parts: list[bytes],
    message: HttpMessage,
    head: tuple[bytes, str] | None,
    heads: Heads,
    secrets: Secrets | None,
) -> None:
    if head is not None:
        parts.append(head[0])
    else:
        if secrets:
            secrets.clear()  # of a head that was given up half-way
        heads.add(parts, message.headers, message.ascii, secrets)
        if message.content_type:
            parts.append(_type_constants(message.content_type))
        if message.content_encoding:
            parts.append(_CONTENT_ENCODING.encode(message.content_encoding))
    parts += (_OVERHEAD, varint(message.overhead_size))
    if message.body_size:
        parts += (_BODY_SIZE, varint(message.body_size))
    if message.decoded_size:
        parts.append(_DECODED.encode(message.decoded_size))
    if message.trailer_start is not None:
        parts += (_TRAILERS.tag, varint(message.trailer_start))


def _how_it_went(exchange: HttpExchange, protocol: str, wire: str, attempts: int, latency_ns: int) -> bytes:
    """Protocol, correlation (what the prefix does not say) and completeness."""
    correlation = _WIRE.encode(wire) + _ATTEMPTS.encode(attempts) + _LATENCY.encode(latency_ns)
    completeness = (
        _STATE.encode(exchange.state)
        + _MISSING.encode(exchange.missing_bytes)
        + _GAP.encode(exchange.gap_offset or 0)
        + _CAUSE.encode(exchange.cause)
    )
    data = (
        _PROTOCOL.encode(protocol)
        + _CORRELATION_OF.encode(correlation)
        + _COMPLETENESS_OF.encode(completeness)
    )
    if completeness == _COMPLETE and not attempts and not latency_ns and len(_usual_constants) < MAX_USUAL:
        _usual_constants[protocol, wire] = data
    return data


def _grpc(grpc: GrpcFacts) -> bytes:
    data = _facts(grpc, _GRPC)
    if grpc.status is not None:
        data += _GRPC_STATUS.tag + varint(grpc.status)
    return _GRPC_OF.tag + varint(len(data)) + data


def _time(ns: int) -> bytes:
    """A varint of a time since the epoch, whose high part is cached."""
    global _high
    high = ns >> _LOW_BITS
    if high <= 0:
        return varint(ns)
    if high != _high[0]:
        _high = (high, varint(high))
    return bytes((ns & 127 | 128, ns >> 7 & 127 | 128, ns >> 14 & 127 | 128, ns >> 21 & 127 | 128)) + _high[1]
