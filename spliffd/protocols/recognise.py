"""Names what a connection speaks that is not taken apart: by ALPN, else by its first bytes.

Takes the beginning of what each end said, and returns a name of ``NAMES`` or "". A name is given on
structure that other protocols do not have: lengths that agree, magic words, a command that only one protocol
begins with. When in doubt there is none. Keeps nothing, never raises.

Sources: RESP (redis.io/docs/reference/protocol-spec), PostgreSQL's "Message Formats", MySQL's
"HandshakeResponse41", MQTT 3.1.1 and 5.0 section 3.1, Kafka's protocol guide, RFC 5321 (SMTP), RFC 9051
(IMAP), RFC 1939 (POP3), RFC 7858 and 1035 (DNS over TLS), RFC 4511 (LDAP), AMQP 0-9-1 and 1.0, RFC 959
(FTP), RFC 6120 (XMPP), RFC 1459 (IRC), MongoDB's wire protocol.
"""

from __future__ import annotations

import re
from typing import Final

NAMES: Final = (
    "redis",
    "postgresql",
    "mysql",
    "mqtt",
    "kafka",
    "smtp",
    "imap",
    "pop3",
    "dns",
    "ldap",
    "amqp",
    "ftp",
    "xmpp",
    "irc",
    "mongodb",
    "ssh",
    "tls",
)

ENOUGH: Final = 512
"""Bytes of each end that are looked at: the longest greeting of SMTP, and every first message's head."""

_ALPN: Final = {
    "postgresql": "postgresql",
    "mqtt": "mqtt",
    "imap": "imap",
    "pop3": "pop3",
    "dot": "dns",
    "ftp": "ftp",
    "xmpp-client": "xmpp",
    "xmpp-server": "xmpp",
    "irc": "irc",
}
"""IANA's registry of ALPN protocol ids, as far as they name one of ours."""

_REDIS_ASKS: Final = re.compile(rb"\*[1-9][0-9]{0,6}\r\n\$[0-9]{1,9}\r\n")
_REDIS_ANSWERS: Final = re.compile(rb"(?:\+PONG|-NOAUTH |-WRONGPASS |-ERR |-MOVED |%[0-9]{1,4}\r\n\$)")
_IMAP_ASKS: Final = re.compile(
    rb"[A-Za-z0-9.]{1,12} (?:CAPABILITY|LOGIN|AUTHENTICATE|SELECT|ID|NOOP|LOGOUT|LIST|ENABLE)(?: |\r\n)",
    re.IGNORECASE,
)
_IMAP_GREETS: Final = re.compile(rb"\* (?:OK|PREAUTH|BYE)[ \r\n]", re.IGNORECASE)
_SMTP_ASKS: Final = re.compile(rb"(?:EHLO|HELO|LHLO) [^\r\n]{1,255}\r\n|MAIL FROM:", re.IGNORECASE)
_SMTP_GREETS: Final = re.compile(rb"220[ -][^\r\n]*\bE?SMTP\b", re.IGNORECASE)
_FTP_GREETS: Final = re.compile(rb"220[ -][^\r\n]*FTP", re.IGNORECASE)
_FTP_ASKS: Final = re.compile(rb"(?:PBSZ 0|PROT [CP])\r\n", re.IGNORECASE)
_POP3_GREETS: Final = re.compile(rb"\+OK [^\r\n]*(?:POP3|<[^>\r\n]+@[^>\r\n]+>|Dovecot)", re.IGNORECASE)
_POP3_ASKS: Final = re.compile(
    rb"(?:APOP [^ \r\n]+ [0-9a-f]{32}|UIDL|RETR [0-9]+|DELE [0-9]+)\r\n", re.IGNORECASE
)
_IRC_ASKS: Final = re.compile(rb"(?:CAP LS(?: 30[0-9])?|NICK [^ \r\n:]{1,64})\r\n", re.IGNORECASE)
_XMPP: Final = re.compile(rb"(?:<\?xml [^>]{0,99}\?>\s{0,9})?<(?:stream:stream|open)[ >\s]")
_SSH: Final = re.compile(rb"SSH-(?:2\.0|1\.99)-")
_AMQP: Final = re.compile(rb"AMQP(?:\0\0\x09\x01|[\0\x02\x03]\x01\0\0)")
_TLS: Final = re.compile(rb"\x16\x03[\0-\x04][\0-\x40].[\x01\x02]\0", re.DOTALL)

_KAFKA_FIRST: Final = frozenset((3, 10, 17, 18))
"""What a client may ask first: Metadata, FindCoordinator, SaslHandshake, ApiVersions."""
_KAFKA_NEWEST: Final = 20
_MONGO_OPCODES: Final = frozenset((2004, 2012, 2013))
_MONGO_LONGEST: Final = 48_000_000
_PG_LONGEST: Final = 10_000
"""A startup message beyond which PostgreSQL itself refuses (MAX_STARTUP_PACKET_LENGTH)."""
_LDAP_ASKS: Final = frozenset((0x60, 0x63, 0x77))
"""bindRequest, searchRequest, extendedReq (RFC 4511 section 4.2 to 4.12)."""
_LDAP_ANSWERS: Final = frozenset((0x61, 0x64, 0x65, 0x78))


def by_alpn(alpn: str) -> str:
    """What the ends agreed on by ALPN; "" when that names nothing here."""
    return _ALPN.get(alpn, "")


def recognise(asked: bytes, answered: bytes) -> str:
    """``asked`` is the beginning of what the client said, ``answered`` of what the server did."""
    if asked:
        name = _by_client(asked)
        if name:
            return name
    return _by_server(answered) if answered else ""


def _by_client(data: bytes) -> str:
    for pattern, name in _ASKS:
        if pattern.match(data) is not None:
            return name
    if _is_postgresql(data):
        return "postgresql"
    if _is_mysql(data):
        return "mysql"
    if _is_mqtt(data):
        return "mqtt"
    if _is_mongodb(data):
        return "mongodb"
    if _is_kafka(data):
        return "kafka"
    if _is_ldap(data, _LDAP_ASKS):
        return "ldap"
    return "dns" if _is_dns(data) else ""


def _by_server(data: bytes) -> str:
    for pattern, name in _ANSWERS:
        if pattern.match(data) is not None:
            return name
    return "ldap" if _is_ldap(data, _LDAP_ANSWERS) else ""


_ASKS: Final = (
    (_REDIS_ASKS, "redis"),
    (_SMTP_ASKS, "smtp"),
    (_IMAP_ASKS, "imap"),
    (_FTP_ASKS, "ftp"),
    (_POP3_ASKS, "pop3"),
    (_IRC_ASKS, "irc"),
    (_AMQP, "amqp"),
    (_XMPP, "xmpp"),
    (_SSH, "ssh"),
    (_TLS, "tls"),
)
_ANSWERS: Final = (
    (_REDIS_ANSWERS, "redis"),
    (_SMTP_GREETS, "smtp"),
    (_IMAP_GREETS, "imap"),
    (_FTP_GREETS, "ftp"),
    (_POP3_GREETS, "pop3"),
    (_AMQP, "amqp"),
    (_XMPP, "xmpp"),
    (_SSH, "ssh"),
    (_TLS, "tls"),
)


def _is_postgresql(data: bytes) -> bool:
    """StartupMessage: its length, protocol 3.x, pairs of names and values that end with a zero."""
    size = int.from_bytes(data[:4])
    if len(data) < 13 or not 13 <= size <= _PG_LONGEST or data[4:6] != b"\0\3":
        return False
    if len(data) >= size and data[size - 1]:
        return False
    return data.find(b"user\0", 8, 8 + 64) >= 0 or data.find(b"database\0", 8, 8 + 64) >= 0


def _is_mysql(data: bytes) -> bool:
    """HandshakeResponse41 behind an SSLRequest: its length, number 2, flags with SSL, 19 zeros."""
    if len(data) < 36 or data[3] != 2 or any(data[13:32]):
        return False
    size = int.from_bytes(data[:3], "little")
    flags = int.from_bytes(data[4:8], "little")
    return 33 <= size < 1 << 16 and flags & 0x0A00 == 0x0A00  # PROTOCOL_41 and SSL


def _is_mqtt(data: bytes) -> bool:
    """CONNECT: its remaining length, and the protocol's name."""
    if len(data) < 9 or data[0] != 0x10:
        return False
    at = 1
    while at < 5 and data[at] & 0x80:
        at += 1
    return data[at + 1 : at + 7] in (b"\0\4MQTT", b"\0\6MQIs")


def _is_kafka(data: bytes) -> bool:
    """A request that a client begins with: its length, key, version, client id."""
    if len(data) < 14:
        return False
    size = int.from_bytes(data[:4])
    key, version = int.from_bytes(data[4:6]), int.from_bytes(data[6:8])
    if key not in _KAFKA_FIRST or version > _KAFKA_NEWEST or not 10 <= size < 1 << 20 or size + 4 < len(data):
        return False
    length = int.from_bytes(data[12:14], signed=True)
    if length < 0:
        return length == -1
    name = data[14 : 14 + length]
    return (
        length <= size - 10
        and len(name) == min(length, len(data) - 14)
        and name.isascii()
        and (not name or name.decode("ascii").isprintable())
    )


def _is_mongodb(data: bytes) -> bool:
    """A message's length, an answer to nothing, an opcode of a query or message."""
    if len(data) < 16:
        return False
    size, _, answers, opcode = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8, 12))
    return (
        16 < size < _MONGO_LONGEST
        and size >= min(len(data), size)
        and not answers
        and opcode in _MONGO_OPCODES
    )


def _is_ldap(data: bytes, operations: frozenset[int]) -> bool:
    """LDAPMessage: a SEQUENCE whose length fits, a message id, an operation."""
    if len(data) < 7 or data[0] != 0x30:
        return False
    at, size = 2, data[1]
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4:
            return False
        size = int.from_bytes(data[2 : 2 + count])
        at += count
    if len(data) < at + 4 or data[at] != 2 or not 1 <= data[at + 1] <= 4 or size < 5:
        return False
    at += 2 + data[at + 1]
    return at < len(data) and data[at] in operations


def _is_dns(data: bytes) -> bool:
    """A query behind its length (RFC 7858 section 3.3): one question, no answers, a name, a type, a class."""
    size = int.from_bytes(data[:2])
    if len(data) < 19 or size < 17 or data[4] & 0xF8 or data[6:10] != b"\0\1\0\0":
        return False
    at, end = 14, min(len(data), 2 + size)
    while at < end and data[at]:
        if data[at] > 63:
            return False
        at += 1 + data[at]
    if at + 5 > end:
        return False
    return (
        data[at + 3 : at + 5] in (b"\0\1", b"\0\3", b"\0\xff") and int.from_bytes(data[at + 1 : at + 3]) > 0
    )


class Recogniser:
    """Listens to a connection until it is recognised, or has said enough."""

    def __init__(self) -> None:
        self.name = ""
        self._begun: list[bytes] = [b"", b""]
        self._done = False

    def listen(self, direction: int, data: bytes, role: str, alpn: str) -> None:
        """``data`` was sent (0) or received (1) by an end that is client, server or "" where nobody knows."""
        if self.name:
            return
        self.name = by_alpn(alpn)  # it may become known when the content has told nothing
        if not self.name and not self._done:
            begun = self._begun
            begun[direction] += data[: ENOUGH - len(begun[direction])]
            if role != "server":
                self.name = recognise(begun[0], begun[1])
            if role != "client" and not self.name:
                self.name = recognise(begun[1], begun[0])
            self._done = len(begun[0]) == ENOUGH and len(begun[1]) == ENOUGH
        if self.name or self._done:
            self._begun = [b"", b""]
