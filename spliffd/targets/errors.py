"""Finds where OpenSSL and its relatives note errors: the function that says why a handshake fails.

Takes an ``Image``; returns sites for ``ERR_vset_error`` (OpenSSL 3: everything passes it) or
``ERR_put_error`` (OpenSSL 1.1, BoringSSL, LibreSSL), and an ``Inspection`` for a libcrypto, which holds
nothing else of TLS. Sources: the manual pages ERR_set_error(3) and ERR_put_error(3).
"""

from __future__ import annotations

from spliffd.targets.elf import Image
from spliffd.targets.sites import Flavour, Inspection, Site
from spliffd.targets.x86 import MAX_LENGTH, cheap_start

_NOTES: tuple[tuple[str, Flavour], ...] = (("ERR_vset_error", "none"), ("ERR_put_error", "pointer"))
"""The newer first: OpenSSL 3 has no function of the older name. "pointer" says that the reason is the third
argument instead of the second."""


def sites(image: Image, relocate: bool) -> list[Site]:
    """One site, or none where the file has no such function (or it is hidden)."""
    functions = image.functions([name for name, _ in _NOTES])
    cheap = relocate and image.machine == "x86-64"
    for name, flavour in _NOTES:
        if name in functions:
            address = functions[name].address
            skip = cheap_start(image.code(address, MAX_LENGTH)) if cheap else None
            proof = f"the arguments are intact at the first instruction of {name}"
            return [
                Site(name, image.offset_of(address + (skip or 0)), False, "error", flavour, "entry", proof)
            ]
    return []


def inspect(image: Image, relocate: bool) -> Inspection:
    """A libcrypto: its errors are those of the libssl that uses it."""
    found = sites(image, relocate)
    if not found:
        return Inspection("skipped", build_id=image.build_id, reason="no TLS library that is known")
    return Inspection("attach", "openssl", build_id=image.build_id, sites=found)
