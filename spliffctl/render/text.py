"""Exchanges, handshakes, messages, chunks and losses as lines for people.

Takes messages of the contract, returns text that ends with a newline. The addresses are always those of
the connection's opener, an arrow, and those of the one who accepted it: local → remote for a client, remote
→ local for a server, whose process is marked ``server``. A request travels along the arrow (→), a response
against it (←). The last item of a line is the evidence that ties it to the wire.

Every string passes ``quote`` or ``word``; nothing else of the wire reaches the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spliffctl import units
from spliffctl.parts import Body
from spliffctl.render import wire
from spliffctl.render.body import body_lines
from spliffctl.render.colour import Palette
from spliffctl.render.quote import quote, word

if TYPE_CHECKING:
    from spliffctl.schema import Schema
    from spliffd.pb import spliff_pb2 as pb

METHODS = {
    "SOCKET_NESTED": "nested",
    "SOCKET_FD": "fd",
    "SOCKET_THREAD": "thread",
    "PROCESS_TIMING": "timing",
    "NONE": "none",
    "": "none",
}
"""Short names of the evidence, shown when no packet hook saw the connection."""

PROTOCOLS = {"http2": "h2", "websocket": "ws"}

LOST_UNITS = {"kernel": "record", "ring": "record", "worker": "record", "client": "body part"}
"""What a loss counts, by its stage; a subscriber loses exchanges."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How to render: the options of ``watch`` that shape text."""

    bodies: bool = False
    hexdump: bool = False
    compact: bool = False
    latency: bool = False
    utc: bool = False
    schema: Schema | None = None
    """Names for what is in protobuf messages."""


class TextRenderer:
    """Renders items as text. Holds no state but the cached second of the clock."""

    def __init__(self, options: TextOptions, palette: Palette) -> None:
        self._options = options
        self._palette = palette
        self._clock = units.Clock(utc=options.utc)

    def exchange(
        self, exchange: pb.Exchange, bodies: tuple[Body, Body] | None, *, begun: bool = False
    ) -> str:
        """Two lines (one with ``compact``), each followed by its body when bodies are wanted.

        ``begun``: it was shown while it was under way, so that its request is not shown again.
        """
        palette = self._palette
        request, response = exchange.request, exchange.response
        url = word(wire.url(exchange))
        if self._options.compact:
            return self._compact(exchange, url)
        protocol = _protocol(exchange)
        who = f"{wire.pair(exchange.connection)} {wire.process(exchange.process, exchange.connection)}"
        pushed = ", pushed" if exchange.stream_id and not exchange.stream_id % 2 else ""
        stream = f" [stream {exchange.stream_id}{pushed}]" if exchange.stream_id else ""
        result = ""
        # A request of which nothing was seen has no line; the response says that it is missing.
        if (request.method or request.path or request.body_size) and not (begun and not request.body_size):
            start = self._clock.time_of_day(exchange.start_time_ns)
            result = (
                f"{start} {palette.request}→{palette.reset} "
                f"{palette.method}{word(request.method or '?')}{palette.reset} {url}  {protocol} "
                f"{_content(request)}{palette.faint}{who}{palette.reset}{stream}\n"
            )
            stream = ""
            if bodies:
                result += self._content(bodies[0], exchange, response=False)
        end = exchange.end_time_ns or exchange.first_byte_time_ns or exchange.start_time_ns
        took = self._took(exchange)
        evidence = _evidence(exchange.correlation, exchange.connection)
        result += (
            f"{self._clock.time_of_day(end)} {palette.response}←{palette.reset} {self._status(exchange)} "
            f"{url}  {protocol} {_content(response)}{palette.faint}{who}{palette.reset}{stream}"
            f"{' ' + took if took else ''}  {palette.faint}{evidence}{palette.reset}"
            f"{self._completeness(exchange.completeness)}\n"
        )
        if bodies:
            result += self._content(bodies[1], exchange, response=True)
            unsent = exchange.completeness.body_not_sent - bodies[0].missing - bodies[1].missing
            if unsent > 0:
                result += f"    {palette.warning}… {unsent:,} body bytes not sent …{palette.reset}\n"
        return result

    def progress(self, exchange: pb.Exchange) -> str:
        """The lines of an exchange that is still under way."""
        return self.exchange(exchange, None)

    def part(self, exchange: pb.Exchange, part: pb.BodyPart) -> str:
        """One line for a piece of a body that is shown as it comes, and the piece."""
        palette = self._palette
        line = (
            f"{self._clock.time_of_day(time.time_ns())} {palette.response}←{palette.reset} … "
            f"{word(wire.url(exchange))}  {units.size(len(part.data))} at {part.offset:,}\n"
        )
        return line + self._body(Body(((part.offset, part.data),)), exchange.response.content_type)

    def handshake(self, handshake: pb.Handshake) -> str:
        """One line: version, verdict, cipher, protocol, name, fingerprint, library, who, how long."""
        palette, tls = self._palette, handshake.tls
        facts = [tls.cipher and word(tls.cipher), tls.alpn and word(tls.alpn)]
        facts += [tls.sni and f"sni={word(tls.sni)}", tls.ja4 and f"ja4={word(tls.ja4)}"]
        facts += ["resumed" if tls.resumed else "", word(tls.library or "?")]
        described = " ".join(fact for fact in facts if fact)
        if handshake.success:
            verdict = f"{palette.good}handshake{palette.reset}"
        else:
            reason = f": {quote(handshake.reason)}" if handshake.reason else ""
            verdict = f"{palette.server_error}handshake failed{reason}{palette.reset}"
        return self._event(
            handshake,
            f"{palette.request}*{palette.reset} {word(tls.version or 'TLS')} {verdict} {described} ",
            (units.duration(handshake.duration_ns) if handshake.duration_ns else ""),
            _evidence(handshake.correlation, handshake.connection),
        )

    def message(self, message: pb.Message) -> str:
        """One line for a WebSocket message, and its payload when bodies are wanted."""
        facts = [word(message.type or "?")]
        if message.close_code:
            facts.append(str(message.close_code))
        facts.append(units.size(message.size))
        if message.compressed:
            facts.append(f"({units.size(message.wire_size)} on the wire)")
        line = self._event(
            message,
            f"{self._arrow(message)} ws {' '.join(facts)}  ",
            "",
            "",
            self._completeness(message.completeness),
        )
        if not (self._options.bodies and message.data):
            return line
        return line + self._payload(message)

    def chunk(self, chunk: pb.Chunk) -> str:
        """One line for bytes of a protocol that is not taken apart, and the bytes when wanted."""
        name = word(chunk.protocol or "unknown")
        line = self._event(
            chunk,
            f"{self._arrow(chunk)} raw {name} {units.size(chunk.size)} at {chunk.offset:,}  ",
            "",
            _evidence(chunk.correlation, chunk.connection),
        )
        return line + self._data(chunk.offset, chunk.data)

    def loss(self, loss: pb.Loss) -> str:
        """``!! lost 12 exchanges (subscriber: queue_full) between … and …``."""
        unit = LOST_UNITS.get(loss.stage, "exchange")
        if "body" in loss.reason:
            unit = "body part"
        how_much = units.count(loss.count, unit) if loss.count else "nobody knows how much"
        if loss.bytes:
            how_much += f", {units.size(loss.bytes)}"
        when = ""
        if loss.first_time_ns or loss.last_time_ns:
            first, last = (self._clock.time_of_day(t) for t in (loss.first_time_ns, loss.last_time_ns))
            when = f" between {first} and {last}"
        cause = f"{quote(loss.stage) or '?'}: {quote(loss.reason) or '?'}"
        return f"{self._palette.loss}!! lost {how_much} ({cause}){when}{self._palette.reset}\n"

    def _compact(self, exchange: pb.Exchange, url: str) -> str:
        palette, request = self._palette, exchange.request
        took = self._took(exchange)
        return (
            f"{self._clock.time_of_day(exchange.start_time_ns or exchange.first_byte_time_ns)} "
            f"{palette.method}{word(request.method or '?')}{palette.reset} {url} {self._status(exchange)} "
            f"{units.size(exchange.response.body_size)}{' ' + took if took else ''} "
            f"{palette.faint}{wire.process(exchange.process, exchange.connection)}  "
            f"{_evidence(exchange.correlation, exchange.connection)}{palette.reset}"
            f"{self._completeness(exchange.completeness)}\n"
        )

    def _event(
        self,
        event: pb.Handshake | pb.Message | pb.Chunk,
        what: str,
        took: str,
        evidence: str,
        completeness: str = "",
    ) -> str:
        """One line: when, what, between whom, by whom, how long, on what evidence."""
        palette = self._palette
        who = f"{wire.pair(event.connection)} {wire.process(event.process, event.connection)}"
        proof = f"  {palette.faint}{evidence}{palette.reset}" if evidence else ""
        return (
            f"{self._clock.time_of_day(event.time_ns)} {what}{palette.faint}{who}{palette.reset}"
            f"{' ' + took if took else ''}{proof}{completeness}\n"
        )

    def _arrow(self, event: pb.Message | pb.Chunk) -> str:
        """→ for bytes that travel from opener to accepter, ← for the other way."""
        along = (event.direction == "sent") == (event.connection.role != "server")
        palette = self._palette
        return f"{palette.request}→{palette.reset}" if along else f"{palette.response}←{palette.reset}"

    def _status(self, exchange: pb.Exchange) -> str:
        palette, response = self._palette, exchange.response
        if not response.status:
            yet = " yet" if exchange.completeness.state == "in_progress" else ""
            return f"{palette.warning}no response{yet}{palette.reset}"
        text = f"{palette.status(response.status)}{response.status}{palette.reset}"
        if exchange.HasField("grpc") and exchange.grpc.HasField("status"):
            colour = palette.server_error if exchange.grpc.status else palette.good
            text += f" {colour}grpc-status {exchange.grpc.status}{palette.reset}"
        return text

    def _took(self, exchange: pb.Exchange) -> str:
        if not exchange.duration_ns:
            return ""
        total = units.duration(exchange.duration_ns)
        if not self._options.latency:
            return total
        first = units.duration(exchange.first_byte_ns) if exchange.first_byte_ns else "?"
        return f"first byte {first}, total {total}"

    def _completeness(self, completeness: pb.Completeness) -> str:
        """Says what is missing, in colour; nothing when all of it was seen."""
        state = completeness.state
        if state in ("complete", ""):
            return ""
        text = quote(state.replace("_", " "))
        if completeness.missing_bytes:
            text += f", {completeness.missing_bytes:,} bytes missing"
        if completeness.cause:
            text += f": {quote(completeness.cause)}"
        return f" {self._palette.warning}[{text}]{self._palette.reset}"

    def _data(self, offset: int, data: bytes) -> str:
        if not (self._options.bodies and data):
            return ""
        return self._body(Body(((offset, data),)), "")

    def _payload(self, message: pb.Message) -> str:
        from spliffctl.render.content import payload_lines

        text = _joined(payload_lines(message, self._palette, hexdump=self._options.hexdump))
        unsent = message.size - len(message.data)
        if unsent > 0:
            text += f"    {self._palette.warning}… {unsent:,} more bytes not sent …{self._palette.reset}\n"
        return text

    def _content(self, body: Body, exchange: pb.Exchange, *, response: bool) -> str:
        if not body.segments and not body.holes:
            return ""
        from spliffctl.render.content import content_lines
        from spliffctl.render.grpc import grpc_lines, is_grpc

        message = exchange.response if response else exchange.request
        if is_grpc(message) and not self._options.hexdump:
            schema = self._options.schema
            return _joined(grpc_lines(body, exchange, self._palette, schema, response=response))
        return _joined(content_lines(body, message, self._palette, hexdump=self._options.hexdump))

    def _body(self, body: Body, content_type: str) -> str:
        return _joined(body_lines(body, content_type, self._palette, hexdump=self._options.hexdump))


def _joined(lines: Iterable[str]) -> str:
    return "".join([line + "\n" for line in lines])


def _protocol(exchange: pb.Exchange) -> str:
    protocol = exchange.protocol
    if protocol == "http1":
        return f"http/{word(exchange.request.version or exchange.response.version or '1.1')}"
    return PROTOCOLS.get(protocol) or word(protocol or "?")


def _content(message: pb.Request | pb.Response) -> str:
    """``application/json 1.2 KiB `` or nothing, with the space that ends it."""
    size = message.body_size
    if not size:
        return ""
    kind = message.content_type.partition(";")[0].strip()
    return f"{word(kind)} {units.size(size)} " if kind else f"{units.size(size)} "


def _evidence(correlation: pb.Correlation, connection: pb.Connection) -> str:
    """``xdp:eth0`` when a packet hook saw it (``tc:wg0,xdp:eth0`` for a path), else the method's short name.

    Circumstantial evidence is named even beside a packet hook, and so is having waited for the packets.
    """
    seen = wire.hooks(correlation.wire, connection)
    method = METHODS.get(correlation.method) or word(correlation.method)
    facts = [seen or method]
    if correlation.confidence == "low":
        facts = [*([seen] if seen else []), method, "(low confidence)"]
    if correlation.attempts:
        facts.append(f"deferred {units.duration(correlation.latency_ns)}")
    return " ".join(facts)
