"""Which of a process's TCP connections a TLS connection travels over, when nothing named its socket.

Takes what is known of the TLS connection (``Talk``) and the flows of its process; returns the one flow that
fits it, or None. A flow fits when it was open while the plaintext moved, has the same end as client, and
has carried the bytes: at least the plaintext, and at most what TLS adds to it where both counts are of
the same moment. Whatever cannot be compared does not count against a flow, so the true one always fits;
claimed is only what fits alone. Two that fit, or a flow that fits two connections, are nobody's.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from spliffd.kernel.flows import SEEDED, Flow
from spliffd.kernel.records import RECEIVED, ROLES, SENT

RECORD_LEAST: Final = 22
"""What TLS 1.3 adds to a record: header 5, content type 1, tag 16 (RFC 8446, 5.2); others add more."""

RECORD_MOST: Final = 90
"""TLS 1.2 with CBC: header 5, IV 16, SHA-384 48, padding 16 (RFC 5246, 6.2.3.2), and an empty record."""

FRAGMENT_LEAST: Final = 512
"""The smallest fragments that a peer may ask for (RFC 6066, 4): more records than calls come of these."""

HANDSHAKE_MOST: Final = 32 << 10
"""Certificate chains are below 16 KiB, session tickets and a client's chain come on top."""

HEADERS_LEAST: Final = 40
"""IPv4 and TCP without options; loopback and tunnels have no link header."""

HEADERS_MOST: Final = 154
"""Ethernet 14, QinQ 8, IPv6 40 and 32 of extensions, TCP 60."""

SENT_AGAIN: Final = 4
"""One in so many bytes may have been sent again: more than any connection that still gets on."""

STILL_NS: Final = 1_000_000
"""A flow that moved no later than this after the last TLS call carried nothing of what comes next."""

PROMPT_NS: Final = 2_000_000_000
"""While a flow's bytes are not known, TLS must have begun within this of its opening. What was opened long
before is more likely something else."""


class Talk(NamedTuple):
    """A TLS connection whose socket is not known. Pairs are by direction: sent, received."""

    first_ns: int
    """When its first plaintext moved (ktime)."""
    last_ns: int
    sizes: tuple[int, int]
    """Plaintext bytes."""
    calls: tuple[int, int]
    """TLS calls that moved them."""
    role: str
    """client, server, or "" while not known."""
    whole: bool
    """Whether it was seen from its start: else its sizes are of an unknown part."""


def choose(talk: Talk, flows: Sequence[tuple[int, Flow]], rivals: Sequence[Talk]) -> tuple[int, Flow] | None:
    """The only flow (by cookie) that fits ``talk`` and none of ``rivals``.

    ``flows`` are those of the process that are nobody's yet, ``rivals`` its other TLS connections without
    a socket.
    """
    fitting = [entry for entry in flows if fits(talk, entry[1])]
    if len(fitting) != 1:
        return None
    only = fitting[0]
    return None if any(fits(rival, only[1]) for rival in rivals) else only


def fits(talk: Talk, flow: Flow) -> bool:
    """Whether nothing that is known speaks against ``talk`` over ``flow``."""
    role = ROLES[flow.role] if flow.role < len(ROLES) else ""
    if role and talk.role and role != talk.role:
        return False
    seeded = bool(flow.flags & SEEDED)
    if not seeded and flow.first_ns > talk.first_ns:
        return False
    if flow.closed_ns and flow.closed_ns < talk.first_ns:
        return False
    if not flow.hops and not flow.closed_ns:
        return seeded or talk.first_ns - flow.first_ns <= PROMPT_NS
    return all(_carries(talk, flow, direction) for direction in (SENT, RECEIVED))


def _carries(talk: Talk, flow: Flow, direction: int) -> bool:
    size = talk.sizes[direction]
    least, most = _payload(flow, direction)
    if _counted_from_the_start(talk, flow) and size and most < size + RECORD_LEAST:
        return False
    still = flow.closed_ns or flow.last_ns <= talk.last_ns + STILL_NS
    if not still or not talk.whole:
        return True
    records = talk.calls[direction] + size // FRAGMENT_LEAST + 1
    return least <= size + records * RECORD_MOST + HANDSHAKE_MOST


def _payload(flow: Flow, direction: int) -> tuple[int, int]:
    """Least and most bytes of TCP payload: as the packets show, else as the socket said at its end."""
    if not flow.hops:
        exact = flow.tcp_received if direction == RECEIVED else flow.tcp_sent
        return exact, exact
    hop = flow.hops[0]
    packets, size = (
        (hop.packets_received, hop.bytes_received)
        if direction == RECEIVED
        else (hop.packets_sent, hop.bytes_sent)
    )
    least = max(0, size - packets * HEADERS_MOST)
    return least - least // SENT_AGAIN, max(0, size - packets * HEADERS_LEAST)


def _counted_from_the_start(talk: Talk, flow: Flow) -> bool:
    """Whether the flow's bytes include those of all the plaintext that was seen."""
    if flow.hops:
        return not flow.flags & SEEDED and flow.hops[0].first_ns <= talk.first_ns
    return True
