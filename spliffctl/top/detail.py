"""Everything about one exchange, as lines: messages, timing, connection, process, correlation, TLS.

Takes an exchange and its bodies, returns lines that are safe to print; a heading begins with no blank, what
belongs to it is indented. Bodies are shown as ``watch -b`` shows them. Knows nothing of textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliffctl import units
from spliffctl.export import content
from spliffctl.render import wire
from spliffctl.render.colour import PLAIN
from spliffctl.render.content import content_lines
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffctl.top.history import Row
    from spliffd.pb import spliff_pb2 as pb

MAX_BODY_LINES = 2000
"""Lines shown of a body: what is kept of one is at most 16 KiB, but a decoded one may be long."""


def lines(row: Row, clock: units.Clock) -> list[str]:
    """The page."""
    exchange = row.exchange
    request, response = exchange.request, exchange.response
    result = [f"{request.method or '?'} {wire.url(exchange)}"]
    result += _message(request, row.bodies[0])
    status = f"{response.status} {response.reason}".strip() if response.status else "no response"
    result += ["", f"RESPONSE {status}", *_message(response, row.bodies[1]), ""]
    result += [*_timing(exchange, clock), "", *_connection(exchange), "", *_process(exchange.process), ""]
    result += [*_correlation(exchange), "", *_tls(exchange.tls)]
    # Bodies were quoted line by line; what is quoted already stays as it is.
    return [quote(line) for line in result]


def _message(message: pb.Request | pb.Response, body: Body) -> list[str]:
    headers, trailers = content.fields(message)
    result = [f"  {name}: {value}" for name, value in headers]
    if body.segments or body.holes:
        result.append("")
        for number, line in enumerate(content_lines(body, message, PLAIN, hexdump=False)):
            if number == MAX_BODY_LINES:
                result.append("    … more lines are not shown …")
                break
            result.append(line)
    elif message.body_size:
        result += ["", f"    {units.size(message.body_size)} of body, not sent"]
    if trailers:
        result += ["", *(f"  {name}: {value}" for name, value in trailers)]
    return result


def _facts(heading: str, facts: list[tuple[str, str]]) -> list[str]:
    return [heading, *(f"  {name:<12} {value}" for name, value in facts if value)]


def _timing(exchange: pb.Exchange, clock: units.Clock) -> list[str]:
    begin = exchange.start_time_ns
    date = clock.date_and_time(begin).partition(" ")[0] + " " if begin else ""
    state = exchange.completeness
    whole = state.state.replace("_", " ")
    missing = f", {state.missing_bytes:,} bytes missing" if state.missing_bytes else ""
    return _facts(
        "TIMING",
        [
            ("start", f"{date}{clock.time_of_day(begin)}" if begin else ""),
            ("first byte", units.duration(exchange.first_byte_ns) if exchange.first_byte_ns else ""),
            ("total", units.duration(exchange.duration_ns) if exchange.duration_ns else ""),
            ("sizes", f"{_sizes(exchange.request)} → {_sizes(exchange.response)}"),
            ("seen", whole + missing),
        ],
    )


def _sizes(message: pb.Request | pb.Response) -> str:
    return f"{units.size(message.body_size)} body + {units.size(message.overhead_size)}"


def _connection(exchange: pb.Exchange) -> list[str]:
    connection = exchange.connection
    traffic = ""
    if connection.packets_sent or connection.packets_received:
        traffic = (
            f"{connection.packets_sent:,} packets ({units.size(connection.bytes_sent)}) sent, "
            f"{connection.packets_received:,} ({units.size(connection.bytes_received)}) received"
        )
    stream = f", stream {exchange.stream_id}" if exchange.stream_id else ""
    return _facts(
        "CONNECTION",
        [
            ("addresses", wire.pair(connection)),
            ("role", connection.role),
            ("protocol", exchange.protocol + stream),
            ("path", wire.hooks(exchange.correlation.wire, connection)),
            ("traffic", traffic),
            ("cookie", str(connection.socket_cookie or "")),
        ],
    )


def _process(process: pb.Process) -> list[str]:
    user = f"{process.user} ({process.uid})" if process.user else str(process.uid)
    return _facts(
        "PROCESS",
        [
            ("command", wire.process(process)),
            ("executable", process.exe),
            ("arguments", process.cmdline),
            ("parent", str(process.ppid or "")),
            ("user", user),
            ("unit", process.unit),
            ("container", process.container_id),
            ("cgroup", process.cgroup),
        ],
    )


def _correlation(exchange: pb.Exchange) -> list[str]:
    correlation = exchange.correlation
    waited = ""
    if correlation.attempts:
        waited = f"{correlation.attempts} times, {units.duration(correlation.latency_ns)}"
    return _facts(
        "CORRELATION",
        [
            ("method", correlation.method or "NONE"),
            ("wire", correlation.wire or "NONE"),
            ("confidence", correlation.confidence),
            ("waited", waited),
        ],
    )


def _tls(tls: pb.Tls) -> list[str]:
    handshake = units.duration(tls.handshake_ns) if tls.handshake_ns else ""
    return _facts(
        "TLS",
        [
            ("library", tls.library),
            ("version", tls.version),
            ("cipher", tls.cipher),
            ("alpn", tls.alpn),
            ("sni", tls.sni),
            ("handshake", handshake),
            ("ja4", tls.ja4),
        ],
    )
