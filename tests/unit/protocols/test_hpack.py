"""HPACK: the examples of RFC 7541 appendix C, joins in the middle, limits, and the hpack library as oracle."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols.hpack import DEFAULT_TABLE, MAX_FIELDS, MAX_LIST, MAX_TABLE, UNKNOWN, Decoder

DATES = "Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT"
COOKIE = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
AUTHORITY = (":authority", "www.example.com")
FIRST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), AUTHORITY]
SECOND = [*FIRST, ("cache-control", "no-cache")]
THIRD = [
    *(FIRST[0], (":scheme", "https"), (":path", "/index.html"), AUTHORITY),
    ("custom-key", "custom-value"),
]
LOCATION = ("location", "https://www.example.com")
MOVED = [(":status", "302"), ("cache-control", "private"), ("date", DATES[0]), LOCATION]
MOVED_AGAIN = [(":status", "307"), *MOVED[1:]]
FOUND = [
    *((":status", "200"), ("cache-control", "private"), ("date", DATES[1]), LOCATION),
    *(("content-encoding", "gzip"), ("set-cookie", COOKIE)),
]

# Of each example: the table's limit, then block by block the octets, the fields and the table's size after it.
APPENDIX_C = {
    "C.2.1 literal with indexing": (
        4096,
        [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                [("custom-key", "custom-header")],
                55,
            )
        ],
    ),
    "C.2.2 literal without indexing": (
        4096,
        [("040c 2f73 616d 706c 652f 7061 7468", [(":path", "/sample/path")], 0)],
    ),
    "C.2.3 literal never indexed": (
        4096,
        [("1008 7061 7373 776f 7264 0673 6563 7265 74", [("password", "secret")], 0)],
    ),
    "C.2.4 indexed": (4096, [("82", [(":method", "GET")], 0)]),
    "C.3 requests": (
        4096,
        [
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST, 57),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
            ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", THIRD, 164),
        ],
    ),
    "C.4 requests, Huffman": (
        4096,
        [
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD, 164),
        ],
    ),
    "C.5 responses": (
        256,
        [
            (
                (
                    "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a"
                    "3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d"
                ),
                MOVED,
                222,
            ),
            ("4803 3330 37c1 c0bf", MOVED_AGAIN, 222),
            (
                (
                    "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04"
                    "677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49"
                    "553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31"
                ),
                FOUND,
                215,
            ),
        ],
    ),
    "C.6 responses, Huffman": (
        256,
        [
            (
                (
                    "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e"
                    "919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3"
                ),
                MOVED,
                222,
            ),
            ("4883 640e ffc1 c0bf", MOVED_AGAIN, 222),
            (
                (
                    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7"
                    "821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed"
                    "4ee5 b106 3d50 07"
                ),
                FOUND,
                215,
            ),
        ],
    ),
}


def encoded(fields):
    return [(name.encode(), value.encode()) for name, value in fields]


@pytest.mark.parametrize("example", APPENDIX_C)
def test_rfc_7541_appendix_c(example):
    limit, blocks = APPENDIX_C[example]
    decoder = Decoder()
    decoder.table_size = limit
    for octets, fields, size in blocks:
        assert decoder.decode(bytes.fromhex(octets)) == encoded(fields)
        assert decoder.size == size == sum(len(n) + len(v) + 32 for n, v in decoder.entries)
        assert (decoder.broken, decoder.unknown, decoder.cut) == (False, 0, False)


@pytest.mark.parametrize(
    ("octets", "kept"),
    [
        ("80", 0),  # index 0
        ("82 80", 1),
        ("82 ff", 1),  # an index that does not end
        ("ff ff ff ff ff ff ff ff 7f", 0),  # 2^56
        ("82 20", 1),  # a size update that is not in front
        ("3f ff ff ff ff ff 7f", 0),
        ("82 40 05 61", 1),  # a name shorter than it says
        ("40 01 61", 0),  # no value
        ("40 81 ff 01 61", 0),  # padding of eight bits
        ("40 84 ff ff ff ff 00", 0),  # EOS
        ("40 81 00 00", 0),  # padding of zeros
        ("ff 80 80 80 80 10", 0),  # an index beyond any table
        ("00", 0),
    ],
)
def test_a_broken_block_gives_what_stands_before_the_fault(octets, kept):
    decoder = Decoder()
    decoder.decode(bytes.fromhex("4001 6101 62"))

    fields = decoder.decode(bytes.fromhex(octets))

    assert decoder.broken
    assert decoder.bad_blocks == 1
    assert fields == [(b":method", b"GET")] * kept
    assert decoder.decode(b"\x82\xbe") == [(b":method", b"GET"), (UNKNOWN, UNKNOWN)], "the table is uncertain"
    assert not decoder.broken


def test_joined_in_the_middle_new_entries_resolve_and_old_ones_are_unknown():
    encoder = hpack.Encoder()
    old = [("x-old", "1"), ("x-older", "2")]
    encoder.encode(old)  # before we came
    decoder = Decoder(joined=True)

    first = decoder.decode(encoder.encode([(":method", "GET"), ("x-old", "1"), ("x-new", "3")]))
    assert decoder.unknown == 1
    second = decoder.decode(encoder.encode([("x-new", "3"), ("x-old", "changed"), ("x-older", "2")]))

    assert first == [(b":method", b"GET"), (UNKNOWN, UNKNOWN), (b"x-new", b"3")]
    assert second == [(b"x-new", b"3"), (UNKNOWN, b"changed"), (UNKNOWN, UNKNOWN)]
    assert decoder.unknown == 2


def test_the_table_recovers_as_it_refills():
    encoder = hpack.Encoder()
    for n in range(60):
        encoder.encode([(f"x-old-{n}", "v" * 20)])
    decoder = Decoder(joined=True)
    unknown = []
    for n in range(120):
        decoder.decode(encoder.encode([("x-stays", "s"), (f"x-new-{n}", "v" * 20)]))
        unknown.append(decoder.unknown)

    assert sum(unknown) == 0, "what is new to the encoder is known to us"
    for n in range(30, 119):
        if n >= 60:
            assert decoder.decode(encoder.encode([(f"x-new-{n}", "v" * 20)]))[0][0] == b"x-new-%d" % n
    assert decoder.unknown == 0


field = st.tuples(
    st.sampled_from(
        [":path", ":status", "accept", "cookie", "x-a", "x-b", "x-c", "x-d-long-name-of-a-field"]
    ),
    st.one_of(st.sampled_from(["", "1", "200", "/", "value"]), st.text("abcdef0123 é~\x00", max_size=80)),
)
blocks = st.lists(st.tuples(st.lists(field, max_size=12), st.booleans(), st.integers(0, 9)), max_size=20)
TABLE_SIZES = [0, 40, 100, 256, 1024, 4096, 16384, 65536]


def encode_all(sequence):
    """Each block as an independent encoder writes it, with changes of the table's size between."""
    encoder = hpack.Encoder()
    for fields, huffman, size in sequence:
        if size < len(TABLE_SIZES):
            encoder.header_table_size = TABLE_SIZES[size]
        yield [(n.encode(), v.encode()) for n, v in fields], encoder.encode(fields, huffman=huffman)


@settings(max_examples=150, deadline=None)
@given(blocks)
def test_what_an_independent_encoder_writes(sequence):
    decoder = Decoder()
    decoder.limit = MAX_TABLE
    oracle = hpack.Decoder()
    oracle.max_allowed_table_size = MAX_TABLE
    for fields, block in encode_all(sequence):
        assert decoder.decode(block) == fields
        assert (decoder.broken, decoder.unknown) == (False, 0)
        assert [(bytes(n), bytes(v)) for n, v in oracle.decode(block, raw=True)] == fields
        assert decoder.entries[::-1] == [(bytes(n), bytes(v)) for n, v in oracle.header_table.dynamic_entries]
        assert decoder.size == sum(len(n) + len(v) + 32 for n, v in decoder.entries) <= decoder.table_size
    assert decoder.oversize_updates == 0


@settings(max_examples=150, deadline=None)
@given(blocks, st.integers(0, 12), st.sets(st.integers(0, 20)))
def test_never_wrong_whatever_was_missed(sequence, joined_after, lost):
    """Joins late, loses blocks and is told so: every field is right, or says that it is not known."""
    decoder = Decoder(joined=True)
    for number, (fields, block) in enumerate(encode_all(sequence)):
        if number < joined_after:
            continue
        if number in lost:
            decoder.lose()
            continue
        found = decoder.decode(block)
        assert not decoder.broken
        assert len(found) == len(fields)
        unknown = 0
        for (name, value), (true_name, true_value) in zip(found, fields, strict=True):
            unknown += name == UNKNOWN
            assert name in (true_name, UNKNOWN)
            assert value == true_value or (name, value) == (UNKNOWN, UNKNOWN)
        assert decoder.unknown == unknown


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_any_bytes_do_no_harm(sequence, joined):
    decoder = Decoder(joined=joined)
    for block in sequence:
        for name, value in decoder.decode(block):
            assert type(name) is type(value) is bytes
        assert decoder.size <= MAX_TABLE
        assert decoder.size == sum(len(n) + len(v) + 32 for n, v in decoder.entries)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_as_the_oracle_reads_them(sequence):
    """Where the library decodes, we decode the same; where it gives up, we do not call it whole."""
    decoder = Decoder()
    decoder.limit = DEFAULT_TABLE
    oracle = hpack.Decoder()
    for block in sequence:
        try:
            fields = [(bytes(n), bytes(v)) for n, v in oracle.decode(block, raw=True)]
        except hpack.HPACKError:
            decoder.decode(block)
            assert decoder.broken or decoder.unknown or decoder.oversize_updates
            return
        assert decoder.decode(block) == fields
        assert not decoder.broken


def test_an_hpack_bomb_is_cut():
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000)
    assert decoder.size == 4033

    fields = decoder.decode(b"\xbe" * 16384)

    assert decoder.cut
    assert sum(len(n) + len(v) for n, v in fields) <= MAX_LIST
    fields = decoder.decode(b"\x82" * 16384)
    assert decoder.cut
    assert len(fields) == MAX_FIELDS


def test_a_table_beyond_the_bound_makes_entries_unknown_and_none_wrong():
    encoder = hpack.Encoder()
    encoder.header_table_size = 1 << 20
    decoder = Decoder()
    decoder.limit = 1 << 20
    for n in range(1009):
        decoder.decode(encoder.encode([(f"x-{n}", "v" * 100)], huffman=False))
    assert decoder.size <= MAX_TABLE
    assert decoder.oversize_updates == 0

    assert decoder.decode(encoder.encode([("x-1008", "v" * 100)])) == [(b"x-1008", b"v" * 100)]
    assert decoder.decode(encoder.encode([("x-0", "v" * 100)])) == [(UNKNOWN, UNKNOWN)]
