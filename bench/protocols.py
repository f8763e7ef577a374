"""What reading costs: CPU of an exchange or message by protocol, MiB/s through decoding, the worst records.

No daemon, no kernel: one ``Connection`` and its parser get the bytes of conversations that an independent
implementation (h2, websockets, zlib, brotli, zstd) wrote, as records of at most 16 KiB, with bodies handed
out and without. The worst records are those that cost most for their size: bombs, noise, long heads. CPU
time of this process, medians of rounds.
"""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib
from collections.abc import Callable
from functools import partial

import brotli  # type: ignore[import-untyped]  # it has no type stubs
import h2.config
import h2.connection
from backports import zstd

from bench.report import Figure, median
from spliffd.config import Access
from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols.http1_fields import Headers
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpExchange, HttpResponse
from spliffd.worker.masked_bodies import masked_body
from tests.support.lab import say
from tests.unit.protocols.websocket_transcripts import Peer

PART = "protocols"
ROUNDS = 7
RECORD = 16 << 10
EXCHANGES = 503
MESSAGES = 2003
BODY = 8 << 20
HEADERS = [(f"x-header-{n}", f"value {n} of a usual length") for n in range(8)]
ASK = [(":method", "GET"), (":scheme", "https"), (":authority", "a.example")]
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"

Piece = tuple[int, bytes]
"""Direction and record."""


def pieces(data: bytes) -> list[bytes]:
    """Records as TLS makes them."""
    return [data[at : at + RECORD] for at in range(0, len(data), RECORD)]


def http1(body: int) -> list[Piece]:
    """A keep-alive connection; ``body`` bytes in each response."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
    content = bytes(body)
    found: list[Piece] = []
    for number in range(EXCHANGES):
        ask = f"GET /item/{number} HTTP/1.1\r\nHost: a.example\r\nX-Id: {number}\r\n{fields}\r\n"
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {body}\r\nX-Id: {number}\r\n{fields}\r\n"
        found.append((0, ask.encode()))
        found += [(1, piece) for piece in pieces(answer.encode() + content)]
    return found


def http2(body: int) -> list[Piece]:
    """The same over one HTTP/2 connection."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    found: list[Piece] = []

    def move() -> None:
        for way, one, other in ((0, client, server), (1, server, client)):
            data = one.data_to_send()
            other.receive_data(data)
            found.extend((way, piece) for piece in pieces(data))

    move()
    move()
    for number in range(EXCHANGES):
        stream = client.get_next_available_stream_id()
        path, same = (":path", f"/item/{number}"), ("x-id", str(number))
        client.send_headers(stream, [*ASK, path, same, *HEADERS], end_stream=True)
        move()
        server.send_headers(
            stream, [(":status", "200"), ("x-id", str(number)), *HEADERS], end_stream=not body
        )
        left = body
        while left:
            size = min(left, 16384, server.local_flow_control_window(stream))
            left -= size
            server.send_data(stream, bytes(size), end_stream=not left)
            move()
            client.acknowledge_received_data(size, stream)
            move()
        move()
    return found


def websocket(*, deflate: bool) -> list[Piece]:
    """An upgraded connection with short JSON messages in both directions."""
    extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
    head = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n{extension}\r\n"
    found: list[Piece] = [
        (0, b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
        (1, head.encode()),
    ]
    peers = (Peer(deflate=deflate), Peer(server=True, deflate=deflate))
    for number in range(MESSAGES):
        text = json.dumps({"number": number, "text": "a message of usual length, more or less"})
        found.append((number % 2, peers[number % 2].text(text)))
    return found


def play(found: list[Piece], *, bodies: bool) -> None:
    """All of it through a new connection."""
    connection = Connection(b"k" * 40, (1, 1), ConnectionFacts(), joined=False)
    if bodies:
        taken: list[int] = []

        def take(_exchange: HttpExchange, _response: bool, data: bytes) -> None:
            taken.append(len(data))

        connection.watch_bodies(take)
    offsets = [0, 0]
    for now, (direction, data) in enumerate(found, 1):
        connection.data(direction, offsets[direction], data, len(data), now)
        offsets[direction] += len(data)
        connection.messages.clear()
    connection.close(1 << 40)


def cpu(run: Callable[[], object]) -> list[float]:
    """Seconds of CPU, by round; the first is thrown away."""
    taken = []
    for _ in range(ROUNDS + 1):
        before = time.process_time_ns()
        run()
        taken.append((time.process_time_ns() - before) / 1e9)
    return taken[1:]


def decode(encoding: str, data: bytes, masker: Masker) -> Callable[[], None]:
    """A JSON body through its coding and its masks, in records."""

    def run() -> None:
        response = HttpResponse()
        headers: Headers = []
        response.headers = headers
        response.content_type, response.content_encoding = "application/json", encoding
        body = masked_body(response, data[:RECORD], masker, whole=False, reveal=False)
        assert body is not None
        for at in range(0, len(data), RECORD):
            body.feed(at, data[at : at + RECORD])
        body.finish()
        assert body.decoded in (0, BODY)

    return run


def json_body() -> bytes:
    """8 MiB of JSON with a secret here and there."""
    noise = random.Random(1)
    rows = []
    size = 0
    while size < BODY:
        row = {
            "id": noise.randrange(1 << 30),
            "name": noise.randbytes(12).hex(),
            "token": noise.randbytes(8).hex(),
        }
        rows.append(json.dumps(row))
        size += len(rows[-1]) + 2
    return ("[" + ", ".join(rows) + "]").encode()[:BODY]


def worst(name: str, records: list[Piece], *, bodies: bool = False) -> Figure:
    """Milliseconds of the most expensive record."""
    slowest = []
    for _ in range(ROUNDS):
        connection = Connection(b"k" * 40, (1, 1), ConnectionFacts(), joined=False)
        if bodies:
            connection.watch_bodies(lambda *_: None)
        offsets = [0, 0]
        most = 0
        for now, (direction, data) in enumerate(records, 1):
            before = time.process_time_ns()
            connection.data(direction, offsets[direction], data, len(data), now)
            most = max(most, time.process_time_ns() - before)
            offsets[direction] += len(data)
            connection.messages.clear()
        slowest.append(most / 1e6)
    return median(PART, f"worst record: {name}", slowest, "ms")


def bomb_frames() -> list[Piece]:
    """A WebSocket message that inflates to 1 GiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (
        b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]
    )
    frame = b"\xc2\x7f" + len(packed).to_bytes(8) + packed
    return [*websocket(deflate=True)[:2], *((1, piece) for piece in pieces(frame))]


def reading() -> list[Figure]:
    """CPU of exchanges and messages."""
    figures = []
    for name, make in (("http1", http1), ("http2", http2)):
        for body in (0, 64 << 10):
            found = make(body)
            for how, bodies in (("counted", False), ("handed out", True)):
                each = [1e6 * taken / EXCHANGES for taken in cpu(partial(play, found, bodies=bodies))]
                what = f"{name}, {body >> 10} KiB of body, {how}: CPU an exchange"
                figures.append(median(PART, what, each, "us"))
    for deflate in (False, True):
        each = [1e6 * t / MESSAGES for t in cpu(partial(play, websocket(deflate=deflate), bodies=False))]
        what = f"websocket, {'deflate' if deflate else 'plain'}: CPU a message"
        figures.append(median(PART, what, each, "us"))
    return figures


def decoding() -> list[Figure]:
    """MiB/s of bodies through their codings and their masks."""
    access = Access()
    masker = Masker(b"k" * 32, access.mask_headers, access.mask_fields)
    plain = json_body()
    codings = {
        "": plain,
        "gzip": gzip.compress(plain, 6),
        "br": brotli.compress(plain, quality=5),
        "zstd": zstd.compress(plain),
    }
    figures = []
    for encoding, data in codings.items():
        rate = [BODY / (1 << 20) / taken for taken in cpu(decode(encoding, data, masker))]
        figures.append(median(PART, f"JSON, {encoding or 'plain'}: decoded and masked", rate, "MiB/s"))
    return figures


def hostile() -> list[Figure]:
    """Milliseconds of the most expensive records."""
    noise = random.Random(2).randbytes(64 * RECORD)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    many = head + b"".join(b"x-%d: y\r\n" % n for n in range(100_000)) + b"\r\n"
    long = head + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n"
    drip = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000
    asked = (0, head + b"\r\n")
    upgraded = websocket(deflate=False)[:2]
    conversations: dict[str, list[Piece]] = {
        "a head of 100,000 fields": [(0, piece) for piece in pieces(many)],
        "a head of 1 MiB": [(0, piece) for piece in pieces(long)],
        "chunks of one byte": [asked, *((1, piece) for piece in pieces(drip))],
        "noise behind an HTTP/1 request": [asked, *((1, piece) for piece in pieces(noise))],
        "noise behind an upgrade": [*upgraded, *((1, piece) for piece in pieces(b"\xff" + noise))],
        "a WebSocket message of 1 GiB in 1 MiB": bomb_frames(),
    }
    return [worst(name, records, bodies=True) for name, records in conversations.items()]


def measure() -> list[Figure]:
    """All figures of this part."""
    figures = []
    for part in (reading, decoding, hostile):
        for figure in part():
            say(f"   {figure.name}: {figure.value:.1f} {figure.unit}")
            figures.append(figure)
    return figures
