"""Bodies from the parser to frames: what everybody gets, and what those get who may see secrets."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from unittest import mock

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.config import Access
from spliffd.content import coding
from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.counters import Area
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.masking import Masker
from spliffd.worker.output import Output
from spliffd.worker.receiver import FrameMaker
from tests.support.batches import frames_of

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)
REQUEST, RESPONSE = 0, 1


def frames(
    pieces: list[tuple[int, bytes]],
    *,
    reveal: bool = True,
    limit: int = 0,
    whole: bool = False,
    gap: int = -1,
) -> list[ipc.Frame]:
    """What a client's connection over which ``pieces`` went becomes; ``gap``: index of a piece that is lost."""
    kept: list[ipc.Frame] = []

    def keep(batch: ipc.Batch, datagram: bytearray) -> None:
        kept.extend(frames_of(batch))
        datagram[:] = b"-"

    output = Output(Area.create().workers[0])
    output.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with output.link, theirs, mock.patch.object(ipc, "encode_into", keep):
        run(output, pieces, reveal=reveal, limit=limit, whole=whole, gap=gap)
        output.flush()
    return kept


def run(
    output: Output, pieces: list[tuple[int, bytes]], *, reveal: bool, limit: int, whole: bool, gap: int
) -> None:
    maker = FrameMaker(output, Area.create().workers[0], 0, lambda *_: None, MASKER)
    maker.mask_with(MASKER, whole_bodies=whole)
    maker.demands(
        ipc.Demand(1, bodies=True, body_limit=limit, handshakes=False, messages=True, reveal=reveal)
    )
    connection = Connection(b"k" * 40, (1, 1), ConnectionFacts(), joined=False)
    connection.watch_bodies(maker.on_body(connection))
    offsets = [0, 0]
    for index, (direction, data) in enumerate(pieces):
        shown = b"" if index == gap else data
        done = connection.data(direction, offsets[direction], shown, len(data), 1000 + index)
        offsets[direction] += len(data)
        maker.deliver([(connection, exchange, 0, 0) for exchange in done])
    maker.deliver([(connection, exchange, 0, 0) for exchange in connection.close(9999)])


def body(found: list[ipc.Frame], *, response: bool, reveal: bool) -> bytes:
    """A body as a watcher puts it together; holes are dots."""
    out = bytearray()
    for frame in found:
        if response:
            data, at, raw = frame.response_body, frame.response_offset, frame.secret_response_body
        else:
            data, at, raw = frame.request_body, frame.request_offset, frame.secret_request_body
        data = raw if reveal and raw else data
        if data:
            out += b"." * (at - len(out))
            assert len(out) == at
            out += data
    return bytes(out)


def message(direction: int, content: bytes, *headers: str) -> bytes:
    start = "POST /x HTTP/1.1" if direction == REQUEST else "HTTP/1.1 200 OK"
    lines = [start, "Host: h", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    out, number = [], 0
    while data:
        size = sizes[number % len(sizes)]
        out.append(data[:size])
        data = data[size:]
        number += 1
    return out


FORM = b"user=me&password=S3CR3T-form&remember=1"
JSON = json.dumps({"id": 1, "access_token": "S3CR3T-json", "list": [1, 2]}).encode()
ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}


def talk(up: bytes, down: bytes, sizes: list[int]) -> list[tuple[int, bytes]]:
    return [(REQUEST, piece) for piece in cut(up, sizes)] + [(RESPONSE, piece) for piece in cut(down, sizes)]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["", "gzip", "deflate", "br", "br, gzip"]),
)
def test_whatever_the_pieces(sizes, reveal, value):
    coded = JSON
    for name in coding.codings(value):
        coded = ENCODERS[name](coded)
    found = frames(
        talk(
            message(REQUEST, FORM, "Content-Type: application/x-www-form-urlencoded"),
            message(
                RESPONSE,
                coded,
                "content-type: application/json",
                *([f"Content-Encoding: {value}"] if value else []),
            ),
            sizes,
        ),
        reveal=reveal,
    )
    for frame in found:
        assert b"S3CR3T" not in frame.public + frame.request_body + frame.response_body
        if not reveal:
            assert (frame.secret, frame.secret_request_body, frame.secret_response_body) == (b"", b"", b"")
    public = body(found, response=False, reveal=False), body(found, response=True, reveal=False)
    assert public[0] == FORM.replace(b"S3CR3T-form", MASKER.fit(b"S3CR3T-form"))
    assert public[1] == JSON.replace(b"S3CR3T-json", MASKER.fit(b"S3CR3T-json"))
    told = pb.Exchange.FromString(found[-1].public)
    assert (told.request.body_size, told.request.decoded_size) == (len(FORM), 0)
    assert told.response.body_size == len(coded)
    assert told.response.decoded_size == (len(JSON) if value else 0)
    assert found[-1].withheld == 0
    if reveal:
        assert body(found, response=False, reveal=True) == FORM
        assert body(found, response=True, reveal=True) == JSON


def test_bodies_without_secrets_are_not_sent_twice():
    found = frames(
        talk(
            message(REQUEST, b"a=1", "Content-Type: application/x-www-form-urlencoded"),
            message(RESPONSE, b"{}"),
            [99],
        )
    )
    assert [(frame.secret_request_body, frame.secret_response_body) for frame in found] == [(b"", b"")]
    assert (found[0].request_body, found[0].response_body) == (b"a=1", b"{}")


def test_large_bodies_in_parts():
    rows = [{"n": number, "token": f"S3CR3T{number}"} for number in range(20_000)]
    plain = json.dumps(rows).encode()
    for coded, headers in ((plain, []), (gzip.compress(plain), ["Content-Encoding: gzip"])):
        found = frames(
            talk(
                message(REQUEST, b""),
                message(RESPONSE, coded, "Content-Type: application/json", *headers),
                [16_384],
            )
        )
        assert len(found) > 3
        assert all(b"S3CR3T" not in frame.response_body for frame in found)
        assert body(found, response=True, reveal=True) == plain
        assert len(body(found, response=True, reveal=False)) == len(plain)


@pytest.mark.parametrize("lost", range(2, 11))
def test_a_gap_shows_no_half_of_a_secret(lost):
    down = message(RESPONSE, JSON * 3, "Content-Type: application/json")
    head = down.index(b"\r\n\r\n") + 4
    pieces = [(REQUEST, message(REQUEST, b"")), (RESPONSE, down[:head])]
    pieces += [(RESPONSE, piece) for piece in cut(down[head:], [17])]
    for reveal in (False, True):
        public = body(frames(pieces, gap=lost, reveal=reveal), response=True, reveal=False)
        assert len(public) == len(JSON) * 3
        for part in (b"S3C", b"3CR", b"CR3", b"R3T", b"json"):
            assert part not in public
    raw = body(frames(pieces, gap=lost), response=True, reveal=True)
    at = 17 * (lost - 2)
    assert raw[:at] == (JSON * 3)[:at]
    assert raw[at + 17 :] == (JSON * 3)[at + 17 :]


def test_a_gap_in_a_coded_body_withholds_the_rest():
    coded = gzip.compress(bytes(range(256)) * 40)
    down = message(RESPONSE, coded, "Content-Type: application/json", "Content-Encoding: gzip")
    head = len(down) - len(coded)
    pieces = [
        (REQUEST, message(REQUEST, b"")),
        (RESPONSE, down[: head + 50]),
        (RESPONSE, down[head + 50 : head + 60]),
    ]
    (*_, last) = frames([*pieces, (RESPONSE, down[head + 60 :])], gap=2)
    assert last.withheld == len(coded) - 60
    told = pb.Exchange.FromString(last.public)
    assert told.response.body_size == len(coded)
    assert told.completeness.missing_bytes == 10


def test_a_bomb_is_not_followed():
    bomb = gzip.compress(b'{"a":"' + bytes(64 << 20) + b'"}')
    found = frames(
        talk(
            message(REQUEST, b""),
            message(RESPONSE, bomb, "Content-Type: application/json", "Content-Encoding: gzip"),
            [16_384],
        )
    )
    shown = len(body(found, response=True, reveal=False))
    assert (1 << 20) <= shown <= (5 << 20)
    assert found[-1].withheld > 0


def test_a_limit_counts_decoded_bytes():
    coded = gzip.compress(JSON * 50)
    found = frames(
        talk(
            message(REQUEST, b""),
            message(RESPONSE, coded, "Content-Type: application/json", "Content-Encoding: gzip"),
            [10],
        ),
        limit=100,
    )
    assert len(body(found, response=True, reveal=False)) >= 100
    assert pb.Exchange.FromString(found[-1].public).response.decoded_size == len(JSON) * 50


@pytest.mark.parametrize("reveal", [False, True])
def test_all_bodies_may_be_kept_from_those_who_may_not_see_secrets(reveal):
    found = frames(
        talk(message(REQUEST, b"any" * 9), message(RESPONSE, b"thing"), [7]), whole=True, reveal=reveal
    )
    assert body(found, response=False, reveal=False) == body(found, response=True, reveal=False) == b""
    if reveal:
        assert body(found, response=False, reveal=True) == b"any" * 9
        assert found[-1].withheld == 0
    else:
        assert found[-1].withheld == 32


def test_other_types_pass_as_they_are():
    data = gzip.compress(b"<p>token: x</p>")
    found = frames(
        talk(
            message(REQUEST, b""),
            message(RESPONSE, data, "Content-Type: text/html", "Content-Encoding: gzip"),
            [9],
        )
    )
    assert body(found, response=True, reveal=False) == data
    data = b'{"token": "plain, because nobody knows the coding"}'
    found = frames(
        talk(
            message(REQUEST, b""),
            message(RESPONSE, data, "Content-Type: application/json", "Content-Encoding: x"),
            [9],
        )
    )
    assert b"plain" not in body(found, response=True, reveal=False)
