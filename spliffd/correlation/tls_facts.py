"""What the packets of a handshake say becomes facts of the connection; why one failed becomes a sentence.

Takes a ``Hello`` (the first bytes in the clear), fills in version, cipher, ALPN, SNI, JA4 and whether the
session was resumed. What the packets do not say leaves what is known; what is not certain stays unset.

Does no I/O, reads no clock, never raises on any bytes.
"""

from __future__ import annotations

from typing import Final

from spliffd.correlation.facts import ConnectionFacts
from spliffd.kernel.hellos import Hello
from spliffd.protocols import tls_hello
from spliffd.protocols.ja4 import ja4
from spliffd.protocols.tls_ciphers import cipher_name
from spliffd.protocols.tls_hello import ClientHello, ServerHello

UNKNOWN_REASON: Final = "ended before the handshake was complete"
NO_ANSWER: Final = "no answer to the ClientHello"
CLOSED: Final = "the peer closed the connection"


def learn(facts: ConnectionFacts, hello: Hello) -> bool:
    """Fills in what ``hello`` says; returns whether the whole ClientHello was there."""
    client = tls_hello.read_client_hello(tls_hello.read_flight(hello.client))
    server = tls_hello.read_server_hello(tls_hello.read_flight(hello.server))
    if client is not None:
        facts.sni = client.sni or facts.sni
        facts.ja4 = ja4(client)
        facts.alpn_settled = client.complete and not client.alpn
    if server is not None:
        facts.tls_version = tls_hello.VERSIONS.get(server.version, "") or facts.tls_version
        if server.cipher:
            facts.cipher = cipher_name(server.cipher)
        facts.alpn = server.alpn or facts.alpn
        facts.alpn_settled = facts.alpn_settled or (server.complete and server.version < 0x0304)
        if client is not None and facts.resumed is None:
            facts.resumed = resumed(client, server)
    facts.prefix = None
    return client is not None and client.complete


def forget(facts: ConnectionFacts) -> None:
    """They were another socket's."""
    facts.tls_version = facts.cipher = facts.alpn = facts.sni = facts.ja4 = ""
    facts.resumed = None
    facts.alpn_settled = False
    facts.hello_of = 0
    facts.prefix = None


def resumed(client: ClientHello, server: ServerHello) -> bool | None:
    """Whether the server went on with an earlier session; None where what was seen does not tell."""
    if server.retry or not server.complete:
        return None
    if server.version >= 0x0304:
        return tls_hello.PRE_SHARED_KEY in server.extensions
    if server.next_message == tls_hello.CERTIFICATE:
        return False
    if client.session_id:
        return server.session_id == client.session_id  # RFC 5246, 7.4.1.3; RFC 5077, 3.4
    if not client.ticket:
        return False
    if server.next_message in (tls_hello.NEW_TICKET, tls_hello.CHANGE_CIPHER_SPEC):
        return True
    return None


def why_failed(said: str, hello: Hello | None) -> str:
    """Why a handshake did not succeed: what the library has ``said``, and what its packets tell."""
    told = _why(hello)
    if not said or (said == CLOSED and told not in ("", NO_ANSWER)):
        return told or UNKNOWN_REASON
    if said.startswith("the peer sent") and told.startswith("the peer sent"):
        return told
    return f"{said} ({told})" if told.startswith("sent alert") else said


def _why(hello: Hello | None) -> str:
    if hello is None:
        return ""
    client = tls_hello.read_flight(hello.client)
    server = tls_hello.read_flight(hello.server)
    client_alert, server_alert = hello.client_alert or client.alert, hello.server_alert or server.alert
    for alert, theirs in ((client_alert, not hello.sent), (server_alert, hello.sent)):
        if alert:
            number = alert & 0xFF
            name = tls_hello.ALERTS.get(number, f"number {number}")
            return f"the peer sent alert {name}" if theirs else f"sent alert {name}"
    if not hello.server:
        return NO_ANSWER
    if not server.messages:
        spoken = "plain HTTP" if hello.server.startswith(b"HTTP/") else "something that is not TLS"
        return f"the server answered in {spoken}"
    return ""
