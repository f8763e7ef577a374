"""What the HTTP parsers hand out: one exchange, made of a request and a response.

Plain slotted objects that a parser fills in as it reads: cheap to make, no behaviour beyond marking
what is missing. Times are what the caller passed as ``now`` (ns), sizes are bytes.
A value that is not known stays ``None``, ``""`` or ``0``; nothing here is ever a guess.
"""

from __future__ import annotations

from typing import Any, Final

from spliffd.protocols.http1_block import Block
from spliffd.protocols.http1_fields import Fields, Headers, read_fields

__all__ = [
    "ABORTED",
    "COMPLETE",
    "GAP",
    "IN_PROGRESS",
    "JOINED_MID_STREAM",
    "REQUEST_MISSING",
    "RESPONSE_MISSING",
    "TRUNCATED",
    "GrpcFacts",
    "Headers",
    "HttpExchange",
    "HttpMessage",
    "HttpRequest",
    "HttpResponse",
    "text",
]

# States of `HttpExchange.state`, as in message Completeness of proto/spliff.proto.
COMPLETE: Final = "complete"
TRUNCATED: Final = "truncated"
GAP: Final = "gap"
JOINED_MID_STREAM: Final = "joined_mid_stream"
REQUEST_MISSING: Final = "request_missing"
RESPONSE_MISSING: Final = "response_missing"
ABORTED: Final = "aborted"
IN_PROGRESS: Final = "in_progress"
"""Of what is told before an exchange is finished; none that is finished has it."""


def text(data: bytes) -> str:
    """Bytes of the wire as text: UTF-8 where they are that, else Latin-1. Never fails."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


class HttpMessage:
    """What requests and responses have in common.

    ``headers``, ``content_type`` and ``content_encoding`` may be set, or read from ``block`` when somebody
    asks for one of them: a head costs ten times more to read in full than to frame its body.
    """

    __slots__ = (
        "_content_encoding",
        "_content_type",
        "_headers",
        "ascii",
        "block",
        "body_size",
        "decoded_size",
        "end_ns",
        "finished",
        "overhead_size",
        "start_ns",
        "trailer_start",
        "version",
    )

    block: Block | None
    """The field lines of a head (HTTP/1) not yet read for its fields."""
    ascii: bool
    """Whether all headers are known to be ASCII; False says nothing. Whoever adds headers clears it."""
    start_ns: int
    """When the first byte of it was seen (of a response: of the final one, not of an interim one)."""
    end_ns: int
    """When the last byte of it so far was seen."""
    finished: bool
    """Whether no more of it will come: its end was seen, or it was given up."""
    version: str
    """Version of the protocol: 1.0, 1.1, 2."""
    trailer_start: int | None
    """Index in ``headers`` of the first trailer, None when there are none."""
    body_size: int
    """Body bytes on the wire, transfer coding removed, lost ones included. While a parser's ``on_body``
    runs, this is the offset in the body of the bytes that it was given."""
    overhead_size: int
    """Bytes of start line, headers, framing and trailers that were seen; interim responses included."""
    decoded_size: int
    """Body bytes after content decoding; set by whoever decodes, 0 until then."""

    def __init__(self) -> None:
        self.block = None
        self.ascii = False
        self.start_ns = 0
        self.end_ns = 0
        self.finished = False
        self.version = ""
        self.trailer_start = None
        self.body_size = 0
        self.overhead_size = 0
        self.decoded_size = 0
        self._content_type = ""
        self._content_encoding = ""
        self._headers: Headers | None = None

    @property
    def headers(self) -> Headers:
        """All fields in the order of the wire; trailers follow from index ``trailer_start`` on."""
        headers = self._headers
        return self._read().headers if headers is None else headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self.block = None
        self.ascii = False
        self._headers = headers

    @property
    def content_type(self) -> str:
        """Value of Content-Type."""
        if self._headers is None:
            self._read()
        return self._content_type

    @content_type.setter
    def content_type(self, value: str) -> None:
        self._content_type = value

    @property
    def content_encoding(self) -> str:
        """Value of Content-Encoding."""
        if self._headers is None:
            self._read()
        return self._content_encoding

    @content_encoding.setter
    def content_encoding(self, value: str) -> None:
        self._content_encoding = value

    def _read(self) -> Fields:
        lines = self.block.lines if self.block is not None else b""
        self.ascii = lines.isascii()
        fields = read_fields(lines.split(b"\n") if lines else [])
        self.take_fields(fields)
        return fields

    def take_fields(self, fields: Fields) -> None:
        """Sets what the field lines say."""
        self.block = None
        self._headers = fields.headers
        if fields.content_type:
            self._content_type = text(fields.content_type)
        if fields.content_encoding:
            self._content_encoding = text(fields.content_encoding)


class HttpRequest(HttpMessage):
    """The request half."""

    __slots__ = ("_authority", "method", "path", "scheme")

    method: str
    """GET, POST, ... as sent."""
    scheme: str
    """What the request said (absolute-form, :scheme); else https, because only TLS is watched."""
    path: str
    """Path and query as sent; ``*`` for an asterisk-form target, empty for CONNECT."""

    def __init__(self) -> None:
        HttpMessage.__init__(self)
        self.method = ""
        self.scheme = "https"
        self.path = ""
        self._authority = ""

    @property
    def authority(self) -> str:
        """Host and port asked for: absolute-form or CONNECT target, :authority, else the Host header."""
        if self._headers is None and not self._authority:
            self._read()
        return self._authority

    @authority.setter
    def authority(self, value: str) -> None:
        self._authority = value

    def take_host(self, host: str) -> None:
        """Sets what the Host line says, as found by somebody who did not read the other fields."""
        self._authority = self._authority or host

    def take_fields(self, fields: Fields) -> None:
        """Sets what the field lines say; Host counts unless the target named an authority."""
        HttpMessage.take_fields(self, fields)
        self._authority = self._authority or text(fields.host)


class HttpResponse(HttpMessage):
    """The response half."""

    __slots__ = ("interim", "reason", "status")

    status: int
    """Status of the final response (or 101); 0 while only interim ones were seen."""
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
        "compressed_messages",
        "encoding",
        "message",
        "method",
        "request_message_bytes",
        "request_messages",
        "response_message_bytes",
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
        self.request_message_bytes = 0
        """What the prefixes of the messages add up to; compressed ones count as sent."""
        self.response_message_bytes = 0
        self.compressed_messages = 0
        """Of both directions."""
        self.encoding = ""


class HttpExchange:
    """A request and the response to it, or as much of the two as there will ever be."""

    __slots__ = (
        "announced",
        "cause",
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
        "websocket",
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
    announced: bool
    """Whether it was told of while it was under way; set by the engine's receiver."""
    cause: str
    """Why it was aborted, where a peer says so (HTTP/2)."""
    websocket: bool
    """Whether it made the connection (in HTTP/2: its stream) one of WebSocket."""
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
        self.announced = False
        self.cause = ""
        self.websocket = False
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
        """Notes that a whole half is missing, which says more than a mark made before, but for ABORTED."""
        if self.state is not ABORTED:
            self.state = state
