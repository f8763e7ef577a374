"""The Huffman code of HPACK, against the hpack library's tables and coder."""

from __future__ import annotations

from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols import hpack_huffman
from spliffd.protocols.hpack_huffman import MAX_REMEMBERED, decode, known_strings
from spliffd.protocols.hpack_tables import STATIC, huffman_codes

coder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def test_the_tables_are_those_of_the_rfc():
    pairs = zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)
    assert [huffman_codes()[symbol] for symbol in range(257)] == list(pairs)
    assert list(HeaderTable.STATIC_TABLE) == STATIC[1:]


def test_every_byte_comes_back():
    everything = bytes(range(256)) * 3
    assert decode(coder.encode(everything)) == everything


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_as_the_library_reads_them(coded):
    try:
        expected = bytes(decode_huffman(coded))
    except HPACKDecodingError:
        expected = None
    assert decode(coded) == expected
    assert decode(coded) == expected, "the second time it is remembered"


def test_what_is_remembered_is_bounded():
    for n in range(MAX_REMEMBERED + 1009):
        decode(coder.encode(b"%d-%d" % (n, n)))
        assert len(known_strings) <= MAX_REMEMBERED
    long = coder.encode(b"x" * 200)
    decode(long)
    assert long not in known_strings


def test_what_is_worked_out_is_bounded():
    nodes, seen = [hpack_huffman._root], set()
    while nodes:
        node = nodes.pop()
        if id(node) not in seen:
            seen.add(id(node))
            nodes += [branch for branch in node.branches if isinstance(branch, hpack_huffman.Node)]
    assert len(seen) == 256
