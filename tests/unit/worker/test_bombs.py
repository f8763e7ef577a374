"""Bodies that become 1 GiB, and heads without end: memory stays where it was, and what is lost is told."""

from __future__ import annotations

import zlib
from pathlib import Path

import brotli
import pytest
from backports import zstd

from spliffd.config import Access
from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpExchange, HttpResponse
from spliffd.worker.masked_bodies import MAX_DECODED, masked_body

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)
GIB = 1 << 30
MIB = 1 << 20
RECORD = 16 << 10


def bomb(coding: str) -> bytes:
    """1 GiB of zeros, compressed without ever being in memory."""
    if coding == "gzip":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        return (packer.compress(bytes(MIB)) + packer.flush()) * 1024  # members, one after the other
    if coding == "zstd":
        return zstd.compress(bytes(16 * MIB)) * 64  # frames
    packer = brotli.Compressor(quality=1)
    return b"".join([packer.process(bytes(MIB)) for _ in range(1024)]) + packer.finish()


def peak_mib() -> float:
    """The most memory that this process has had since the last call."""
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")  # from here on anew
    return peak / 1024


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_body_that_becomes_1_gib_stops_and_says_so(coding: str):
    data = bomb(coding)
    response = HttpResponse()
    response.headers = []
    response.content_type, response.content_encoding = "application/json", coding
    body = masked_body(response, data[:RECORD], MASKER, whole=False, reveal=True)
    assert body is not None
    peak_mib()
    before = peak_mib()
    shown = most = 0
    for at in range(0, len(data), RECORD):
        runs = body.feed(at, data[at : at + RECORD])
        shown += sum(len(run[1]) for run in runs)
        most = max(most, sum(len(run[1]) for run in runs))
    shown += sum(len(run[1]) for run in body.finish())
    grown = peak_mib() - before
    assert shown <= body.decoded <= MAX_DECODED + MIB
    assert body.withheld > 0  # what came behind the stop is counted
    assert grown < 64, f"{grown:.0f} MiB more"
    assert most <= 32 * MIB


def played(*records: tuple[int, bytes]) -> tuple[list[HttpExchange], float]:
    """What a connection makes of these records, and how much memory that took at its worst, in MiB."""
    connection = Connection(b"k" * 40, (1, 1), ConnectionFacts(), joined=False)
    connection.watch_bodies(lambda _exchange, _response, _data: None)
    offsets, found = [0, 0], []
    peak_mib()
    before = peak_mib()
    for now, (direction, data) in enumerate(records, 1):
        found += connection.data(direction, offsets[direction], data, len(data), now)
        offsets[direction] += len(data)
    return found, peak_mib() - before


ASKED = (0, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
CHUNKED = (1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("cut", [1, 6, RECORD], ids=["byte", "chunk", "record"])
def test_a_body_in_chunks_of_one_byte_keeps_nothing(cut: int):
    """RFC 9112 section 7.1: six bytes for each, dripping in as they like."""
    drip = b"1\r\nx\r\n" * 30_011 + b"0\r\n\r\n"
    (exchange,), grown = played(
        ASKED, CHUNKED, *((1, drip[at : at + cut]) for at in range(0, len(drip), cut))
    )
    assert exchange.response is not None
    assert (exchange.state, exchange.response.body_size) == ("complete", 30_011)
    assert grown < 16, f"{grown:.0f} MiB more"


def test_a_head_that_drips_in_keeps_no_more_than_its_bound():
    """A mebibyte of header, a byte at a time behind its first part: cut, told, and the next one is read."""
    begun = b"GET /slow HTTP/1.1\r\nX: "
    value = [(0, b"v" * 4096)] * 256
    slow = [(0, b"v")] * 3001
    found, grown = played(
        (0, begun), *value, *slow, (0, b"\r\n\r\n"), (1, b"HTTP/1.1 204 No Content\r\n\r\n")
    )
    assert [exchange.state for exchange in found] == ["truncated"]
    assert grown < 16, f"{grown:.0f} MiB more"


def test_a_hundred_thousand_fields_take_bounded_memory():
    count = 100_000
    fields = b"a: b\r\n" * count
    head = b"GET /many HTTP/1.1\r\n" + fields + b"\r\n"
    up = [(0, head[at : at + RECORD]) for at in range(0, len(head), RECORD)]
    found, grown = played(*up, (1, b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert [exchange.state for exchange in found] == ["truncated"]
    assert grown < 16, f"{grown:.0f} MiB more"

    # The same in HTTP/2: literal fields without a name's index, in CONTINUATION frames.
    block = b"\x82\x84\x86\x41\x01a" + b"\x00\x01a\x01b" * count
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    frames = [
        len(piece).to_bytes(3, "big")
        + bytes([9 if number else 1, 4 if number == len(pieces) - 1 else 0 if number else 1])
        + (1).to_bytes(4, "big")
        + piece
        for number, piece in enumerate(pieces)
    ]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
    answer = bytes(3) + b"\x04" + bytes(5) + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x89"
    found, grown = played((0, preface), *((0, frame) for frame in frames), (1, answer))
    assert [exchange.state for exchange in found] == ["truncated"]
    assert grown < 16, f"{grown:.0f} MiB more"
