"""Libraries whose functions mean what their names say, and those that have lost their names."""

from __future__ import annotations

import pytest

from spliffd.targets import recognise
from spliffd.targets.elf import Image
from spliffd.targets.sites import check
from tests.unit.targets.conftest import ENDBR64, RET, library, openssl

BODY = [b"\x31\xc0" + RET]
GNUTLS = ("gnutls_record_send", "gnutls_record_recv", "gnutls_handshake", "gnutls_deinit")
NSPR = ("PR_Read", "PR_Write", "PR_Send", "PR_Recv", "PR_Close", "PR_Accept")
NSS = ("SSL_ImportFD", "SSL_ForceHandshake", "SSL_ResetHandshake")
MBED = ("mbedtls_ssl_read", "mbedtls_ssl_write", "mbedtls_ssl_handshake", "mbedtls_ssl_free")
WOLF = ("wolfSSL_read", "wolfSSL_write", "wolfSSL_connect", "wolfSSL_free")


def of(*names, start=b""):
    return {name: [start, *BODY, b"\x90" * 8] for name in names}


@pytest.fixture
def inspect(opened):
    def inspected(functions, text=b""):
        data, places = library(functions, text=text)
        with Image(opened(data)) as image:
            found = recognise.inspect(image, relocate=True)
        assert check(found, len(data)) == ""
        return found, places

    return inspected


@pytest.mark.parametrize(
    ("names", "expected"),
    [(GNUTLS, "gnutls"), (NSS, "nss"), (NSPR, "nss"), (WOLF, "wolfssl"), (MBED, "mbedtls")],
)
def test_each_is_recognised_and_probed_at_its_entries(inspect, names, expected):
    found, places = inspect(of(*names))
    assert (found.state, found.library) == ("attach", expected)
    assert {site.offset for site in found.sites} <= {places[name] for name in names}
    for site in found.sites:
        assert site.offset == places[site.symbol]
        assert site.placement == "entry"


def test_one_function_fewer_is_none_of_them(inspect):
    for names in (GNUTLS, NSS, NSPR, WOLF, MBED):
        essential = {"gnutls_handshake", "wolfSSL_connect", "mbedtls_ssl_handshake", "PR_Accept"}
        for left_out in set(names) - essential:
            found, _ = inspect(of(*(name for name in names if name != left_out)))
            assert found.state == "skipped", left_out


def test_a_function_that_passes_its_arguments_on_is_left_out(inspect):
    found, _ = inspect(of(*GNUTLS))
    assert {site.symbol for site in found.sites if site.op == "write"} == {"gnutls_record_send"}
    found, _ = inspect(of(*GNUTLS, "gnutls_record_send2"))
    assert {site.symbol for site in found.sites if site.op == "write"} == {"gnutls_record_send2"}


def test_functions_that_serve_files_too_count_only_for_known_objects(inspect):
    found, _ = inspect(of(*NSPR))
    assert all(site.known_only for site in found.sites)
    found, _ = inspect(of(*NSS, *NSPR))  # in one file, as browsers have it
    assert {site.symbol for site in found.sites if not site.known_only} == {
        "SSL_ImportFD",
        "SSL_ForceHandshake",
    }


def test_success_is_told_as_each_library_tells_it(inspect):
    for names, flavour in ((GNUTLS, "zero"), (MBED, "zero"), (WOLF, "none")):
        found, _ = inspect(of(*names))
        shakes = [site for site in found.sites if site.op in ("handshake", "connect")]
        assert [site.flavour for site in shakes] == [flavour]
        assert all(site.return_probe for site in shakes)


def test_a_landing_pad_is_stepped_over_only_to_an_emulated_instruction(inspect):
    found, places = inspect(of(*WOLF, start=ENDBR64 + b"\x53"))
    assert {site.offset - places[site.symbol] for site in found.sites} == {4}
    found, places = inspect(of(*WOLF, start=ENDBR64))
    assert {site.offset - places[site.symbol] for site in found.sites} == {0}


def test_two_libraries_in_one_file_are_refused(inspect):
    found, _ = inspect(of(*GNUTLS, *WOLF))
    assert (found.state, found.reason) == ("refused", "holds gnutls and wolfssl: not supported")


def test_openssl_is_still_openssl(inspect):
    assert inspect(openssl())[0].library == "openssl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"external/boringssl/ssl/ssl_lib.cc\0", "boringssl"),
        (b"../ssl/ssl_lib.c\0", "openssl"),
        (b"/registry/src/index/rustls-0.23.12/src/conn.rs", "rustls"),
        (b"wolfSSL 5.7.2\0", "wolfssl"),
        (b"Enabled GnuTLS 3.8.9 logging...", "gnutls"),
    ],
)
def test_a_library_without_symbols_is_named_with_the_reason(inspect, text, expected):
    found, _ = inspect(of("other"), b"\0" + text)
    assert (found.state, found.library, found.sites) == ("refused", expected, [])
    assert "no symbols" in found.reason


def test_a_program_that_only_knows_a_version_is_none(inspect):
    found, _ = inspect(of("other"), b"\0OpenSSL 3.0.15 3 Sep 2024\0curl with BoringSSL\0")
    assert found.state == "skipped"
