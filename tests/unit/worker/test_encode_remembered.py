"""Messages whose field lines were met before: what is remembered of them says what it would say anew."""

from __future__ import annotations

import random
from collections.abc import Iterator

from spliffd.config import Access
from spliffd.correlation.facts import ConnectionFacts
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.http1 import REQUEST, RESPONSE, Http1
from spliffd.protocols.masking import Masker
from spliffd.worker.encode import exchange_bytes
from spliffd.worker.heads import Heads
from tests.support.blocks import look_for_blocks

LINES = b"Host: host.example\r\nAuthorization: Bearer s3cr3t\r\nX-Mine: m1n3\r\n"


def remembered(heads: Heads, up: bytes, down: bytes, *, reveal: bool = False) -> pb.Exchange:
    parser = Http1(None)
    parser.feed(REQUEST, up, 1_000_000_000)
    (exchange,) = parser.feed(RESPONSE, down, 1_002_000_000)
    public, _ = exchange_bytes(ConnectionFacts(), exchange, "http1", "TC", 0, 0, 0, heads, reveal=reveal)
    return pb.Exchange.FromString(public)


def any_messages() -> Iterator[tuple[bytes, bytes, bool, bool]]:
    """Request, response, whether more is masked than usual, and whether secrets are kept: that seldom."""
    any_of = random.Random(7).choice
    for _ in range(2000):
        method, path = (
            any_of(["GET", "PUT", "HEAD"]),
            any_of(["/a", "/b", "/b?token=1", "http://b.example/"]),
        )
        chunk = any_of([b"", b"3\r\nabc\r\n", b"5\r\nabcde\r\n"])
        framing, body = any_of(
            [(b"Content-Length: 3", b"abc"), (b"Transfer-Encoding: chunked", chunk + b"0\r\n\r\n")]
        )
        up = f"{method} {path} HTTP/1.1\r\n".encode() + LINES + framing + b"\r\n\r\n" + body
        down = any_of([b"", b"HTTP/1.1 102 Soon\r\n\r\n", b"HTTP/1.1 103 Soon\r\n\r\n"])
        down += f"HTTP/1.1 {any_of([200, 404])} {any_of(['OK', 'No'])}\r\nServer: host.example\r\n".encode()
        down += LINES + framing + b"\r\n\r\n" + (b"" if method == "HEAD" else body)
        yield up, down, any_of(range(8)) == 0, any_of(range(8)) == 0


def test_a_message_that_is_remembered_says_what_it_would_say_anew():
    usual = Masker(b"key", Access().mask_headers, Access().mask_fields)
    strict = Masker(b"key", [*Access().mask_headers, "x-mine"], Access().mask_fields)
    known = {False: Heads(usual), True: Heads(strict)}
    look_for_blocks()
    for number, (up, down, masks_more, reveal) in enumerate(any_messages()):
        once = remembered(known[masks_more], up, down, reveal=reveal)
        # The same with another host, which nothing remembers.
        host = b"%04d.example" % number
        fresh = up.replace(b"host.example", host), down.replace(b"host.example", host)
        anew = remembered(Heads(strict if masks_more else usual), *fresh, reveal=reveal)
        for header in (*anew.request.headers, *anew.response.headers):
            header.value = header.value.replace(host.decode(), "host.example")
        anew.request.authority = anew.request.authority.replace(host.decode(), "host.example")
        assert once == anew
