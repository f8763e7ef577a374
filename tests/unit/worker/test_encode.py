"""The hand-written encoder against protobuf's own: what is written must parse back to the same message."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.config import Access
from spliffd.correlation.facts import ConnectionFacts
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import GrpcFacts, HttpExchange, HttpRequest, HttpResponse
from spliffd.worker import encode
from spliffd.worker.encode import body_piece, connection_prefix, exchange_bytes
from spliffd.worker.heads import Heads
from spliffd.worker.summaries import summary

MASKER = Masker(b"key", Access().mask_headers, Access().mask_fields)
HEADS = Heads(MASKER)
WALL = 1_700_000_000_000_000_000


def as_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def expected(facts, exchange, protocol, wire, attempts, latency) -> pb.Exchange:
    """The same exchange, field by field, by protobuf's own setters."""
    out = pb.Exchange(protocol=protocol, stream_id=exchange.stream_id, part_key=exchange.part_key)
    for name in (
        "pid",
        "tid",
        "comm",
        "exe",
        "cmdline",
        "ppid",
        "uid",
        "user",
        "cgroup",
        "unit",
        "container_id",
    ):
        setattr(out.process, name, getattr(facts, name))
    out.process.start_time_ns = facts.process_start_ns
    link = out.connection
    link.local.address, link.local.port = facts.local_address, facts.local_port
    link.remote.address, link.remote.port = facts.remote_address, facts.remote_port
    for name in ("role", "family", "netns_cookie", "socket_cookie", "interface"):
        setattr(link, name, getattr(facts, name))
    for name in ("packets_sent", "packets_received", "bytes_sent", "bytes_received"):
        setattr(link, name, getattr(facts, name))
    for interface, hook, packets in facts.path:
        link.path.add(interface=interface, hook=hook, packets=packets)
    out.correlation.method, out.correlation.confidence = facts.correlation_method, facts.confidence
    out.correlation.wire, out.correlation.attempts, out.correlation.latency_ns = wire, attempts, latency
    out.tls.version = facts.tls_version
    for name in ("library", "cipher", "alpn", "sni", "handshake_ns", "ja4"):
        setattr(out.tls, name, getattr(facts, name))
    if facts.resumed is not None:
        out.tls.resumed = facts.resumed
    request, response = exchange.request, exchange.response
    for half, message in ((request, out.request), (response, out.response)):
        if half is None:
            continue
        message.SetInParent()
        for name, value in half.headers:
            message.headers.add(name=as_text(name), value=as_text(value))
        for name in (
            "version",
            "body_size",
            "content_type",
            "overhead_size",
            "decoded_size",
            "content_encoding",
        ):
            setattr(message, name, getattr(half, name))
        if half.trailer_start is not None:
            message.trailer_start = half.trailer_start
    if request is not None:
        out.start_time_ns = request.start_ns + WALL
        out.request.method, out.request.scheme = request.method, request.scheme
        out.request.authority = MASKER.authority(request.authority)
        out.request.path = MASKER.path(request.path)
    if response is not None:
        out.response.status, out.response.reason = response.status, response.reason
        out.response.interim.extend(response.interim)
        if exchange.first_byte_ns:
            out.first_byte_time_ns = exchange.first_byte_ns + WALL
            out.end_time_ns = response.end_ns + WALL
            if request is not None:
                out.duration_ns = max(0, response.end_ns - request.start_ns)
                out.first_byte_ns = max(0, exchange.first_byte_ns - request.start_ns)
    out.completeness.state = exchange.state
    out.completeness.missing_bytes = exchange.missing_bytes
    out.completeness.gap_offset = exchange.gap_offset or 0
    if exchange.grpc is not None:
        for name in ("service", "method", "message", "request_messages", "response_messages", "encoding"):
            setattr(out.grpc, name, getattr(exchange.grpc, name))
        out.grpc.SetInParent()
        if exchange.grpc.status is not None:
            out.grpc.status = exchange.grpc.status
    # A message of which nothing is known is left out.
    for message, name in ((link, "local"), (link, "remote"), *((out, f.name) for f in out.DESCRIPTOR.fields)):
        optional = name in ("local", "remote", "process", "connection", "correlation", "tls")
        if optional and not getattr(message, name).ByteSize():
            message.ClearField(name)
    return out


def some_facts() -> ConnectionFacts:
    facts = ConnectionFacts()
    facts.pid, facts.tid, facts.ppid, facts.uid = 4242, 4243, 1, 1000
    facts.process_start_ns = WALL - 5
    facts.comm, facts.exe, facts.cmdline = "curl", "/usr/bin/curl", "curl https://é"
    facts.user, facts.cgroup, facts.unit, facts.container_id = "me", "/a.slice", "a.service", "ab" * 32
    facts.local_address, facts.local_port = "192.0.2.10", 48372
    facts.remote_address, facts.remote_port = "2001:db8::1", 443
    facts.role, facts.family, facts.interface = "client", "ipv4", "eth0"
    facts.netns_cookie, facts.socket_cookie = 1, (1 << 64) - 1
    facts.packets_sent, facts.packets_received, facts.bytes_sent, facts.bytes_received = 3, 5, 700, 11_000
    facts.path = [("wg0", "TC", 3), ("eth0", "XDP", 9)]
    facts.correlation_method, facts.confidence = "SOCKET_NESTED", "high"
    facts.library, facts.tls_version, facts.cipher = "openssl", "TLSv1.3", "TLS_AES_256_GCM_SHA384"
    facts.alpn, facts.sni, facts.handshake_ns, facts.ja4 = "http/1.1", "example.org", 12345, "t13d"
    facts.resumed = False
    return facts


def parsed(up: bytes, down: bytes) -> HttpExchange:
    parser = Http1(None)
    parser.feed(REQUEST, up, 1_000_000_000)
    (exchange,) = parser.feed(RESPONSE, down, 1_002_000_000)
    return exchange


def check(facts, exchange, protocol="http1", wire="XDP", attempts=0, latency=0):
    public, secret = exchange_bytes(
        facts, exchange, protocol, wire, attempts, latency, WALL, HEADS, reveal=False
    )

    assert secret == b""
    assert pb.Exchange.FromString(public) == expected(facts, exchange, protocol, wire, attempts, latency)


def test_an_exchange_of_the_parser():
    up = b"POST /p?q=1 HTTP/1.1\r\nHost: example.org\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\nabc"
    down = (
        b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nX: \xff\r\nY: \xc3\xa9\r\nContent-Encoding: br\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: t\r\n\r\n"
    )

    check(some_facts(), parsed(up, down))
    check(ConnectionFacts(), parsed(up, down), wire="NONE", attempts=3, latency=50_000_000)


def test_pieces_merge():
    facts = some_facts()
    exchange = parsed(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    public, _ = exchange_bytes(facts, exchange, "http1", "TC", 0, 0, WALL, HEADS, reveal=False)

    whole = pb.Exchange.FromString(
        public + body_piece(True, 1, b"ody") + pb.Exchange(id=7).SerializeToString()
    )

    want = expected(facts, exchange, "http1", "TC", 0, 0)
    want.id, want.response.body, want.response.body_offset = 7, b"ody", 1
    assert whole == want


def test_body_pieces():
    assert pb.Exchange.FromString(body_piece(False, 0, b"x" * 70_000)).request.body == b"x" * 70_000
    assert pb.Exchange.FromString(body_piece(False, 1 << 40, b"")).request.body_offset == 1 << 40


def test_the_prefix_is_cached_until_it_is_dropped():
    facts = some_facts()
    before = connection_prefix(facts)
    facts.sni = "other.example.org"

    assert facts.prefix is before
    facts.prefix = None
    exchange = parsed(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")
    check(facts, exchange)
    assert facts.prefix != before


def test_packet_counts_change_without_the_prefix():
    facts = some_facts()
    exchange = parsed(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")
    check(facts, exchange)
    prefix = facts.prefix
    facts.interface, facts.packets_sent, facts.bytes_received = "tun0", 3001, 1 << 40
    facts.path = [("tun0", "TC", 6002)]
    facts.traffic = None
    check(facts, exchange)
    assert facts.prefix is prefix


def test_missing_halves_and_marks():
    only_request = Http1(None)
    only_request.feed(REQUEST, b"GET / HTTP/1.1\r\n\r\n", 5)
    only_response = Http1(None)
    only_response.feed(RESPONSE, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 5)
    only_response.gap(RESPONSE, 2, 6)
    only_interim = Http1(None)
    only_interim.feed(REQUEST, b"GET / HTTP/1.1\r\n\r\n", 5)
    only_interim.feed(RESPONSE, b"HTTP/1.1 100 Continue\r\n\r\n", 5)
    for parser in (only_request, only_response, only_interim):
        (exchange,) = parser.close(9)
        check(some_facts(), exchange)


def test_text_that_is_no_utf8_is_carried():
    facts = some_facts()
    facts.comm, facts.exe = "bad\udcff", "/tmp/\udc80x"  # as os.fsdecode gives them

    public, _ = exchange_bytes(
        facts,
        parsed(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 304 \xe9\r\n\r\n"),
        "http1",
        "",
        0,
        0,
        0,
        HEADS,
        False,
    )

    process = pb.Exchange.FromString(public).process
    assert (process.comm, process.exe) == ("bad?", "/tmp/?x")
    told = ipc.decode_summary(summary(facts, HttpExchange(), "http1", MASKER))
    assert (told.comm, told.exe) == ("bad?", "/tmp/?x")


def test_summary():
    facts = some_facts()
    exchange = parsed(b"GET /x HTTP/1.1\r\nHost: h:1\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")

    said = ipc.decode_summary(summary(facts, exchange, "http1", MASKER))

    assert (said.pid, said.ppid, said.uid, said.comm, said.exe) == (4242, 1, 1000, "curl", "/usr/bin/curl")
    assert (said.user, said.unit, said.container, said.library) == ("me", "a.service", "ab" * 32, "openssl")
    assert (said.protocol, said.local_port, said.remote_port) == ("http1", 48372, 443)
    assert (said.remote_address, said.sni) == ("2001:db8::1", "example.org")
    assert (said.authority, said.path, said.method, said.status) == ("h:1", "/x", "GET", 204)
    nothing = ipc.decode_summary(summary(facts, HttpExchange(), "raw", MASKER))
    assert (nothing.authority, nothing.path, nothing.method, nothing.status) == ("", "", "", 0)


# ---- any values ---------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
uint32 = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1))
uint64 = st.one_of(st.integers(0, 5000), st.integers(0, (1 << 64) - 1))
wire_bytes = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([0, 1, 126, 127, 128, 1899, 1900, 2047, 2048, 16383, 16384, 20_000]).map(
        lambda n: b"v" * n
    ),
    st.sampled_from([130, 2000, 17_000]).map(lambda n: b"\xff" * n),
)
names = wire_bytes.filter(lambda name: name.lower().decode("latin-1") not in Access().mask_headers)
"""Hypothesis takes constants of the tested modules for examples, and masked headers have a test of their own."""
headers = st.lists(st.tuples(names, wire_bytes), max_size=4)
clock = st.one_of(st.just(0), st.integers(1, 1 << 60))


@st.composite
def facts_of_any_kind(draw):
    facts = some_facts()
    for name in [name for name in dir(facts) if not name.startswith("_")]:
        value = getattr(facts, name)
        if isinstance(value, bool):
            facts.resumed = draw(st.sampled_from([None, False, True]))
        elif isinstance(value, str):
            setattr(facts, name, draw(text))
        elif isinstance(value, int):
            small = name in ("pid", "tid", "ppid", "uid", "local_port", "remote_port")
            setattr(facts, name, draw(uint32 if small else uint64))
        elif isinstance(value, list):
            facts.path = draw(st.lists(st.tuples(text, text, uint64), max_size=3))
    return facts


@st.composite
def exchanges_of_any_kind(draw):
    exchange = HttpExchange()
    exchange.state = draw(st.sampled_from(["complete", "gap", "aborted"]))
    if exchange.state != "complete":
        exchange.missing_bytes, exchange.gap_offset = draw(uint64), draw(st.one_of(st.none(), uint64))
    exchange.stream_id, exchange.part_key = draw(uint32), draw(uint64)
    exchange.first_byte_ns = draw(clock)
    if draw(st.booleans()):
        exchange.request = request = HttpRequest()
        request.method, request.scheme, request.authority, request.path = draw(
            st.tuples(text, text, text, text)
        )
        request.path *= draw(st.sampled_from([1, 200]))
    if draw(st.booleans()):
        exchange.response = response = HttpResponse()
        response.status, response.reason = draw(uint32), draw(text)
        response.interim = draw(st.lists(uint32, max_size=3))
    if draw(st.booleans()):
        exchange.grpc = grpc = GrpcFacts()
        grpc.service, grpc.method, grpc.message, grpc.encoding = draw(st.tuples(text, text, text, text))
        grpc.status = draw(st.one_of(st.none(), uint32))
        grpc.request_messages, grpc.response_messages = draw(uint32), draw(uint32)
    for half in (exchange.request, exchange.response):
        if half is None:
            continue
        half.headers = draw(headers)
        half.ascii = all(name.isascii() and value.isascii() for name, value in half.headers) and draw(
            st.booleans()
        )
        half.version, half.content_type, half.content_encoding = draw(st.tuples(text, text, text))
        half.body_size, half.overhead_size, half.decoded_size = draw(st.tuples(uint64, uint64, uint64))
        half.trailer_start = draw(st.one_of(st.none(), st.integers(0, 5000)))
        half.start_ns, half.end_ns = draw(clock), draw(clock)
    return exchange


@settings(max_examples=300, deadline=None)
@given(facts_of_any_kind(), exchanges_of_any_kind(), text, text, uint32, uint64)
def test_any_values_come_back(facts, exchange, protocol, wire, attempts, latency):
    facts.prefix = None
    check(facts, exchange, protocol, wire, attempts, latency)


@given(st.lists(st.integers(0, (1 << 63) - 1), max_size=4), st.integers(0, 1 << 29))
def test_times_are_varints_whatever_was_encoded_before(times, step):
    for ns in [*times, *(time ^ step for time in times)]:
        tag = encode._START
        assert pb.Exchange.FromString(tag + encode._time(ns)).start_time_ns == ns


def test_the_wires_proof_takes_the_place_of_the_offsets():
    exchange = parsed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")
    facts = ConnectionFacts()
    facts.from_start = True

    def proof() -> str:
        public, _ = exchange_bytes(facts, exchange, "http1", "TC", 0, 0, WALL, HEADS, reveal=False)
        return pb.Exchange.FromString(public).completeness.proof

    assert proof() == "offsets"
    facts.proved = True
    assert proof() == "wire"
    exchange.state = "in_progress"
    assert proof() == "offsets", "more of it is to come"
