"""Whether the TLS records on the wire hold just the plaintext that was captured.

Takes what the record headers of a direction said (``RecordSide``), the bytes of plaintext that the library's
calls moved in it, and the session's version and cipher suite; says whether the two agree to the byte, and if
not, how much plaintext no call has shown. What a record holds beside plaintext is fixed for each AEAD suite;
suites with padding (CBC) and unknown ones say nothing. In TLS 1.3 the handshake is encrypted like data:

- the server's flight is what it sent before the client encrypted anything (RFC 8446, 2): counted apart;
- the client's ends with a Finished of known length, in its first record or one of the first four;
- what a server sends next are tickets, whole records, none to four of them (RFC 8446, 4.6.1); calls that were
  missed for just the first of its data would pass for them, so this asks for a handshake that was seen;
- an alert is the last record, with two bytes in it (6).

Anything else that a peer may encrypt (padding, key updates, late tickets) makes the two disagree, and so does
a packet that was missed: then nothing is said. Does no I/O, never raises.
"""

from __future__ import annotations

from typing import Final

from spliffd.correlation.facts import ConnectionFacts
from spliffd.kernel.flows import RecordSide

TLS13: Final = "TLSv1.3"
TLS12: Final = "TLSv1.2"
ALERT: Final = 2
FIRST: Final = 4
"""Records behind the handshake whose lengths the kernel keeps: no server sends more tickets at once."""
TICKET: Final = 2048
"""Bytes of a ticket: 250 of most servers, more with a client's certificate in it. So many are never claimed
to be plaintext in TLS 1.3, either, for one may come late."""
NOT_TOLD: Final = -1
FINISHED_RECORDS: Final = (45, 53, 69)
"""Lengths of a TLS 1.3 client's Finished: a hash of 32 or 48 bytes, four before it, the record's 17 or 9."""
ALERT_RECORDS: Final = (11, 19)
"""Of an alert in TLS 1.3."""


_known: Final[dict[tuple[str, str], int]] = {}


def overhead(version: str, cipher: str) -> int:
    """Bytes of a record, its header aside, that are no plaintext; 0 where they are not the same in each."""
    each = _known.get((version, cipher))
    if each is None:
        each = _known[version, cipher] = _overhead(version, cipher)
    return each


def _overhead(version: str, cipher: str) -> int:
    """RFC 8446, 5.2 (a tag and the type); RFC 5288 and 6655 (8 bytes of nonce, a tag); RFC 7905 (a tag)."""
    tag = 8 if "_CCM_8" in cipher else 16
    if version == TLS13:
        return tag + 1 if cipher else 0
    if version == TLS12 and ("_GCM" in cipher or "_CCM" in cipher):
        return tag + 8
    return tag if version == TLS12 and "_CHACHA20_POLY1305" in cipher else 0


def rest_of(side: RecordSide, plaintext: int, facts: ConnectionFacts) -> int:
    """What the records hold beside ``plaintext`` and beside all that is certainly none; NOT_TOLD.

    Of TLS 1.3 tickets, alerts, and a client's end of the handshake are in it. ``plaintext`` in bytes.
    """
    each = overhead(facts.tls_version, facts.cipher)
    if not each or not side.walk or (facts.tls_version == TLS13 and not side.begun):
        return NOT_TOLD
    inner = side.size - each * side.records
    if facts.tls_version == TLS13:
        inner -= side.flight_size - each * side.flight_records
    return max(NOT_TOLD, inner - plaintext)


def agrees(side: RecordSide, plaintext: int, facts: ConnectionFacts) -> bool:
    """Whether every byte in the records is one of ``plaintext``, or known to be none."""
    rest = rest_of(side, plaintext, facts)
    if facts.tls_version != TLS13 or rest == NOT_TOLD:
        return rest == 0
    each = overhead(facts.tls_version, facts.cipher)
    alert = rest - ALERT if side.last == each + ALERT else NOT_TOLD
    finished = 4 + (48 if facts.cipher.endswith("_SHA384") else 32)
    total = 0
    if not side.client and rest in (0, ALERT) and total in (rest, alert):
        return True
    for number in range(min(FIRST, side.records - side.flight_records)):
        inner = (side.first >> 16 * number & 0xFFFF) - each
        total += inner
        ends = inner == finished or (number == 0 and inner > finished)
        if not side.client and inner > TICKET:
            return False
        if (ends or not side.client) and total in (rest, alert):
            return True
    return False


def unseen(side: RecordSide, plaintext: int, facts: ConnectionFacts) -> int:
    """At least so many bytes of plaintext on the wire no call has shown; 0 where that is not certain."""
    rest = rest_of(side, plaintext, facts)
    if facts.tls_version != TLS13 or rest == NOT_TOLD:
        return max(0, rest)
    each = overhead(facts.tls_version, facts.cipher)
    perhaps = 0
    for number in range(min(FIRST, side.records - side.flight_records)):
        inner = (side.first >> 16 * number & 0xFFFF) - each
        if inner > TICKET and not side.client:
            break
        perhaps += inner
    return max(0, rest - perhaps - TICKET)


def data_sent(sent: RecordSide, received: RecordSide) -> bool:
    """Whether whoever sent the records of ``sent`` wrote data for certain, whatever version and suite are.

    In TLS 1.2 each record counted here is data. TLS 1.3 is told by the server's flight, which is encrypted.
    Where neither is certain it is taken for TLS 1.3, so a single record that nobody answered may be none.
    """
    client, server = (sent, received) if sent.client else (received, sent)
    if not client.walk or not sent.records:
        return False
    if server.begun and server.records and not server.flight_records:
        return True
    rest = sent.records - (sent.last in ALERT_RECORDS)
    if not sent.client:
        return bool(sent.begun) and rest - sent.flight_records > FIRST
    early = [sent.first >> 16 * number & 0xFFFF for number in range(min(FIRST, sent.records))]
    finished = next((number for number, length in enumerate(early) if length in FINISHED_RECORDS), 0)
    return rest > finished + 1
