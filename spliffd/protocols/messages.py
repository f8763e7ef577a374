"""What the HTTP parsers hand out: one exchange, made of a request and a response.

Plain slotted objects that a parser fills in as it reads: cheap to make, no behaviour beyond marking
what is missing. Times are what the caller passed as ``now`` (ns), sizes are bytes.
A value that is not known stays ``None``, ``""`` or ``0``; nothing here is ever a guess.
"""

from __future__ import annotations

from typing import Any

# States of `HttpExchange.state`, as in message Completeness of proto/spliff.proto.
COMPLETE = "complete"
TRUNCATED = "truncated"
GAP = "gap"
JOINED_MID_STREAM = "joined_mid_stream"
REQUEST_MISSING = "request_missing"
RESPONSE_MISSING = "response_missing"
ABORTED = "aborted"

Headers = list[tuple[bytes, bytes]]
"""Names and values as sent, in the order of the wire; folded values (obs-fold) are joined by one space."""


def text(data: bytes) -> str:
    """Bytes of the wire as text: UTF-8 where they are that, else Latin-1. Never fails."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


class HttpMessage:
    """What requests and responses have in common."""

    __slots__ = (
        "body_size",
        "content_encoding",
        "content_type",
        "decoded_size",
        "end_ns",
        "finished",
        "headers",
        "overhead_size",
        "start_ns",
        "trailer_start",
        "version",
    )

    start_ns: int
    """When the first byte of it was seen (of a response: of the final one, not of an interim one)."""
    end_ns: int
    """When the last byte of it so far was seen."""
    finished: bool
    """Whether no more of it will come: its end was seen, or it was given up."""
    version: str
    """Version of the protocol: 1.0, 1.1, 2."""
    headers: Headers
    """All fields; trailers follow from index ``trailer_start`` on."""
    trailer_start: int | None
    """Index of the first trailer, None when there are none."""
    body_size: int
    """Body bytes on the wire, transfer coding removed, lost ones included. While a parser's ``on_body``
    runs, this is the offset in the body of the bytes that it was given."""
    overhead_size: int
    """Bytes of start line, headers, framing and trailers that were seen; interim responses included."""
    decoded_size: int
    """Body bytes after content decoding; set by whoever decodes, 0 until then."""
    content_type: str
    """Value of Content-Type."""
    content_encoding: str
    """Value of Content-Encoding."""

    def __init__(self) -> None:
        self.start_ns = 0
        self.end_ns = 0
        self.finished = False
        self.version = ""
        self.headers = []
        self.trailer_start = None
        self.body_size = 0
        self.overhead_size = 0
        self.decoded_size = 0
        self.content_type = ""
        self.content_encoding = ""


class HttpRequest(HttpMessage):
    """The request half."""

    __slots__ = ("authority", "method", "path", "scheme")

    method: str
    """GET, POST, ... as sent."""
    scheme: str
    """What the request said (absolute-form, :scheme); else https, because only TLS is watched."""
    authority: str
    """Host and port asked for: absolute-form or CONNECT target, :authority, else the Host header."""
    path: str
    """Path and query as sent; ``*`` for an asterisk-form target, empty for CONNECT."""

    def __init__(self) -> None:
        HttpMessage.__init__(self)
        self.method = ""
        self.scheme = "https"
        self.authority = ""
        self.path = ""


class HttpResponse(HttpMessage):
    """The response half."""

    __slots__ = ("interim", "reason", "status")

    status: int
    """Status of the final response (or 101)."""
    reason: str
    """Reason phrase; HTTP/2 has none."""
    interim: list[int]
    """Statuses of the 1xx responses that came before."""

    def __init__(self) -> None:
        HttpMessage.__init__(self)
        self.status = 0
        self.reason = ""
        self.interim = []


class GrpcFacts:
    """What a gRPC call adds to its exchange; fields as in message Grpc of proto/spliff.proto."""

    __slots__ = (
        "encoding",
        "message",
        "method",
        "request_messages",
        "response_messages",
        "service",
        "status",
    )

    def __init__(self) -> None:
        self.service = ""
        self.method = ""
        self.status: int | None = None
        self.message = ""
        self.request_messages = 0
        self.response_messages = 0
        self.encoding = ""


class HttpExchange:
    """A request and the response to it, or as much of the two as there will ever be."""

    __slots__ = (
        "first_byte_ns",
        "gap_offset",
        "grpc",
        "missing_bytes",
        "part_key",
        "request",
        "response",
        "state",
        "stream_id",
        "user",
    )

    request: HttpRequest | None
    """None when it was not seen."""
    response: HttpResponse | None
    """None when it was not seen (yet)."""
    first_byte_ns: int
    """When the first byte of the final response was seen; 0 when none was."""
    stream_id: int
    """HTTP/2 stream; 0 elsewhere."""
    part_key: int
    """Joins the exchange with body parts delivered ahead of it; set by the engine."""
    user: Any
    """The engine's own state for this exchange; the parsers leave it alone."""
    grpc: GrpcFacts | None
    """Set when the exchange is a gRPC call."""
    state: str
    """How much was seen: one of the states above."""
    missing_bytes: int
    """Bytes known to be missing from it. A gap that also swallowed other messages counts in full."""
    gap_offset: int | None
    """Offset in its direction's stream of the first gap that touched it."""

    def __init__(self) -> None:
        self.request = None
        self.response = None
        self.first_byte_ns = 0
        self.stream_id = 0
        self.part_key = 0
        self.user = None
        self.grpc = None
        self.state = COMPLETE
        self.missing_bytes = 0
        self.gap_offset = None

    def mark(self, state: str) -> None:
        """Notes why it is not complete. The first reason stays: it is nearest to the cause."""
        if self.state is COMPLETE:
            self.state = state

    def mark_gap(self, offset: int, size: int) -> None:
        """Notes that ``size`` bytes of it are lost, at ``offset`` of their direction's stream."""
        self.mark(GAP)
        self.missing_bytes += size
        if self.gap_offset is None:
            self.gap_offset = offset

    def mark_missing(self, state: str) -> None:
        """Notes that a whole half is missing, which says more than any mark made before."""
        self.state = state
