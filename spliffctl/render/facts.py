"""Everything about an exchange that its two lines leave out, as names with values, ready to print.

Takes an exchange; returns headers as lines and the other facts as pairs. What came from the wire is quoted;
what is not known is left out. Never looks at a body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliffctl import units
from spliffctl.render import wire
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


def head(message: pb.Request | pb.Response) -> list[str]:
    """Headers in the order of the wire, trailers apart; a masked value shows its length and hash."""
    lines = []
    trailers = message.trailer_start if message.HasField("trailer_start") else len(message.headers)
    for index, header in enumerate(message.headers):
        if index == trailers:
            lines.append("(trailers)")
        value = quote(header.value)
        if header.HasField("masked"):
            value = f"***({header.masked.length}:{quote(header.masked.hash)})"
        lines.append(f"{quote(header.name)}: {value}")
    return lines


def facts(exchange: pb.Exchange, *, utc: bool) -> list[tuple[str, str]]:
    """Names and values of what is known."""
    return [
        (name, value)
        for name, value in (
            ("timing", _timing(exchange, units.Clock(utc=utc))),
            ("sizes", _sizes(exchange)),
            ("process", _process(exchange.process)),
            ("connection", _connection(exchange.connection)),
            ("correlation", _correlation(exchange.correlation, exchange.connection)),
            ("tls", _tls(exchange.tls)),
            ("grpc", _grpc(exchange)),
            ("complete", _completeness(exchange.completeness)),
        )
        if value
    ]


def _timing(exchange: pb.Exchange, clock: units.Clock) -> str:
    found = []
    if exchange.start_time_ns:
        start = exchange.start_time_ns
        found.append(f"started {clock.date_and_time(start)} ({clock.time_of_day(start)})")
    if exchange.first_byte_ns:
        found.append(f"first byte after {units.duration(exchange.first_byte_ns)}")
    if exchange.duration_ns:
        found.append(f"took {units.duration(exchange.duration_ns)}")
    return ", ".join(found)


def _sizes(exchange: pb.Exchange) -> str:
    found = []
    for name, message in (("request", exchange.request), ("response", exchange.response)):
        size = f"{name} {units.size(message.body_size)}"
        if message.decoded_size:
            size += f" ({units.size(message.decoded_size)} decoded)"
        found.append(f"{size} + {units.size(message.overhead_size)} head")
    return ", ".join(found)


def _process(process: pb.Process) -> str:
    found = [wire.process(process)]
    for name, value in (
        ("exe", process.exe),
        ("command", process.cmdline),
        ("parent", str(process.ppid or "")),
        ("user", f"{process.user} ({process.uid})" if process.user else str(process.uid)),
        ("unit", process.unit),
        ("container", process.container_id[:12]),
        ("cgroup", process.cgroup),
    ):
        if value:
            found.append(f"{name} {quote(value)}")
    return ", ".join(found)


def _connection(connection: pb.Connection) -> str:
    found = [wire.pair(connection)]
    for name, value in (
        ("role", connection.role),
        ("interface", connection.interface),
        ("cookie", f"{connection.socket_cookie:#x}" if connection.socket_cookie else ""),
    ):
        if value:
            found.append(f"{name} {quote(value)}")
    if connection.packets_sent or connection.packets_received:
        found.append(f"packets {connection.packets_sent:,} sent, {connection.packets_received:,} received")
    return ", ".join(found)


def _correlation(correlation: pb.Correlation, connection: pb.Connection) -> str:
    found = [quote(correlation.method) or "NONE"]
    hooks = wire.hooks(correlation.wire, connection)
    if hooks:
        found.append(hooks)
    if correlation.confidence:
        found.append(f"{quote(correlation.confidence)} confidence")
    if correlation.attempts:
        found.append(f"waited {units.duration(correlation.latency_ns)} in {correlation.attempts} attempts")
    return ", ".join(found)


def _tls(tls: pb.Tls) -> str:
    found = [quote(text) for text in (tls.library, tls.version, tls.cipher) if text]
    found += [
        f"{name} {quote(text)}"
        for name, text in (("alpn", tls.alpn), ("sni", tls.sni), ("ja4", tls.ja4))
        if text
    ]
    if tls.handshake_ns:
        found.append(f"handshake {units.duration(tls.handshake_ns)}")
    if tls.HasField("resumed"):
        found.append("resumed" if tls.resumed else "not resumed")
    return ", ".join(found)


def _grpc(exchange: pb.Exchange) -> str:
    if not exchange.HasField("grpc"):
        return ""
    call = exchange.grpc
    status = f", status {call.status} {quote(call.message)}".rstrip() if call.HasField("status") else ""
    return (
        f"{quote(call.service)}/{quote(call.method)}{status}, "
        f"{units.count(call.request_messages, 'message')} asked, {call.response_messages:,} answered"
    )


def _completeness(completeness: pb.Completeness) -> str:
    text = quote(completeness.state.replace("_", " "))
    if completeness.missing_bytes:
        text += f", {completeness.missing_bytes:,} bytes missing"
    return text
