"""Handshakes that have ended, until they are told: most facts come a moment later than the end.

Takes ends of handshakes from the engine and a way to read what the packets of a socket said; hands each on
once, when all is known that can be: the socket (memory BIOs name it late), what the packets said, and the
ALPN answer, which TLS 1.3 encrypts and most programs ask their library for at once. At the latest ``WAIT_NS``
later, and always ahead of the connection's first exchange and its end.

Does no I/O itself and reads no clock.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final, NamedTuple

from spliffd.correlation import tls_facts
from spliffd.correlation.connection import Connection
from spliffd.correlation.flows import Finished
from spliffd.correlation.retry import NEVER
from spliffd.counters import Region
from spliffd.kernel import records
from spliffd.kernel.hellos import Hello
from spliffd.protocols import tls_errors, tls_hello

WAIT_NS: Final = 50_000_000
"""As long as an exchange waits for its flow: a program asks for the ALPN answer before it speaks."""

MAX_WAITING: Final = 1024
"""Handshakes that wait: 20,000 new connections a second. One more, and the oldest is told as it is."""

MAX_OWNERS: Final = 8192
"""Sockets whose hello was given to a connection: TLS inside TLS has two on one socket, and the packets show
the outer one's. Forgotten oldest first: the two begin within moments of each other."""

Look = Callable[[Connection, int], None]
"""Looks a connection's flow up, now (ktime): its interface and hook go into its facts."""
ReadHello = Callable[[int], Hello | None]
Tell = Callable[[Connection, int, int, str], None]
"""Connection, start, end (ktime ns), and why it failed: "" when it did not."""


class Ended(NamedTuple):
    """A handshake that is over."""

    connection: Connection
    start: int
    end: int
    success: bool
    reason: str
    """What the library said of a failure."""


class Handshakes:
    """``waiting`` is for looking only: by connection, in the order of their ends."""

    def __init__(self, counters: Region, read: ReadHello, look: Look, tell: Tell) -> None:
        self._counters = counters
        self._read = read
        self._look = look
        self._tell = tell
        self._owners: dict[int, bytes] = {}
        self.waiting: dict[bytes, Ended] = {}

    @property
    def next_ns(self) -> int:
        """When ``due`` has something to do (ktime); NEVER while nobody waits."""
        for ended in self.waiting.values():
            return ended.end + WAIT_NS
        return NEVER

    def succeeded(self, connection: Connection, start: int, now: int) -> None:
        """A handshake is over; times are ktime ns."""
        connection.facts.handshake_ns = now - start
        self._ended(Ended(connection, start, now, True, ""), now)

    def failed(self, connection: Connection, start: int, now: int, reason: str) -> None:
        """It will never succeed; ``reason`` is what is known without its packets."""
        self._ended(Ended(connection, start, now, False, reason), now)

    def said(self, connection: Connection, ring: bytes | mmap.mmap, at: int, now: int) -> None:
        """The library has said something of the session: the record at ``at``."""
        _, fact, _, captured, _, _, number, _ = records.HEAD.unpack_from(ring, at)
        facts = connection.facts
        if fact == records.FACT_ALPN:
            start = at + records.HEADER_BYTES
            facts.alpn = tls_hello.text(ring[start : start + captured])
            facts.alpn_settled = True
            facts.prefix = None
            self.settle(connection, now)
        elif fact == records.FACT_FAILED:
            gnutls = facts.library == "gnutls"
            why = tls_errors.of_gnutls(number) if gnutls else tls_errors.of_openssl(number)
            start = records.unpack_conn(ring, at + records.CONN_AT).handshake_start
            self.failed(connection, start, now, why)
        elif fact == records.FACT_VERIFIED:
            self._verified(connection, tls_errors.of_certificate(number))

    def _verified(self, connection: Connection, why: str) -> None:
        """The program asks what is wrong with the certificate that has made its handshake fail."""
        ended = self.waiting.get(connection.key)
        if why and ended is not None and ended.reason == "certificate verify failed":
            self.waiting[connection.key] = ended._replace(reason=f"{ended.reason}: {why}")

    def _ended(self, ended: Ended, now: int) -> None:
        connection, facts = ended.connection, ended.connection.facts
        facts.shaking_ns = 0
        facts.handshake_told = True
        facts.hello_of = 0  # what was read in the middle of it was not all
        facts.prefix = None
        self.waiting[connection.key] = ended
        if len(self.waiting) > MAX_WAITING:
            self.release(next(iter(self.waiting.values())).connection, now)
        self.settle(connection, now)

    def settle(self, connection: Connection, now: int) -> None:
        """Something became known: tells the connection's handshake if that was the last."""
        ended = self.waiting.get(connection.key)
        facts = connection.facts
        if ended is None or not ended.success or not facts.socket_cookie:
            return  # a failure is told with all that its program finds out about it
        self._look(connection, now)
        self.learn(connection)
        if facts.alpn or facts.alpn_settled:
            self.release(connection, now)

    def release(self, connection: Connection, now: int) -> None:
        """Tells the connection's handshake as it is, if it waits."""
        ended = self.waiting.pop(connection.key, None)
        if ended is None:
            return
        self._look(connection, now)
        self.learn(connection)
        self._counters.add("handshakes_ok" if ended.success else "handshakes_failed")
        reason = ""
        if not ended.success:
            reason = tls_facts.why_failed(ended.reason, self._hello(connection))
        self._tell(connection, ended.start, ended.end, reason)

    def ahead_of(self, finished: list[Finished]) -> None:
        """Tells those of connections whose exchanges leave now."""
        for connection, exchange, _, _ in finished:
            response = exchange.response
            self.release(connection, response.end_ns if response is not None else connection.last_ns)

    def due(self, now: int) -> None:
        """Tells those that have waited long enough."""
        while self.waiting:
            ended = next(iter(self.waiting.values()))
            if ended.end + WAIT_NS > now:
                return
            self.release(ended.connection, now)

    def spoken(self, connection: Connection, now: int) -> None:
        """Plaintext has moved on a connection whose beginning the packets show.

        If nothing has told of a handshake, it was inside of the first read or write (NSS, s_client): that it
        is over is all that is known, and ``start`` is 0.
        """
        self.learn(connection)
        facts = connection.facts
        if facts.tls_version and not facts.handshake_told and not connection.joined:
            self._ended(Ended(connection, 0, now, True, ""), now)

    def learn(self, connection: Connection) -> None:
        """Reads what the packets of the connection's beginning said, once for each socket that it gets."""
        facts = connection.facts
        cookie = facts.socket_cookie
        if not cookie or facts.hello_of == cookie:
            return
        facts.hello_of = cookie
        hello = self._hello(connection)
        if hello is not None:
            whole = tls_facts.learn(facts, hello)
            if not hello.server:
                facts.hello_of = 0  # its answer may still come
            else:
                self._counters.add("hellos_read" if whole else "hellos_cut")
        elif facts.wire and not connection.joined:
            self._counters.add("hellos_missing")

    def _hello(self, connection: Connection) -> Hello | None:
        """What is kept of the socket, unless it is another TLS object's."""
        cookie = connection.facts.socket_cookie
        if not cookie:
            return None
        owner = self._owners.get(cookie)
        if owner is not None and owner != connection.key:
            return None
        hello = self._read(cookie)
        if hello is not None and owner is None:
            if len(self._owners) >= MAX_OWNERS:
                del self._owners[next(iter(self._owners))]
            self._owners[cookie] = connection.key
        return hello
