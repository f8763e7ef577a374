"""Reads how a TLS connection begins: ClientHello, ServerHello, alerts, from what goes in the clear.

Takes the first bytes of a direction, from the ClientHello or the answer to it on, cut anywhere; returns what
they say as far as they go. A hello whose end is missing gives what lies before the cut and is not
``complete``. What is not said stays unset: the ALPN answer of TLS 1.3, for one, is encrypted.

Sources: RFC 8446 (TLS 1.3; 4.1 hellos, 4.2 extensions, 5.1 records, 6 alerts), RFC 5246 (TLS 1.2), RFC 6066
(3, server name), RFC 7301 (ALPN), RFC 5077 (tickets), RFC 8701 (GREASE).
Does no I/O, never raises on any bytes.
"""

from __future__ import annotations

from typing import Final

ALERT, HANDSHAKE = 21, 22
CHANGE_CIPHER_SPEC: Final = 20
CLIENT_HELLO, SERVER_HELLO, NEW_TICKET, CERTIFICATE = 1, 2, 4, 11

SERVER_NAME: Final = 0
SIGNATURE_ALGORITHMS: Final = 13
ALPN: Final = 16
SESSION_TICKET: Final = 35
PRE_SHARED_KEY: Final = 41
SUPPORTED_VERSIONS: Final = 43

RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that is a HelloRetryRequest: SHA-256 of that name (RFC 8446, 4.1.3)."""

VERSIONS: Final = {
    0x0300: "SSLv3",
    0x0301: "TLSv1.0",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}

_HELLOS: Final = (bytes([CLIENT_HELLO]), bytes([SERVER_HELLO]))

ALERTS: Final = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 21: "decryption_failed",
    22: "record_overflow", 30: "decompression_failure", 40: "handshake_failure", 41: "no_certificate",
    42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked",
    45: "certificate_expired", 46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca",
    49: "access_denied", 50: "decode_error", 51: "decrypt_error",
    60: "export_restriction", 70: "protocol_version", 71: "insufficient_security",
    80: "internal_error", 86: "inappropriate_fallback", 90: "user_canceled", 100: "no_renegotiation",
    109: "missing_extension", 110: "unsupported_extension", 111: "certificate_unobtainable",
    112: "unrecognized_name", 113: "bad_certificate_status_response", 114: "bad_certificate_hash_value",
    115: "unknown_psk_identity", 116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip
"""IANA's registry "TLS Alerts", and those of older versions."""


def is_grease(number: int) -> bool:
    """Whether a suite, extension, group or version is one of RFC 8701's that mean nothing."""
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF


class ClientHello:
    """What a client asked for; lists in its order, GREASE included."""

    def __init__(self) -> None:
        self.complete = False
        self.version = 0
        """The legacy field: ``versions`` says more."""
        self.session_id = b""
        self.ciphers: list[int] = []
        self.extensions: list[int] = []
        self.versions: list[int] = []
        self.signature_algorithms: list[int] = []
        self.alpn: list[bytes] = []
        self.sni = ""
        self.ticket = False
        """Whether it brought a session ticket (RFC 5077)."""


class ServerHello:
    """What the server chose; of two the second, when the first only asked for another ClientHello."""

    def __init__(self) -> None:
        self.complete = False
        self.retry = False
        """Only a HelloRetryRequest was seen."""
        self.version = 0
        self.session_id = b""
        self.cipher = 0
        """0: not known."""
        self.extensions: list[int] = []
        self.alpn = ""
        self.next_message = -1
        """Type of the handshake message behind it, CHANGE_CIPHER_SPEC for that; -1: not known."""


class Flight:
    """What one side sent in the clear: handshake messages, and the last alert."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes, bool]] = []
        """Type, body, and whether the body is complete; CHANGE_CIPHER_SPEC is entered as (20, b"", True)."""
        self.alert = 0
        """level << 8 | description; 0: none."""


class _Reader:
    """Takes numbers and vectors off bytes; beyond the end they are 0 or short, and ``cut`` says so."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.cut = False

    def number(self, size: int) -> int:
        """A big-endian number; 0 when it is cut off."""
        end = self.at + size
        if end > len(self.data):
            self.at, self.cut = len(self.data), True
            return 0
        value = int.from_bytes(self.data[self.at : end], "big")
        self.at = end
        return value

    def take(self, size: int) -> bytes:
        """So many bytes, or what there is of them."""
        data = self.data[self.at : self.at + size]
        self.cut = self.cut or len(data) < size
        self.at += len(data)
        return data

    def vector(self, length_size: int) -> bytes:
        """A vector behind its length."""
        return self.take(self.number(length_size))

    def left(self) -> bool:
        """Whether there is more."""
        return self.at < len(self.data)


def read_flight(stream: bytes) -> Flight:
    """Takes records apart up to the first that is encrypted, foreign, or behind a ChangeCipherSpec.

    In TLS 1.3 that record means nothing and a second hello may follow it (RFC 8446, appendix D.4), so reading
    goes on behind it while what follows is a hello by type and length; one encrypted record in 256 begins so.
    """
    flight = Flight()
    reader = _Reader(stream)
    pending = b""
    changed = False
    while reader.left() and not reader.cut:
        kind, version = reader.number(1), reader.number(2)
        body = reader.vector(2)
        if version >> 8 != 3 or kind not in (CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE):
            break
        if kind == CHANGE_CIPHER_SPEC:
            flight.messages.append((CHANGE_CIPHER_SPEC, b"", True))
            changed = True
        elif kind == ALERT:
            if not changed and len(body) == 2:
                flight.alert = body[0] << 8 | body[1]
        elif changed and not (body[:1] in _HELLOS and int.from_bytes(body[1:4], "big") == len(body) - 4):
            break  # TLS 1.2: Finished, encrypted
        else:
            pending = _messages(flight, pending + body)
    if len(pending) >= 4:
        flight.messages.append((pending[0], pending[4:], False))
    return flight


def _messages(flight: Flight, data: bytes) -> bytes:
    """Moves complete messages into ``flight``; returns the rest."""
    at = 0
    while len(data) - at >= 4:
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if len(data) - at - 4 < size:
            break
        flight.messages.append((data[at], data[at + 4 : at + 4 + size], True))
        at += 4 + size
    return data[at:]


def read_client_hello(flight: Flight) -> ClientHello | None:
    """The first ClientHello: its answer to a HelloRetryRequest repeats what matters (RFC 8446, 4.1.2)."""
    for kind, body, complete in flight.messages:
        if kind == CLIENT_HELLO:
            return _client_hello(body, complete)
    return None


def _client_hello(body: bytes, complete: bool) -> ClientHello:
    hello = ClientHello()
    reader = _Reader(body)
    hello.version = reader.number(2)
    reader.take(32)
    hello.session_id = reader.vector(1)
    hello.ciphers = _numbers(reader.vector(2))
    reader.vector(1)
    extensions = _Reader(reader.vector(2) if reader.left() else b"")
    while extensions.left():
        kind, data = extensions.number(2), extensions.vector(2)
        if extensions.cut:
            # What a cut name or list says is not what was said. The kinds before it are known.
            break
        hello.extensions.append(kind)
        if kind == SERVER_NAME:
            hello.sni = _server_name(data)
        elif kind == ALPN:
            hello.alpn = _protocols(data)
        elif kind == SUPPORTED_VERSIONS:
            hello.versions = _numbers(data[1 : 1 + data[0]]) if data else []
        elif kind == SIGNATURE_ALGORITHMS:
            hello.signature_algorithms = _numbers(data[2:])
        elif kind == SESSION_TICKET:
            hello.ticket = bool(data)
    hello.complete = complete and not reader.cut and not extensions.cut
    return hello


def read_server_hello(flight: Flight) -> ServerHello | None:
    """The ServerHello, or the one behind a HelloRetryRequest, and what came behind it."""
    found: ServerHello | None = None
    messages = flight.messages
    for index, (kind, body, complete) in enumerate(messages):
        if kind != SERVER_HELLO or (found is not None and not found.retry):
            continue
        found = _server_hello(body, complete)
        if index + 1 < len(messages):
            found.next_message = messages[index + 1][0]
    return found


def _server_hello(body: bytes, complete: bool) -> ServerHello:
    hello = ServerHello()
    reader = _Reader(body)
    version = reader.number(2)
    hello.retry = reader.take(32) == RETRY_RANDOM
    hello.session_id = reader.vector(1)
    hello.cipher = reader.number(2)
    reader.number(1)
    head_cut = reader.cut
    extensions = _Reader(reader.vector(2) if reader.left() else b"")
    while extensions.left():
        kind, data = extensions.number(2), extensions.vector(2)
        if extensions.cut:
            break
        hello.extensions.append(kind)
        if kind == SUPPORTED_VERSIONS and len(data) == 2:
            version = int.from_bytes(data, "big")
        elif kind == ALPN:
            chosen = _protocols(data)
            hello.alpn = text(chosen[0]) if chosen else ""
    hello.complete = complete and not reader.cut and not extensions.cut
    if hello.cipher >> 8 == 0x13:
        hello.version = 0x0304  # these suites are of no other version (RFC 8446, B.4)
    elif hello.complete or (not head_cut and version != 0x0303):
        hello.version = version  # else it may have been about to say that it is another
    return hello


def text(raw: bytes) -> str:
    """Bytes of the wire as text: UTF-8 where they are that, else Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _numbers(data: bytes) -> list[int]:
    return [data[at] << 8 | data[at + 1] for at in range(0, len(data) - 1, 2)]


def _server_name(data: bytes) -> str:
    """The first host_name (type 0) of the list; a server sends the extension empty."""
    names = _Reader(_Reader(data).vector(2))
    while names.left():
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and not names.cut:
            return text(name)
    return ""


def _protocols(data: bytes) -> list[bytes]:
    names = _Reader(_Reader(data).vector(2))
    found: list[bytes] = []
    while names.left():
        name = names.vector(1)
        if not names.cut:
            found.append(name)
    return found
