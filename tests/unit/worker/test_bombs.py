"""Bodies that become 1 GiB, and heads without end: memory stays where it was, and what is lost is told."""

from __future__ import annotations

import zlib
from pathlib import Path

import brotli
import pytest
from backports import zstd

from spliffd.config import Access
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpResponse
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
