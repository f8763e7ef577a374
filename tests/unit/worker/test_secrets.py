"""No masked secret is in the public piece; who may see secrets gets all of them back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.config import Access
from spliffd.correlation.facts import ConnectionFacts
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpExchange, HttpRequest, HttpResponse
from spliffd.worker.encode import exchange_bytes
from spliffd.worker.heads import Heads
from spliffd.worker.summaries import summary
from tests.support.blocks import block_of_lines

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)


def pieces(exchange: HttpExchange, *, reveal: bool) -> tuple[bytes, bytes]:
    return exchange_bytes(ConnectionFacts(), exchange, "http1", "NONE", 0, 0, 0, Heads(MASKER), reveal)


def unmasked(exchange: HttpExchange) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """Headers of both halves and the path, as somebody sees them who gets both pieces."""
    message = pb.Exchange.FromString(b"".join(pieces(exchange, reveal=True)))
    for revealed in message.revealed:
        header = (message.response if revealed.response else message.request).headers[revealed.header]
        header.value = revealed.value
    return (
        [(header.name, header.value) for header in message.request.headers],
        [(header.name, header.value) for header in message.response.headers],
        message.request.path,
    )


def parsed(up: bytes, down: bytes) -> HttpExchange:
    parser = Http1(None)
    parser.feed(REQUEST, up, 1)
    (exchange,) = parser.feed(RESPONSE, down, 2)
    return exchange


UP = (
    b"GET /me?token=hunter2&x=1 HTTP/1.1\r\nHost: h\r\nAUTHORIZATION: Bearer 0123\r\nCookie: a=b0123\r\n"
    b"Cookie: \r\nReferer: https://h/?api_key=r0123\r\nX-Api-Key: k0123\r\n%s\r\n"
)
DOWN = (
    b"HTTP/1.1 302 Found\r\nSet-Cookie: s=c0123; Path=/\r\nLocation: /cb#access_token=l0123&a=1\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def test_headers_and_query_of_a_head():
    for extra in (b"", b"X-Folded: a\r\n b\r\n"):  # the second is read in full
        exchange = parsed(UP % extra, DOWN)
        public, secret = pieces(exchange, reveal=False)
        assert secret == b""
        for one in (b"hunter2", b"0123"):
            assert one not in public
        message = pb.Exchange.FromString(public)
        authorization = message.request.headers[1]
        assert (authorization.name, authorization.value) == ("AUTHORIZATION", "")
        assert authorization.masked.length == len("Bearer 0123")
        assert authorization.masked.hash == MASKER.digest(b"Bearer 0123")
        assert message.request.headers[3] == pb.Header(name="Cookie")
        assert message.request.path == f"/me?token={MASKER.mark(b'hunter2').decode()}&x=1"
        assert message.response.headers[1].value == f"/cb#access_token={MASKER.mark(b'l0123').decode()}&a=1"
        told = ipc.decode_summary(summary(ConnectionFacts(), exchange, "http1", MASKER))
        assert told.path == message.request.path

        request, response, path = unmasked(parsed(UP % extra, DOWN))
        assert request[1:6] == [
            ("AUTHORIZATION", "Bearer 0123"),
            ("Cookie", "a=b0123"),
            ("Cookie", ""),
            ("Referer", "https://h/?api_key=r0123"),
            ("X-Api-Key", "k0123"),
        ]
        assert response[:2] == [("Set-Cookie", "s=c0123; Path=/"), ("Location", "/cb#access_token=l0123&a=1")]
        assert path == "/me?token=hunter2&x=1"


def test_a_header_that_hpack_could_not_name_is_a_secret():
    exchange = HttpExchange()
    exchange.request = HttpRequest()
    exchange.request.headers = [(b"accept", b"*/*"), (b"(unknown)", b"Bearer 0123"), (b"(unknown)", b"")]
    public, _ = pieces(exchange, reveal=False)
    assert b"0123" not in public
    headers = pb.Exchange.FromString(public).request.headers
    assert [(header.value, header.masked.length) for header in headers] == [("*/*", 0), ("", 11), ("", 0)]


names = st.sampled_from([name.encode() for name in Access().mask_headers]).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)
secrets = st.binary(min_size=4, max_size=300).map(
    lambda value: b"\x02" + value.translate(bytes(code if code > 32 else 95 for code in range(256))) + b"\x03"
)
plain = st.tuples(st.sampled_from([b"accept", b"host", b"x"]), st.sampled_from([b"", b"a", b"text/html"]))


@given(st.lists(st.one_of(plain, st.tuples(names, secrets)), max_size=6), st.booleans(), st.booleans())
def test_no_value_of_a_masked_header_is_public(headers, of_response, lines):
    exchange = HttpExchange()
    half = exchange.response = HttpResponse()
    if not of_response:
        half, exchange.response = HttpRequest(), None
        exchange.request = half
    if lines and headers:
        half.block = block_of_lines(b"\r\n".join(name + b": " + value for name, value in headers))
    else:
        half.headers = list(headers)
    public, secret = pieces(exchange, reveal=True)
    masked = [(name, value) for name, value in headers if value.startswith(b"\x02")]
    for _, value in masked:
        assert value not in public
    merged = pb.Exchange.FromString(public + secret)
    shown = list((merged.response if of_response else merged.request).headers)
    assert len(shown) == len(headers)
    assert len(merged.revealed) == len(masked)
    for revealed in merged.revealed:
        name, value = headers[revealed.header]
        assert revealed.response == of_response
        assert shown[revealed.header].name.encode() == name
        assert shown[revealed.header].masked.hash == MASKER.digest(value)
