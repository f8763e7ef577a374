"""The type information for maps whose values hang on tasks: as the kernel documents it, and taken by it."""

from __future__ import annotations

import struct

from spliffd.kernel.storage import describe

INT, ARRAY = 1, 3


def test_a_key_of_32_bits_and_a_value_of_words():
    blob = describe(7)
    magic, version, flags, header, types_at, types, names_at, names = struct.unpack_from("=HBB5I", blob)
    assert (magic, version, flags, header, types_at, names_at) == (0xEB9F, 1, 0, 24, 0, types)
    assert len(blob) == header + types + names

    text = blob[header + names_at :]
    one, two, three = (struct.unpack_from("=4I", blob, header + at) for at in (0, 16, 32))
    called = [text[kind[0] :].split(b"\0")[0] for kind in (one, two, three)]
    assert called == [b"int", b"u64", b""]
    assert [kind[1] >> 24 for kind in (one, two, three)] == [INT, INT, ARRAY]
    assert (one[2], one[3] & 0xFF) == (4, 32)
    assert (two[2], two[3]) == (8, 64)
    element, index, count = struct.unpack_from("=3I", blob, header + 44)
    assert (element, index, count) == (2, 1, 7)  # types are numbered from 1
