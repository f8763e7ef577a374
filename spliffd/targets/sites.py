"""The nouns of probe placement: a site, and what was found out about one file.

Takes nothing and does nothing: these structs are what the inspector answers, what the supervisor
turns into links, and what ``spliffctl libraries`` shows. ``check`` is the supervisor's own look at an
answer: the inspector reads hostile files, so what it says is not believed beyond these bounds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Op = Literal[
    "read",
    "write",
    "handshake",
    "connect",
    "accept",
    "set_fd",
    "free",
    "clear",
    "import",
    "uncork",
    "alpn",
    "verified",
    "error",
]
Flavour = Literal["count", "pointer", "zero", "vector", "none", "register", "stack"]
Placement = Literal["entry", "internal", "return"]
State = Literal["attach", "skipped", "refused"]

MAX_SITES = 96
"""OpenSSL needs ten, Go 48: one for each RET; an answer with more is not one of ours."""

MAX_WITNESSES = 4
"""Functions whose calls pass one relocated place: SSL_read and SSL_read_ex."""

MAX_TEXT = 1024
"""Longest text in an answer: a proof or a reason is one sentence."""

MAX_ANSWER = 64 << 10
"""One answer as a datagram; ten sites with their proofs take 3 KiB."""

READY = b"ready"
"""What the inspector says once, when it has given up its privileges and listens."""


class Site(msgspec.Struct, frozen=True, array_like=True):
    """One instruction to probe, with what the eBPF programs must know about it."""

    symbol: str
    """The function, as its source calls it; internal functions by their name in OpenSSL's source."""
    offset: int
    """Offset in the file, in bytes, as uprobes want it: not an address."""
    return_probe: bool
    """Whether the result is needed: a return probe goes to the same offset."""
    op: Op
    """What the call does."""
    flavour: Flavour
    """How to learn the bytes done: "count": the return value, if positive, is the number of bytes;
    "pointer": a return value > 0 means success and the number is at ``*(size_t *)`` fourth argument;
    "zero": 0 means success, and that all of what was given is done; "vector": the return value counts the
    bytes of several buffers, which are not read: a gap; "none": the call moves no plaintext;
    "register", "stack": a Go method, by its calling convention."""
    placement: Placement
    """"entry": at the exported function; "internal": at the function that the exported ones share;
    "return": at a RET instruction of a function that has a site at its beginning, too."""
    proof: str
    """Why the arguments are intact there, in one sentence."""
    known_only: bool = False
    """Whether only objects count that another site has shown to be TLS: the function serves others, too."""
    witnesses: tuple[int, ...] = ()
    """Offsets of first instructions of the functions whose calls pass this place, where it is another one."""


class Inspection(msgspec.Struct, frozen=True, array_like=True):
    """What is known about one file."""

    state: State
    """"attach": it is TLS, here are the sites; "skipped": no TLS in it; "refused": cannot be probed."""
    library: str = ""
    """"openssl", "boringssl", "libressl", or "" where none was recognised."""
    version: str = ""
    """As the file says it: "3.0.19", or "3.0.3 or later" by its symbol versions; "" if it says nothing."""
    build_id: str = ""
    """GNU build-id in hex, "" without one."""
    sites: list[Site] = []
    reason: str = ""
    """Why it is skipped or refused, or why a cheaper placement was not proved; "" otherwise."""
    cause: str = ""
    """Of a refusal, in a word for the coverage ledger: "static", "32bit", "unreadable"; "" is unsupported."""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Supervisor to inspector; the file itself rides along as SCM_RIGHTS."""

    relocate: bool
    """False: probe function entries only, prove nothing."""


def check(inspection: Inspection, size: int) -> str:
    """Says what is wrong with an answer about a file of ``size`` bytes; "" if it is within bounds."""
    sites = inspection.sites
    if len(sites) > MAX_SITES:
        return f"{len(sites)} probe sites, at most {MAX_SITES} make sense"
    if (inspection.state == "attach") != bool(sites):
        return f"state {inspection.state} with {len(sites)} probe sites"
    texts = [inspection.library, inspection.version, inspection.build_id]
    texts += [inspection.reason, inspection.cause]
    texts += [text for site in sites for text in (site.symbol, site.proof)]
    if any(len(text) > MAX_TEXT for text in texts):
        return f"a text of more than {MAX_TEXT} characters"
    if any(not 0 < site.offset < size for site in sites):
        return "a probe site outside the file"
    if any(len(site.witnesses) > MAX_WITNESSES for site in sites):
        return f"more than {MAX_WITNESSES} functions that pass one place"
    if any(not 0 < offset < size for site in sites for offset in site.witnesses):
        return "a first instruction outside the file"
    if len({site.offset for site in sites}) != len(sites):
        return "the same probe site twice"
    return ""


encode_request = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
encode_inspection = msgspec.msgpack.Encoder().encode
decode_inspection = msgspec.msgpack.Decoder(Inspection).decode
