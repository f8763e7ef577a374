"""JA4: a fingerprint of the TLS client by its ClientHello (FoxIO, technical_details/JA4.md; BSD licence).

``t13d1516h2_8daaf6152771_e5627efa2ab1``: what it is in plain, a hash of its cipher suites, a hash of its
extensions and signature algorithms. Suites and extensions are sorted, because clients shuffle them; GREASE is
left out. Over TCP only: the first letter is always t.

Takes a complete ClientHello, returns the fingerprint. Does no I/O, never raises.
"""

from __future__ import annotations

import hashlib
from typing import Final

from spliffd.protocols.tls_hello import ALPN, SERVER_NAME, ClientHello, is_grease

_VERSIONS: Final = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_HASH_DIGITS: Final = 12
_NOTHING: Final = "0" * _HASH_DIGITS

MAX_KNOWN: Final = 512
"""Fingerprints remembered: a host's programs have some tens; those that shuffle their extensions are many."""

_known: dict[tuple[object, ...], str] = {}


def ja4(hello: ClientHello) -> str:
    """The fingerprint; "" of a hello that is not complete, because it would be another client's."""
    if not hello.complete:
        return ""
    first = hello.alpn[0] if hello.alpn else b""
    key = (
        hello.version,
        tuple(hello.versions),
        tuple(hello.ciphers),
        tuple(hello.extensions),
        tuple(hello.signature_algorithms),
        first,
    )
    found = _known.get(key)
    if found is None:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        found = _known[key] = _ja4(hello, first)
    return found


def _ja4(hello: ClientHello, first: bytes) -> str:
    ciphers = [f"{number:04x}" for number in hello.ciphers if not is_grease(number)]
    extensions = [number for number in hello.extensions if not is_grease(number)]
    offered = [number for number in hello.versions if not is_grease(number)]
    version = max(offered) if offered else hello.version
    plain = (
        f"t{_VERSIONS.get(version, '00')}{'d' if SERVER_NAME in extensions else 'i'}"
        f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}{_alpn(first)}"
    )
    # The name and the protocols are a site's, not the client's: counted above, left out here.
    told = sorted(f"{number:04x}" for number in extensions if number not in (SERVER_NAME, ALPN))
    algorithms = [f"{number:04x}" for number in hello.signature_algorithms if not is_grease(number)]
    hashed = ",".join(told) + ("_" + ",".join(algorithms) if algorithms else "")
    return f"{plain}_{_digest(','.join(sorted(ciphers)))}_{_digest(hashed if told else '')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_HASH_DIGITS] if text else _NOTHING


def _alpn(first: bytes) -> str:
    """First and last character of the first protocol; 9 stands for one that is no printable ASCII."""
    if not first:
        return "00"
    ends = (first[0], first[-1]) if len(first) > 1 else (first[0], 0x30)
    return "".join(chr(byte) if 0x20 < byte < 0x7F else "9" for byte in ends)
