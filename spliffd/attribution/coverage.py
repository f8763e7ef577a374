"""Whether a process's TLS is seen decrypted, and if not, why: the judgement of the coverage ledger.

Takes what is known of one process (``Evidence``: its connections as the packets and the probes saw them, the
files with TLS code that it maps, and what became of those); returns a ``Verdict``. A reason is one word of
``REASONS``, bounded because it is a metric's label, with a sentence of detail beside it. What is not known is
not guessed at: a process of which nothing tells that it speaks TLS has no verdict.

Does no I/O and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from spliffd import counters

Covered = Literal["", "covered", "partly", "not"]
"""All its TLS connections were seen decrypted, some of them, none; "": it has spoken none that we know of."""

REASONS: Final = counters.REASONS
"""Why a process is not covered, or only partly:

``static`` TLS code without symbols, linked in; ``unknown_library`` no file of it holds a TLS library that is
known; ``unsupported`` one of a kind or version that cannot be probed; ``attached_late`` its connections were
older than the probes; ``ktls`` the kernel encrypts; ``probe_refused`` the kernel took no probe there;
``probes_silent`` probes are in place and saw no byte; ``uncovered_namespace`` no packet hook sees its
network namespace; ``out_of_scope`` the file is not in scope; ``32bit`` a 32-bit program; ``unreadable`` the
file cannot be opened or read; ``not_inspected`` it ended, or spoke, before anybody looked at its files.
"""

TLS_PORTS: Final = frozenset(
    {443, 465, 563, 636, 853, 989, 990, 993, 995, 5061, 5671, 6380, 6443, 8443, 8883}
)
"""Ports registered for TLS, and common ones: what tells of TLS where no packet is seen. Source: IANA."""


class TlsFile(msgspec.Struct, frozen=True):
    """A file that a process maps, and what became of it."""

    path: str
    library: str
    state: Literal["attached", "refused", "skipped", "out_of_scope", "unread"]
    """"skipped": no TLS library in it; "unread": nobody has looked into it yet."""
    cause: str = ""
    """One of REASONS for a file that is refused."""
    detail: str = ""
    attached_ns: int = 0
    """Ktime since when its probes are in place."""
    named: bool = False
    """Whether it is called like a TLS library, or is one."""


class Missed(msgspec.Struct, frozen=True):
    """A TLS connection of which no probe saw a byte."""

    first_ns: int
    """Ktime of its beginning."""
    ktls: bool = False
    where: str = ""
    """Its two ends, in words."""


class Evidence(msgspec.Struct):
    """What is known of one process."""

    captured: int = 0
    """TLS connections that probes saw."""
    missed: Sequence[Missed] = ()
    """Those of the packets that they did not see; the latest are enough."""
    missed_count: int = 0
    ktls_captured: int = 0
    """Connections among the captured ones for which the kernel encrypts."""
    unseen: Sequence[Missed] = ()
    """Connections of network namespaces without a packet hook, on a port of TLS; probes did not fire."""
    files: Sequence[TlsFile] | None = None
    """None: not known, and never to be known, because the process has ended."""
    bits32: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """The answer, with the reason in a word and in a sentence."""

    covered: Covered
    reason: str = ""
    detail: str = ""


def judge(evidence: Evidence) -> Verdict:
    """Whether the process is covered."""
    if evidence.missed:
        covered: Covered = "partly" if evidence.captured else "not"
        return Verdict(covered, *_why(evidence))
    if evidence.captured:
        if evidence.ktls_captured:
            return Verdict(
                "partly", "ktls", "the kernel encrypts for it: what it sends from files is not seen decrypted"
            )
        return Verdict("covered")
    if evidence.unseen:
        return Verdict("not", *_why_unseen(evidence))
    return Verdict("")


def _why(evidence: Evidence) -> tuple[str, str]:
    if any(missed.ktls for missed in evidence.missed):
        return "ktls", "the kernel encrypts for it, and no library that is probed was called"
    if evidence.bits32:
        return "32bit", "it is a 32-bit program; only 64-bit ones are probed"
    if evidence.files is None:
        return "not_inspected", "it had ended before its files were looked at"
    blocked = _blocked(evidence.files)
    if blocked is not None:
        return blocked
    attached = [file for file in evidence.files if file.state == "attached"]
    since = min((file.attached_ns for file in attached), default=0)
    if all(missed.first_ns < since for missed in evidence.missed):
        return "attached_late", f"the connection is older than the probes in {attached[0].path}"
    unread = [file for file in evidence.files if file.state == "unread"]
    for file in unread:
        if file.named:  # likelier than any that may not be probed: it may, and what is in it is not known yet
            return _not_inspected(file)
    outside = [file for file in evidence.files if file.state == "out_of_scope"]
    for file in outside:
        if file.named:
            return "out_of_scope", f"{file.path} is not in scope"
    if attached:
        return "probes_silent", f"probes are in place in {attached[0].path}, and none saw what it said"
    if unread:
        return _not_inspected(unread[0])
    if outside:
        return "out_of_scope", f"{outside[0].path} is not in scope, so nobody looks into it"
    return "unknown_library", "none of its files holds a TLS library that is known"


def _not_inspected(file: TlsFile) -> tuple[str, str]:
    return "not_inspected", f"{file.path} has not been inspected yet"


def _blocked(files: Sequence[TlsFile]) -> tuple[str, str] | None:
    """What keeps a file with TLS code from being probed, the surest first."""
    for wanted in ("probe_refused", "static", "unsupported", "32bit", "unreadable"):
        for file in files:
            if file.state == "refused" and file.cause == wanted and (file.named or wanted != "unreadable"):
                return wanted, f"{file.path}: {file.detail}"
    return None


def _why_unseen(evidence: Evidence) -> tuple[str, str]:
    blocked = None if evidence.files is None else _blocked(evidence.files)
    if blocked is not None:
        return blocked
    return (
        "uncovered_namespace",
        "no packet hook sees its network namespace, so whether it speaks TLS there is not known",
    )
