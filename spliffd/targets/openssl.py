"""Recognises OpenSSL and its relatives in a file, and says at which instructions to probe it.

Takes an ``Image``; returns an ``Inspection``. A library is recognised by the functions it defines, so a
program that carries OpenSSL inside (node) is found like libssl. For every TLS call there is a site at
the function's entry; for reads and writes of OpenSSL 1.1 to 3.2 on x86-64 there usually is a better one:

``SSL_read`` and ``SSL_read_ex`` both call ``ssl_read_internal(SSL *, void *, size_t, size_t *)``, which
has no symbol; one probe there serves both, serves BIO_f_ssl too (which never calls the exported
functions), and its first instruction is a ``push`` that the kernel emulates at a tenth of the cost of a
single step. The same for writing. ``proof`` must show that it is that function; in doubt the entries of
the exported functions are used, which is dearer and never wrong.
Never counts SSL_peek as a read: it consumes nothing.
"""

from __future__ import annotations

import re

from spliffd.targets import errors, internal
from spliffd.targets.elf import Function, Image
from spliffd.targets.entries import cheapest
from spliffd.targets.sites import Flavour, Inspection, Op, Site
from spliffd.targets.x86 import UndecidedError

ESSENTIAL = ("SSL_read", "SSL_write", "SSL_new", "SSL_free")
"""Without all of these a file is not a TLS library, whatever else it is called like."""

_CALLS: tuple[tuple[str, Op, Flavour, bool], ...] = (
    ("SSL_do_handshake", "handshake", "none", True),
    ("SSL_connect", "connect", "none", True),
    ("SSL_accept", "accept", "none", True),
    ("SSL_set_fd", "set_fd", "none", False),
    ("SSL_free", "free", "none", False),
    ("SSL_clear", "clear", "none", False),
    ("SSL_get0_alpn_selected", "alpn", "none", True),
    ("SSL_get_verify_result", "verified", "none", True),
)
_TRANSFERS: tuple[tuple[str, Op, Flavour], ...] = (
    ("SSL_read", "read", "count"),
    ("SSL_read_ex", "read", "pointer"),
    ("SSL_write", "write", "count"),
    ("SSL_write_ex", "write", "pointer"),
)
_PEEKS = ("SSL_peek", "SSL_peek_ex")

# Functions that only one of the relatives has: async jobs are OpenSSL's since 1.1.0, GREASE is
# BoringSSL's, chains from memory are LibreSSL's (a patched OpenSSL may have them as well).
_OPENSSL_MARK = "SSL_waiting_for_async"
_BORINGSSL_MARK = "SSL_CTX_set_grease_enabled"
_LIBRESSL_MARK = "SSL_CTX_use_certificate_chain_mem"

_VERSION_TEXT = re.compile(
    rb"(?:OpenSSL|LibreSSL) (\d{1,2}\.\d{1,3}\.\d{1,3}[0-9A-Za-z.+-]{0,16}) {1,2}\d{1,2} [A-Z][a-z]{2} \d{4}"
)


def inspect(image: Image, relocate: bool) -> Inspection:
    """Recognises the library in ``image`` and places the probes.

    ``relocate`` False, or a machine other than x86-64: function entries only. The reason of an
    inspection that attaches says why reads or writes are probed at the dearer entries.
    """
    names = [name for name, *_ in _CALLS + _TRANSFERS]
    marks = (_OPENSSL_MARK, _BORINGSSL_MARK, _LIBRESSL_MARK)
    functions = image.functions([*dict.fromkeys((*ESSENTIAL, *names, *_PEEKS, *marks))])
    missing = [name for name in ESSENTIAL if name not in functions]
    if missing:
        return Inspection("skipped", build_id=image.build_id, reason=f"no TLS library: no {missing[0]} in it")
    library = _library(functions)
    if library == "":
        return Inspection(
            "refused",
            build_id=image.build_id,
            reason="has SSL_read and SSL_write but is neither OpenSSL 1.1 or later, BoringSSL nor LibreSSL",
        )
    relocate = relocate and image.machine == "x86-64"
    starts = image.exported_addresses() | {function.address for function in functions.values()}
    sites: list[Site] = []
    reasons: list[str] = []
    for name, op, flavour, result in _CALLS:
        if name in functions:
            sites.append(_entry(image, name, functions[name], op, flavour, result, relocate, starts))
    shared = {}
    if relocate and library == "openssl":
        for op in ("read", "write"):
            try:
                shared[op] = internal.find(image, functions, op)
            except UndecidedError as error:
                reasons.append(f"{op}s are probed at the exported functions: {error}")
    sites += shared.values()
    for name, op, flavour in _TRANSFERS:
        # LibreSSL's _ex functions call the plain ones: a probe on both would see a call twice.
        wrapper = library == "libressl" and flavour == "pointer"
        if op not in shared and name in functions and not wrapper:
            sites.append(_entry(image, name, functions[name], op, flavour, True, relocate, starts))
    sites += errors.sites(image, relocate)
    if len({site.offset for site in sites}) != len(sites):
        # A linker that folds identical functions: a probe could not tell which call it sees.
        return Inspection("refused", library, build_id=image.build_id, reason="two of its functions are one")
    return Inspection("attach", library, _version(image), image.build_id, sites, "; ".join(reasons))


def _library(functions: dict[str, Function]) -> str:
    if _BORINGSSL_MARK in functions:
        return "boringssl"
    if _OPENSSL_MARK in functions:
        return "openssl"
    return "libressl" if _LIBRESSL_MARK in functions else ""


def _version(image: Image) -> str:
    text = image.find_text(_VERSION_TEXT)
    if text:
        return text[1].decode("ascii")
    # libssl itself names no version, libcrypto does; the newest symbol version is the least it can be.
    least = max((_numbers(name) for name in image.version_names()), default=())
    return ".".join(map(str, least)) + " or later" if least else ""


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,4}", name))


def _entry(
    image: Image,
    name: str,
    function: Function,
    op: Op,
    flavour: Flavour,
    result: bool,
    cheap: bool,
    starts: frozenset[int],
) -> Site:
    skip, proof = 0, f"the arguments are intact at the first instruction of {name}"
    if cheap:
        skip, proof = cheapest(image, name, function, starts)
    first = image.offset_of(function.address)
    witnesses = (first,) if skip and result else ()
    return Site(name, first + skip, result, op, flavour, "entry", proof, witnesses=witnesses)
