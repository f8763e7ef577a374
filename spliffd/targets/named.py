"""Recognises TLS libraries whose functions mean what their names say: GnuTLS, NSS, wolfSSL, Mbed TLS.

Takes an ``Image``; returns an ``Inspection``. Unlike OpenSSL's relatives these have no function that
several exported ones share and that is cheaper to probe, so every site is at a function's beginning: its
first instruction, or a cheaper one close behind it (``entries``).
A function that only passes its arguments on to another of the list is left out: a probe on both would
see one call twice.

NSS reads and writes through NSPR's general functions, which serve files and pipes as well. Only what
SSL_ImportFD has returned is TLS, so those sites are marked ``known_only``: the kernel program looks the
descriptor up before anything of the call is kept.

Sources: the GnuTLS manual, "Core TLS API"; the NSS reference, "SSL functions" and "NSPR I/O functions";
the wolfSSL manual, chapter 17; ``mbedtls/ssl.h``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from spliffd.targets.elf import Image
from spliffd.targets.entries import cheapest
from spliffd.targets.sites import Flavour, Inspection, Op, Site


class _Call(NamedTuple):
    """One function: what it does, how it tells its result, which other function of the list it calls."""

    name: str
    op: Op
    flavour: Flavour = "none"
    known_only: bool = False
    passes_on_to: str = ""


class _Family(NamedTuple):
    """One library: what only it defines, what to probe in it, and where it says its version."""

    library: str
    essential: tuple[str, ...]
    calls: tuple[_Call, ...]
    version: re.Pattern[bytes] | None = None


_WITHOUT_RESULT = ("set_fd", "free", "clear")

_FAMILIES = (
    _Family(
        "gnutls",
        ("gnutls_record_send", "gnutls_record_recv", "gnutls_deinit"),
        (
            # The second came with 3.6.3, and the first has called it since.
            _Call("gnutls_record_send", "write", "count", passes_on_to="gnutls_record_send2"),
            _Call("gnutls_record_send2", "write", "count"),
            _Call("gnutls_record_send_range", "write", "count"),
            _Call("gnutls_record_send_early_data", "write", "zero"),
            _Call("gnutls_record_recv", "read", "count"),
            _Call("gnutls_record_recv_seq", "read", "count"),
            _Call("gnutls_record_recv_early_data", "read", "count"),
            _Call("gnutls_handshake", "handshake", "zero"),
            _Call("gnutls_transport_set_int2", "set_fd"),
            # What it sends was seen when it was written into the cork's buffer.
            _Call("gnutls_record_uncork", "uncork"),
            _Call("gnutls_deinit", "free"),
            _Call("gnutls_alpn_get_selected_protocol", "alpn", "zero"),
        ),
        re.compile(rb"GnuTLS (\d{1,2}\.\d{1,3}\.\d{1,3}) "),
    ),
    _Family(
        "nss",
        ("SSL_ImportFD", "SSL_ForceHandshake", "SSL_ResetHandshake"),
        (
            _Call("SSL_ImportFD", "import"),
            _Call("SSL_ForceHandshake", "handshake", "zero"),
        ),
        re.compile(rb"Version: NSS (\d{1,2}\.\d{1,3}(?:\.\d{1,3})?)"),
    ),
    _Family(
        "nss",
        ("PR_Read", "PR_Write", "PR_Send", "PR_Recv", "PR_Close"),
        (
            _Call("PR_Read", "read", "count", known_only=True),
            _Call("PR_Recv", "read", "count", known_only=True),
            _Call("PR_Write", "write", "count", known_only=True),
            _Call("PR_Send", "write", "count", known_only=True),
            # What a listening TLS socket accepts is TLS without SSL_ImportFD. PR_TransmitFile
            # comes by PR_Send.
            _Call("PR_Writev", "write", "vector", known_only=True),
            _Call("PR_Accept", "import", known_only=True),
            _Call("PR_Close", "free", known_only=True),
        ),
    ),
    _Family(
        "wolfssl",
        ("wolfSSL_read", "wolfSSL_write", "wolfSSL_free"),
        (
            # wolfSSL_send and wolfSSL_recv set flags and call these.
            _Call("wolfSSL_read", "read", "count"),
            _Call("wolfSSL_write", "write", "count"),
            _Call("wolfSSL_connect", "connect"),
            _Call("wolfSSL_accept", "accept"),
            _Call("wolfSSL_set_fd", "set_fd"),
            _Call("wolfSSL_free", "free"),
            _Call("wolfSSL_clear", "clear"),
        ),
        re.compile(rb"wolfSSL (\d{1,2}\.\d{1,3}\.\d{1,3})"),
    ),
    _Family(
        "mbedtls",
        ("mbedtls_ssl_read", "mbedtls_ssl_write", "mbedtls_ssl_free"),
        (
            _Call("mbedtls_ssl_read", "read", "count"),
            _Call("mbedtls_ssl_write", "write", "count"),
            _Call("mbedtls_ssl_handshake", "handshake", "zero"),
            _Call("mbedtls_ssl_free", "free"),
            _Call("mbedtls_ssl_session_reset", "clear"),
        ),
        re.compile(rb"[mM]bed TLS (\d{1,2}\.\d{1,3}\.\d{1,3})"),
    ),
)


def inspect(image: Image, relocate: bool) -> Inspection:
    """The library in ``image`` and its sites; NSS and NSPR linked into one program are one library."""
    names = dict.fromkeys(
        name for family in _FAMILIES for name in (*family.essential, *(call.name for call in family.calls))
    )
    functions = image.functions([*names])
    found = [family for family in _FAMILIES if all(name in functions for name in family.essential)]
    if not found:
        return Inspection(
            "skipped", build_id=image.build_id, reason="no TLS library: none of their functions"
        )
    library = found[0].library
    if any(family.library != library for family in found):
        both = " and ".join(dict.fromkeys(family.library for family in found))
        return Inspection("refused", library, build_id=image.build_id, reason=f"holds {both}: not supported")
    cheap = relocate and image.machine == "x86-64"
    starts = image.exported_addresses() | {function.address for function in functions.values()}
    sites: list[Site] = []
    for family in found:
        for call in family.calls:
            if call.name not in functions or call.passes_on_to in functions:
                continue
            function = functions[call.name]
            skip, proof = 0, f"the arguments are intact at the first instruction of {call.name}"
            first = image.offset_of(function.address)
            if cheap:
                skip, proof = cheapest(image, call.name, function, starts)
            sites.append(
                Site(
                    call.name,
                    first + skip,
                    call.op not in _WITHOUT_RESULT,
                    call.op,
                    call.flavour,
                    "entry",
                    proof,
                    call.known_only,
                    (first,) if skip and call.op not in _WITHOUT_RESULT else (),
                )
            )
    if len({site.offset for site in sites}) != len(sites):
        return Inspection("refused", library, build_id=image.build_id, reason="two of its functions are one")
    return Inspection("attach", library, _version(image, found), image.build_id, sites)


def _version(image: Image, found: list[_Family]) -> str:
    for family in found:
        text = image.find_text(family.version) if family.version else None
        if text:
            return text[1].decode("ascii")
    return ""
