"""pcapng (draft-ietf-opsawg-pcapng): the plaintext as TCP streams that Wireshark and tshark take apart.

Takes items as they come, returns blocks. The packets are synthetic (segments.py, framing.py): real addresses,
ports and times, plaintext where ciphertext was. Each connection's first packet has a comment that names the
process, each exchange's first packet one that names exchange, process, evidence and what is missing. There is
one interface description for each network interface, of link type raw IP; losses are in the interface
statistics at the end of the file. Does no I/O.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from spliffctl.export import content, framing
from spliffctl.export.segments import Stream, Streams, Timed
from spliffctl.render import wire
from spliffctl.render.quote import quote, word

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb

MAX_INTERFACES = 256
"""Interfaces described one by one; a host whose containers come and go sees thousands, and readers keep
each. What is beyond is attributed to the first, with the name in the comment."""

MAX_COMMENT = 16_384
"""Bytes of a comment; an option holds at most 65,535."""

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_COMMENT, _NAME, _DESCRIPTION, _RESOLUTION, _DROPPED, _PROGRAM = 1, 2, 3, 9, 5, 4
_RAW_IP = 101
_NANOSECONDS = 9
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = -1
_MOST = (1 << 64) - 1
"""What fits into isb_ifdrop: more losses than that are said to be so many."""


class Pcapng:
    """The format: one instance for one capture, whatever number of files it is written to."""

    binary = True

    def __init__(self) -> None:
        self._streams = Streams()
        self._interfaces: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._last_ns = 0
        self._homeless = 0

    def head(self) -> bytes:
        """The section header, and the interface of what has no other."""
        from importlib.metadata import version

        self._streams = Streams()
        self._interfaces = {}
        self._lost = {}
        header = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
        section = _block(_SECTION, header, [(_PROGRAM, f"spliffctl {version('spliff')}".encode())])
        return section + self._describe("spliff", "plaintext of TLS connections whose interface is not known")

    def exchange(self, exchange: pb.Exchange, bodies: tuple[Body, Body]) -> bytes:
        """The packets of request and response."""
        connection = exchange.connection
        stream, new = self._streams.of(connection)
        request = content.consistent(exchange.request, bodies[0])
        response = content.consistent(exchange.response, bodies[1])
        start = exchange.start_time_ns or exchange.first_byte_time_ns or exchange.end_time_ns
        first = exchange.first_byte_time_ns or exchange.end_time_ns or start
        end = exchange.end_time_ns or first
        packets = self._opening(stream, new, start, exchange.process, connection)
        note = _note(exchange, request, response)
        if _is_http2(exchange):
            packets += _http2(exchange, stream, request, response, (start, first, end), note)
        else:
            packets += _http1(exchange, stream, request, response, (start, first, end), note)
        return self._packets(connection, packets, exchange.correlation.wire)

    def message(self, message: pb.Message) -> bytes:
        """A frame on the connection; in HTTP/2 within the stream that was upgraded."""
        stream, new = self._streams.of(message.connection)
        from_opener = (message.direction == "sent") == (message.connection.role != "server")
        frame = framing.websocket(message, from_opener=from_opener)
        comment = ""
        if message.completeness.state not in ("", "complete"):
            comment = f"spliff: {quote(message.completeness.state)}"
        packets = self._opening(stream, new, message.time_ns, message.process, message.connection)
        if stream.prefaced:
            stream_id = stream.tunnels.get(message.exchange_part_key)
            if stream_id is None:
                self._homeless += 1
                return b""
            frame = framing.http2_data(stream_id, frame, last=False)
        packets += stream.send(0 if from_opener else 1, message.time_ns, frame, comment)
        return self._packets(message.connection, packets, "")

    def handshake(self, handshake: pb.Handshake) -> bytes:
        """Nothing: there is no plaintext in it."""
        del handshake
        return b""

    def chunk(self, chunk: pb.Chunk) -> bytes:
        """Bytes as they are, with a gap where some are missing."""
        stream, new = self._streams.of(chunk.connection)
        packets = self._opening(stream, new, chunk.time_ns, chunk.process, chunk.connection)
        sender = 0 if (chunk.direction == "sent") == (chunk.connection.role != "server") else 1
        if chunk.offset > stream.offsets[sender]:
            stream.skip(sender, chunk.offset - stream.offsets[sender])
        packets += stream.send(sender, chunk.time_ns, chunk.data)
        stream.skip(sender, max(0, chunk.size - len(chunk.data)))
        stream.offsets[sender] = chunk.offset + max(chunk.size, len(chunk.data))
        return self._packets(chunk.connection, packets, chunk.correlation.wire)

    def loss(self, loss: pb.Loss) -> bytes:
        """Kept for the statistics at the end; reasons are few, for they are the daemon's own words."""
        cause = f"{quote(loss.stage)}: {quote(loss.reason)}"
        self._lost[cause] = self._lost.get(cause, 0) + loss.count
        self._last_ns = max(self._last_ns, loss.last_time_ns)
        return b""

    def end(self) -> bytes:
        """Nothing is held back."""
        return b""

    def tail(self) -> bytes:
        """Interface statistics: what was lost."""
        causes = ", ".join(f"{count} lost ({cause})" for cause, count in self._lost.items())
        options = [(_DROPPED, struct.pack("<Q", min(sum(self._lost.values()), _MOST)))]
        if causes:
            options.append((_COMMENT, causes.encode()[:MAX_COMMENT]))
        return _block(_STATISTICS, struct.pack("<III", 0, *_halves(self._last_ns)), options)

    def left_out(self) -> dict[str, int]:
        """Messages of WebSockets over HTTP/2 whose stream is not known."""
        return {"WebSocket message": self._homeless}

    def _opening(
        self, stream: Stream, new: bool, time_ns: int, who: pb.Process, connection: pb.Connection
    ) -> list[Timed]:
        if not new:
            return []
        facts = [wire.process(who, connection), word(who.exe)] if who.exe else [wire.process(who, connection)]
        for name, text in (("unit", who.unit), ("container", who.container_id), ("user", who.user)):
            if text:
                facts.append(f"{name} {word(text)}")
        if not connection.local.address:
            facts.append("addresses not known")
        return stream.open(time_ns, "spliff: " + ", ".join(facts))

    def _packets(self, connection: pb.Connection, packets: list[Timed], hook: str) -> bytes:
        name = connection.interface
        blocks = []
        number = 0
        if name:
            known = self._interfaces.get(name)
            if known is None and len(self._interfaces) <= MAX_INTERFACES:
                by = f", seen by {quote(hook)}" if hook else ""
                blocks.append(self._describe(name, f"plaintext of TLS connections through {quote(name)}{by}"))
                known = self._interfaces[name]
            number = known or 0
        for time_ns, packet, comment in packets:
            head = struct.pack("<IIIII", number, *_halves(time_ns), len(packet), len(packet))
            options = [(_COMMENT, comment.encode()[:MAX_COMMENT])] if comment else []
            blocks.append(_block(_PACKET, head + packet + bytes(-len(packet) % 4), options))
            self._last_ns = max(self._last_ns, time_ns)
        return b"".join(blocks)

    def _describe(self, name: str, description: str) -> bytes:
        self._interfaces[name] = len(self._interfaces)
        options = [
            (_NAME, quote(name).encode()),
            (_DESCRIPTION, description.encode()),
            (_RESOLUTION, bytes((_NANOSECONDS,))),
        ]
        return _block(_INTERFACE, struct.pack("<HHI", _RAW_IP, 0, 0), options)


def _is_http2(exchange: pb.Exchange) -> bool:
    versions = (exchange.request.version, exchange.response.version)
    return exchange.stream_id > 0 or exchange.protocol == "http2" or any(v.startswith("2") for v in versions)


def _note(exchange: pb.Exchange, request: content.Message, response: content.Message) -> str:
    evidence = wire.hooks(exchange.correlation.wire, exchange.connection)
    facts = [wire.process(exchange.process), exchange.correlation.method, evidence]
    facts += [f"request's {note}" for note in request.notes]
    facts += [f"response's {note}" for note in response.notes]
    state = exchange.completeness.state
    if state not in ("", "complete"):
        facts.append(state.replace("_", " "))
    if exchange.completeness.missing_bytes:
        facts.append(f"{exchange.completeness.missing_bytes} bytes missing")
    return f"spliff: exchange {exchange.id}: " + quote(", ".join(fact for fact in facts if fact))


def _http1(
    exchange: pb.Exchange,
    stream: Stream,
    request: content.Message,
    response: content.Message,
    times: tuple[int, int, int],
    note: str,
) -> list[Timed]:
    start, first, end = times
    packets: list[Timed] = []
    asked, answered = exchange.request, exchange.response
    if asked.method or asked.path:
        line = f"{asked.method or '?'} {asked.path or '/'} HTTP/{asked.version or '1.1'}"
        packets += stream.send(0, start, framing.http1_head(line, request), note)
        packets += stream.send(0, start, framing.http1_body(request))
        note = ""
    if answered.status:
        line = f"HTTP/{answered.version or '1.1'} {answered.status} {answered.reason}"
        packets += stream.send(1, first, framing.http1_head(line, response), note)
        packets += stream.send(1, end, framing.http1_body(response))
    return packets


def _http2(
    exchange: pb.Exchange,
    stream: Stream,
    request: content.Message,
    response: content.Message,
    times: tuple[int, int, int],
    note: str,
) -> list[Timed]:
    start, first, end = times
    packets: list[Timed] = []
    if not stream.prefaced:
        stream.prefaced = True
        packets += stream.send(0, start, framing.PREFACE + framing.settings())
        packets += stream.send(1, start, framing.settings())
    asked, number = exchange.request, exchange.stream_id
    tunnel = exchange.protocol == "websocket"
    if tunnel:
        stream.remember(exchange.part_key, number)
    if asked.method or asked.path:
        pseudo = [(":method", asked.method), (":scheme", asked.scheme or "https")]
        pseudo += [(":authority", asked.authority)] if asked.authority else []
        pseudo += [(":path", asked.path)] if asked.path else []
        last = not (request.body or request.trailers or tunnel)
        head = framing.http2_headers(number, pseudo, request.headers, last=last)
        packets += stream.send(0, start, head, note)
        packets += stream.send(0, start, framing.http2_body(number, request))
        note = ""
    if exchange.response.status:
        last = not (response.body or response.trailers or tunnel)
        pseudo = [(":status", str(exchange.response.status))]
        head = framing.http2_headers(number, pseudo, response.headers, last=last)
        packets += stream.send(1, first, head, note)
        packets += stream.send(1, end, framing.http2_body(number, response))
    return packets


def _halves(time_ns: int) -> tuple[int, int]:
    return time_ns >> 32, time_ns & 0xFFFFFFFF


def _block(kind: int, body: bytes, options: list[tuple[int, bytes]]) -> bytes:
    written = [struct.pack("<HH", code, len(data)) + data + bytes(-len(data) % 4) for code, data in options]
    if written:
        written.append(bytes(4))
    length = 12 + len(body) + sum(map(len, written))
    return b"".join([struct.pack("<II", kind, length), body, *written, struct.pack("<I", length)])
