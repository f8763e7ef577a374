"""Recognition and placement on real libraries of this host, with evidence that does not share our code."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

import pytest

from spliffd.targets import openssl as placement
from spliffd.targets.elf import Image
from spliffd.targets.sites import check
from tests.unit.targets.conftest import library, openssl


def inspect(fd, relocate=True):
    with Image(fd) as image:
        return placement.inspect(image, relocate)


@pytest.fixture
def real(libssl):
    fd = os.open(libssl, os.O_RDONLY)
    yield fd
    os.close(fd)


def sites(inspection, op):
    return [site for site in inspection.sites if site.op == op]


def function_starts(data):
    """Where .eh_frame_hdr says that functions begin: the compiler's own list, symbols or not."""
    (headers,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    for number in range(count):
        kind, _, offset, address = struct.unpack_from("<IIQQ", data, headers + 56 * number)
        if kind == 0x6474E550:  # PT_GNU_EH_FRAME
            # version 1, pcrel|sdata4 pointer, udata4 count, datarel|sdata4 table
            assert data[offset : offset + 4] == b"\x01\x1b\x03\x3b"
            (entries,) = struct.unpack_from("<I", data, offset + 8)
            table = struct.iter_unpack("<ii", data[offset + 12 : offset + 12 + 8 * entries])
            return {address + start for start, _ in table}
    raise AssertionError("no .eh_frame_hdr")


def called(data, image, name):
    """The destinations of all bytes in a function that look like ``call rel32``."""
    function = image.functions([name])[name]
    at = image.offset_of(function.address)
    code = data[at : at + function.size]
    return {
        function.address + i + 5 + struct.unpack_from("<i", code, i + 1)[0]
        for i in range(len(code) - 4)
        if code[i] == 0xE8
    }


@pytest.mark.parametrize("op", ["read", "write"])
def test_the_hosts_libssl_is_probed_at_the_function_both_calls_share(libssl, real, op):
    inspection = inspect(real)
    assert (inspection.state, inspection.library, inspection.reason) == ("attach", "openssl", "")
    assert inspection.version.startswith("3.")
    assert check(inspection, libssl.stat().st_size) == ""
    [site] = sites(inspection, op)
    assert (site.placement, site.flavour, site.return_probe) == ("internal", "pointer", True)
    data = libssl.read_bytes()
    starts = function_starts(data)
    with Image(real) as image:
        shared = called(data, image, f"SSL_{op}") & called(data, image, f"SSL_{op}_ex") & starts
        assert [image.offset_of(target) for target in shared] == [site.offset]
        peeked = called(data, image, "SSL_peek") | called(data, image, "SSL_peek_ex")
        assert not shared & peeked
    assert data[site.offset] in (0x41, *range(0x50, 0x58))


def test_the_hosts_libssl_has_every_other_site_at_its_symbol(libssl, real):
    inspection = inspect(real)
    with Image(real) as image:
        functions = image.functions([site.symbol for site in inspection.sites])
        expected = {name: image.offset_of(function.address) for name, function in functions.items()}
    found = {site.symbol: site.offset for site in inspection.sites if site.placement == "entry"}
    assert found == expected
    results = {site.symbol for site in inspection.sites if site.placement == "entry" and site.return_probe}
    asked = {"SSL_get0_alpn_selected", "SSL_get_verify_result"}
    assert results == {"SSL_do_handshake", "SSL_connect", "SSL_accept", *asked}
    assert set(found) - results == {"SSL_set_fd", "SSL_free", "SSL_clear"}


def test_a_build_id_is_what_readelf_says(libssl, real):
    notes = subprocess.run(["readelf", "-n", libssl], capture_output=True, text=True, check=True).stdout
    assert f"Build ID: {inspect(real).build_id}\n" in notes


def patched(tmp_path, libssl, function, old, new):
    """A copy of libssl in which one function has other bytes."""
    copy = tmp_path / "libssl.so.3"
    shutil.copy(libssl, copy)
    with open(copy, "r+b") as file, Image(file.fileno()) as image:
        found = image.functions([function])[function]
        at = image.offset_of(found.address)
        code = os.pread(file.fileno(), found.size, at)
        assert code.count(old) == 1, f"{function} of this build has no {old.hex()}"
        os.pwrite(file.fileno(), new, at + code.index(old))
    return os.open(copy, os.O_RDONLY)


@pytest.mark.parametrize(
    ("function", "old", "new", "op"),
    [
        # movslq %edx,%rdx becomes three bytes that write an argument instead
        ("SSL_write", b"\x48\x63\xd2", b"\x48\x89\xce", "write"),  # mov %rcx,%rsi
        ("SSL_read", b"\x48\x63\xd2", b"\x48\x89\xf7", "read"),  # mov %rsi,%rdi
        ("SSL_write", b"\x48\x63\xd2", b"\x0f\x1f\x00", "write"),  # nop: the count is not extended
        ("SSL_write_ex", b"\x85\xc0", b"\x66\x90", "write"),  # the result is not tested
    ],
    ids=["rsi", "rdi", "count", "result"],
)
def test_a_patched_libssl_falls_back_to_the_entries(tmp_path, libssl, function, old, new, op):
    fd = patched(tmp_path, libssl, function, old, new)
    try:
        inspection = inspect(fd)
    finally:
        os.close(fd)
    assert [site.symbol for site in sites(inspection, op)] == [f"SSL_{op}", f"SSL_{op}_ex"]
    assert {site.placement for site in sites(inspection, op)} == {"entry"}
    assert function in inspection.reason


def test_an_ex_function_that_calls_something_else_and_an_internal_one_that_begins_with_sub(
    tmp_path, libssl, real
):
    [site] = sites(inspect(real), "write")
    with Image(real) as image:
        function = image.functions(["SSL_write_ex"])["SSL_write_ex"]
        at = image.offset_of(function.address)
    code = os.pread(real, function.size, at)
    [call] = [i for i in range(len(code) - 4) if code[i] == 0xE8]
    (distance,) = struct.unpack_from("<i", code, call + 1)
    cases = {
        "SSL_write and SSL_write_ex do not call the same function": (
            at + call + 1,
            struct.pack("<i", distance + 2),
        ),
        "does not begin with an instruction that is emulated": (site.offset, b"\x48\x83\xec\x38"),
    }
    for reason, (place, new) in cases.items():
        copy = tmp_path / "copy"
        shutil.copy(libssl, copy)
        with open(copy, "r+b") as file:
            os.pwrite(file.fileno(), new, place)
            inspection = inspect(file.fileno())
        assert reason in inspection.reason
        assert {s.placement for s in sites(inspection, "write")} == {"entry"}
        assert {s.placement for s in sites(inspection, "read")} == {"internal"}


def test_a_program_that_carries_openssl_inside_is_found(opened):
    node = shutil.which("node")
    assert node, "the tests need node: apt-get install nodejs"
    fd = os.open(os.path.realpath(node), os.O_RDONLY)
    try:
        inspection = inspect(fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if inspection.state == "skipped":
        # This build of node links to the shared library: a synthetic one has to do.
        inspection = inspect(opened(library(openssl(), table=2)[0]))
        size = 1 << 20
    assert (inspection.state, inspection.library) == ("attach", "openssl")
    assert check(inspection, size) == ""
    assert sites(inspection, "read")
    assert sites(inspection, "write")


def test_symbols_of_the_full_table_will_do_for_a_static_program(opened):
    inspection = inspect(opened(library(openssl(), table=2)[0]))
    assert inspection.state == "attach"
    assert len(inspection.sites) == 8


@pytest.mark.parametrize(
    ("mark", "name", "calls"),
    [
        ("SSL_CTX_set_grease_enabled", "boringssl", ["SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex"]),
        ("SSL_CTX_use_certificate_chain_mem", "libressl", ["SSL_read", "SSL_write"]),
    ],
)
def test_the_relatives_are_told_apart_and_probed_at_their_entries(opened, mark, name, calls):
    functions = openssl()
    functions[mark] = functions.pop("SSL_waiting_for_async")
    inspection = inspect(opened(library(functions)[0]))
    assert (inspection.state, inspection.library) == ("attach", name)
    assert {site.placement for site in inspection.sites} == {"entry"}
    assert [site.symbol for site in inspection.sites if site.op in ("read", "write")] == calls


def test_a_look_alike_is_refused_and_other_files_are_skipped(opened):
    functions = openssl()
    del functions["SSL_waiting_for_async"]
    inspection = inspect(opened(library(functions)[0]))
    assert (inspection.state, inspection.sites) == ("refused", [])
    assert "neither OpenSSL" in inspection.reason
    del functions["SSL_new"]
    inspection = inspect(opened(library(functions)[0]))
    assert (inspection.state, inspection.reason) == ("skipped", "no TLS library: no SSL_new in it")


def test_functions_folded_into_one_cannot_be_told_apart(opened):
    data, places = library(openssl())
    accept, connect = (struct.pack("<Q", places[name]) for name in ("SSL_accept", "SSL_connect"))
    assert data.count(accept) == 1
    inspection = inspect(opened(data.replace(accept, connect)))
    assert (inspection.state, inspection.sites) == ("refused", [])
    assert inspection.reason == "two of its functions are one"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"OpenSSL 3.0.19 27 Jan 2026\0", "3.0.19"),
        (b"xx\0OpenSSL 1.1.1w  11 Sep 2023\0", "1.1.1w"),
        (b"OpenSSL 3.0 is mentioned here", ""),
        (b"", ""),
    ],
)
def test_the_version_is_what_the_file_says(opened, text, version):
    assert inspect(opened(library(openssl(), text=text)[0])).version == version
