"""Names TLS libraries that a file holds but that cannot be probed: nobody finds functions without symbols.

Takes an ``Image`` in which no library was recognised by its functions; returns an ``Inspection`` "refused"
with the library's name and the reason, or None. What tells is text that only the library's TLS half has, in
read-only data: paths of its source files in error messages, a crate's name in panics. A library that was
built without such texts is not found; a program that only quotes them is listed in vain. Nothing is probed
on such evidence.
"""

from __future__ import annotations

import re

from spliffd.targets.elf import Image
from spliffd.targets.sites import Inspection

_TRACES: tuple[tuple[str, str, re.Pattern[bytes]], ...] = (
    ("boringssl", "BoringSSL", re.compile(rb"ssl/(?:ssl_lib|tls_record|handshake)\.cc\0")),
    ("openssl", "OpenSSL", re.compile(rb"ssl/(?:ssl_lib|record/rec_layer_s3|record/ssl3_record)\.c\0")),
    ("rustls", "rustls", re.compile(rb"/rustls-\d{1,3}\.\d{1,3}\.\d{1,3}[0-9a-z.+-]{0,16}/src/")),
    ("wolfssl", "wolfSSL", re.compile(rb"wolfSSL \d{1,2}\.\d{1,3}\.\d{1,3}\0")),
    ("gnutls", "GnuTLS", re.compile(rb"Enabled GnuTLS \d{1,2}\.\d{1,3}\.\d{1,3} logging")),
)


def inspect(image: Image) -> Inspection | None:
    """Which library is in ``image`` without its symbols; None when nothing tells of one."""
    for library, name, trace in _TRACES:
        if image.find_text(trace):
            reason = f"holds {name}, but no symbols of its functions (linked in and hidden, or stripped)"
            return Inspection("refused", library, build_id=image.build_id, reason=reason, cause="static")
    return None
