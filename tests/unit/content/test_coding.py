"""Content codings: whatever the pieces, the same bytes; bombs and broken bodies stop, bounded."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from spliffd.content import coding
from spliffd.content.coding import Decoder

MIB = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


def encode(value: str, data: bytes) -> bytes:
    for name in coding.codings(value):
        data = ENCODERS[name](data)
    return data


def decode(
    value: str, data: bytes, sizes=(1 << 30,), max_size=64 * MIB, max_ratio=2000
) -> tuple[bytes, Decoder]:
    decoder = Decoder(value, max_size=max_size, max_ratio=max_ratio)
    out, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        for piece in decoder.feed(data[at : at + size]):
            assert len(piece) <= 2 * coding.CHUNK
            out.append(piece)
        at += size
        number += 1
    return b"".join(out), decoder


values = st.lists(st.sampled_from(["gzip", "deflate", "br", "zstd"]), min_size=1, max_size=3).map(", ".join)


@given(
    values,
    st.binary(max_size=300).map(lambda data: data * 40),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_stacks_in_pieces_of_any_size(value, data, sizes):
    out, decoder = decode(value, encode(value, data), sizes)
    assert (out, decoder.problem, decoder.complete) == (data, "", True)
    assert decoder.size == len(data)


@pytest.mark.parametrize("sizes", [(1,), (2,), (7,), (1 << 20,)])
def test_raw_deflate_where_zlib_was_promised(sizes):
    out, decoder = decode("deflate", raw_deflate(b"hello " * 99), sizes)
    assert (out, decoder.problem) == (b"hello " * 99, "")


@pytest.mark.parametrize("sizes", [(1,), (1 << 20,)])
def test_members_and_frames_one_after_the_other(sizes):
    for value in ("gzip", "zstd"):
        out, decoder = decode(value, encode(value, b"one") + encode(value, b"two"), sizes)
        assert (out, decoder.problem, decoder.complete) == (b"onetwo", "", True)


@pytest.mark.parametrize("value", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_ends_early_is_not_complete(value):
    whole = encode(value, bytes(range(256)) * 100)
    out, decoder = decode(value, whole[:-5])
    assert decoder.problem == ""
    assert not decoder.complete
    assert (bytes(range(256)) * 100).startswith(out)


@pytest.mark.parametrize("value", ["gzip", "br", "zstd"])
def test_what_is_not_encoded_at_all(value):
    out, decoder = decode(value, b'{"plain": "text, whatever the header says"}')
    assert decoder.problem in (coding.CORRUPT, coding.TRAILING)
    assert not decoder.complete
    assert len(out) < 100
    assert list(decoder.feed(b"more")) == []


def test_bytes_behind_the_end():
    out, decoder = decode("gzip", gzip.compress(b"x") + b"\0\0\0")
    assert (out, decoder.problem) == (b"x", "")
    for value in ("gzip", "deflate"):
        out, decoder = decode(value, encode(value, b"x") + b"tail")
        assert (out, decoder.problem) == (b"x", coding.TRAILING)
    assert decode("br", encode("br", b"x") + b"tail")[1].problem
    assert decode("br", encode("br", b"x") + b"tail", (1,))[1].problem == coding.TRAILING


@pytest.mark.parametrize("value", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "zstd, br", "br, gzip"])
def test_bombs_stop(value):
    data = encode(value, bytes(64 * MIB))
    taken = 0
    decoder = Decoder(value, max_size=8 * MIB, max_ratio=100)
    for at in range(0, len(data), 4096):
        for piece in decoder.feed(data[at : at + 4096]):
            taken += len(piece)
    assert decoder.problem in (coding.BOMB, coding.TOO_LARGE)
    assert taken <= 8 * MIB
    # The same without a ratio runs into the size.
    out, decoder = decode(value, data, max_size=2 * MIB, max_ratio=1 << 40)
    assert decoder.problem == coding.TOO_LARGE
    assert len(out) <= 2 * MIB


def test_honest_bodies_pass_the_ratio():
    page = b"<tr><td>row</td></tr>\n" * 40_000
    for value in ENCODERS:
        out, decoder = decode(value, encode(value, page), max_ratio=100)
        assert (len(out), decoder.problem) == (len(page), "")


def test_names():
    assert coding.codings(" GZIP , identity, x-gzip,br") == ["gzip", "gzip", "br"]
    assert coding.is_known("")
    assert coding.is_known("gzip, br")
    assert not coding.is_known("compress")
    assert not coding.is_known("gzip,gzip,gzip,gzip,gzip")


@given(values, st.binary(max_size=200), st.integers(1, 9))
def test_nothing_raises(value, data, size):
    decode(value, data, (size,))
