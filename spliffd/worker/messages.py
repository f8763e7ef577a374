"""WebSocket messages as frames: serialised once, secrets in their JSON masked before.

Takes a finished message with its connection; returns the frame for it. Nothing is kept from one message to
the next: each is masked by itself, and what follows a gap is masked to its end, as in bodies. Does no I/O.
"""

from __future__ import annotations

from spliffd import ipc
from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols import websocket_frames as frames
from spliffd.protocols.mask_bodies import body_mask
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpExchange, HttpRequest
from spliffd.protocols.websocket_message import WebSocketMessage
from spliffd.worker.encode import connection_prefix, traffic_piece
from spliffd.worker.summaries import summary


def common(facts: ConnectionFacts) -> pb.Exchange:
    """What is known of a connection, as the fields of an exchange that it fills."""
    return pb.Exchange.FromString(
        (facts.prefix or connection_prefix(facts)) + (facts.traffic or traffic_piece(facts))
    )


def summary_of(facts: ConnectionFacts, exchange: HttpExchange | None, protocol: str, masker: Masker) -> bytes:
    """What filters need of something that is no exchange; ``exchange`` is what it belongs to."""
    if exchange is None:
        exchange = HttpExchange()
        exchange.request = HttpRequest()
    return summary(facts, exchange, protocol, masker)


def masked(message: WebSocketMessage, masker: Masker) -> bytes:
    """The payload for everybody."""
    data = message.data
    kind = "application/json" if message.opcode == frames.TEXT else ""
    mask = body_mask(kind, data, masker) if message.opcode < frames.CLOSE else None
    if mask is None:
        return data
    if message.opcode == frames.CONTINUATION:
        return mask.gap() + mask.feed(data, True)  # its beginning is lost
    at = message.gap_at
    if at < 0:
        return mask.feed(data, True)
    return mask.feed(data[:at], False) + mask.gap() + mask.feed(data[at:], True)


def message_frame(
    connection: Connection,
    message: WebSocketMessage,
    part_key: int,
    demand: ipc.Demand,
    masker: Masker,
    wall_offset_ns: int,
    *,
    whole: bool,
) -> ipc.Frame:
    """The frame of a message. ``part_key`` names its exchange; ``whole``: payloads are secret as a whole."""
    facts = connection.facts
    known = common(facts)
    public = secret = b""
    if demand.bodies:
        limit = demand.body_limit or len(message.data)
        public = b"" if whole else masked(message, masker)[:limit]
        raw = message.data[:limit]
        if demand.reveal and raw != public:
            secret = pb.Message(data=raw).SerializeToString()
    sent_by_server = facts.role == "server"
    built = pb.Message(
        time_ns=message.end_ns + wall_offset_ns,
        process=known.process,
        connection=known.connection,
        exchange_part_key=part_key,
        direction="sent" if message.from_server == sent_by_server else "received",
        type=frames.NAMES[message.opcode],
        data=public,
        wire_size=message.wire_size,
        completeness=pb.Completeness(
            state=message.state, missing_bytes=message.missing_bytes, gap_offset=message.gap_offset or 0
        ),
        size=message.size,
        close_code=message.close_code,
        frames=message.frames,
        compressed=message.compressed,
    )
    told = summary_of(facts, message.exchange, "websocket", masker)
    return ipc.Frame(ipc.MESSAGE, 0, told, built.SerializeToString(), secret, uid=facts.uid)
