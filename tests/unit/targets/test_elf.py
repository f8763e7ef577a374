"""Files that are no ELF files, or broken or hostile ones: a reason, never an exception, never for long."""

from __future__ import annotations

import os
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.targets import elf
from spliffd.targets.elf import Image, UnreadableError
from spliffd.targets.inspector import inspect_fd
from spliffd.targets.sites import Inspection, check, decode_inspection, encode_inspection
from tests.unit.targets.conftest import TEXT, library, openssl

DATA, PLACES = library(openssl(), text=b"OpenSSL 3.0.19 27 Jan 2026\0")
SECTIONS = struct.unpack_from("<Q", DATA, 40)[0]


def reason_of(opened, data):
    with pytest.raises(UnreadableError) as caught:
        Image(opened(data))
    return str(caught.value)


def changed(offset, form, *values):
    data = bytearray(DATA)
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


SYMBOLS = SECTIONS + 64 * 3
BROKEN = {
    "empty": (b"", "too short for an ELF file"),
    "text": (b"#!/bin/sh\n" * 10, "not an ELF file"),
    "32-bit": (changed(4, "<B", 1), "32-bit programs are not supported"),
    "big-endian": (changed(5, "<B", 2), "machine 62 is not supported"),
    "MIPS": (changed(18, "<H", 8), "machine 8 is not supported"),
    "object file": (changed(16, "<H", 1), "neither an executable nor a shared library"),
    "no segments": (changed(56, "<H", 0), "0 segments"),
    "65535 segments": (changed(56, "<H", 0xFFFF), "65535 segments"),
    "no sections": (changed(60, "<H", 0), "no section headers"),
    "sections elsewhere": (changed(40, "<Q", 1 << 63), "section headers reaches beyond the end"),
    "odd program headers": (changed(54, "<H", 57), "program headers of an unknown form"),
    "segment too long": (changed(64 + 32, "<Q", 1 << 40), "a segment reaches beyond the end"),
    "symbols beyond the end": (changed(SYMBOLS + 24, "<Q", 1 << 50), "a symbol table reaches beyond the end"),
    "symbols of another size": (changed(SYMBOLS + 56, "<Q", 0), "a symbol table of an unknown form"),
    "strings of no section": (changed(SYMBOLS + 40, "<I", 99), "a symbol table of an unknown form"),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_has_a_reason(opened, data, reason):
    assert reason in reason_of(opened, data)
    inspection = inspect_fd(opened(data), relocate=True)
    assert inspection.state == "refused"
    assert reason in inspection.reason


def test_only_regular_files_are_read(tmp_path):
    for path in ("/dev/null", str(tmp_path)):
        fd = os.open(path, os.O_RDONLY)
        try:
            assert inspect_fd(fd, relocate=True).reason == "not a regular file"
        finally:
            os.close(fd)


def test_a_file_beyond_the_bounds_is_refused_without_reading_it(opened):
    fd = opened(DATA)
    os.ftruncate(fd, elf.MAX_FILE + 1)
    assert inspect_fd(fd, relocate=True).reason == "larger than 768 MiB"
    os.ftruncate(fd, elf.MAX_TABLE * 2)
    os.pwrite(fd, struct.pack("<Q", elf.MAX_TABLE + 24), SYMBOLS + 32)
    assert "a symbol table of" in inspect_fd(fd, relocate=True).reason


def test_the_largest_symbol_table_allowed_takes_seconds_not_minutes(opened):
    """2.8 million symbols, all named SSL_read, in a sparse file."""
    fd = opened(DATA)
    name = DATA.index(b"SSL_read\0") - struct.unpack_from("<Q", DATA, SYMBOLS + 64 + 24)[0]
    row = struct.pack("<IBBHQQ", name, 0x12, 0, 2, PLACES["SSL_read"], 60)
    start = len(DATA)
    os.pwrite(fd, row * (elf.MAX_TABLE // 24), start)
    os.pwrite(fd, struct.pack("<QQ", start, elf.MAX_TABLE // 24 * 24), SYMBOLS + 24)
    before = time.process_time()
    assert inspect_fd(fd, relocate=True).state == "skipped"
    assert time.process_time() - before < 5


def test_a_name_that_stands_everywhere_is_refused(opened):
    strings = b"SSL_read\0" * (elf.MAX_SAME_NAME + 1)
    data = bytearray(DATA + strings)
    struct.pack_into("<QQ", data, SYMBOLS + 64 + 24, len(DATA), len(strings))
    assert inspect_fd(opened(bytes(data)), relocate=True).reason == "the name SSL_read more than 4096 times"


def test_a_symbol_outside_of_the_code_is_refused(opened):
    at = DATA.index(struct.pack("<QQ", PLACES["SSL_free"], 3))
    data = bytearray(DATA)
    struct.pack_into("<Q", data, at, 0x100000)
    inspection = inspect_fd(opened(bytes(data)), relocate=True)
    assert (inspection.state, inspection.reason) == (
        "refused",
        "address 0x100000 is not in executable code",
    )


def test_the_default_version_of_a_symbol_is_taken(opened):
    """libssl of some distributions exports a name twice, for old and for new programs."""
    rows = DATA.index(struct.pack("<QQ", PLACES["SSL_free"], 3)) - 8
    free = DATA[rows : rows + 24]
    table, size = struct.unpack_from("<QQ", DATA, SYMBOLS + 24)
    old = free[:8] + struct.pack("<QQ", PLACES["SSL_new"], 3)
    for order in ((old, free), (free, old)):
        symbols = DATA[table : table + size].replace(free, b"".join(order))
        hidden = [0x8000 * (symbols[i : i + 24] == old) + 2 for i in range(0, len(symbols), 24)]
        versions = struct.pack(f"<{len(hidden)}H", *hidden)
        data = bytearray(DATA + symbols + versions)
        struct.pack_into("<QQ", data, SYMBOLS + 24, len(DATA), len(symbols))
        spare = SECTIONS  # the empty section becomes the version table
        struct.pack_into("<IIQQQQ", data, spare, 0, 0x6FFFFFFF, 2, 0, len(DATA) + len(symbols), len(versions))
        with Image(opened(bytes(data))) as image:
            assert image.functions(["SSL_free"])["SSL_free"].address == PLACES["SSL_free"]


def inspect_bytes(data):
    fd = os.memfd_create("elf")
    try:
        os.write(fd, data)
        inspection = inspect_fd(fd, relocate=True)
    finally:
        os.close(fd)
    assert isinstance(inspection, Inspection)
    assert inspection.state == "attach" or inspection.reason
    assert "cannot be inspected" not in inspection.reason
    assert decode_inspection(encode_inspection(inspection)) == inspection
    assert check(inspection, len(data)) == ""
    return inspection


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", DATA[:64], DATA[:176]]))
def test_random_bytes_are_answered(data, before):
    assert inspect_bytes(before + data).state == "refused"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_file_is_answered(length):
    assert inspect_bytes(DATA[:length]).state == "refused"


PLACES_TO_HIT = [*range(16, 176), *range(TEXT, len(DATA))]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES_TO_HIT), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_file_is_answered(hits):
    data = bytearray(DATA)
    for place, value in hits:
        data[place] = value
    inspect_bytes(bytes(data))
