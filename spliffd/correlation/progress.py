"""Exchanges that go on for long are told of while they do: server-sent events, long polls, downloads.

Takes the connections that bytes moved on (``recent``) and, now and then, the time; says which of their
unfinished exchanges are to be told of, each at once when it streams events, else when it is older than
``LONG_NS``. A connection that has nothing to tell costs one look, and none until bytes move on it again.

Does no I/O, reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spliffd.correlation.connection import Connection
from spliffd.protocols.messages import HttpExchange

LOOK_AROUND_NS: Final = 200_000_000
"""How often to look: events are shown this late at most. A look at 1,000 connections costs a millisecond."""

LONG_NS: Final = 1_000_000_000
"""An exchange that is not finished after this is told of: a person begins to wonder after a second."""

EVENT_STREAM: Final = "text/event-stream"

Tell = Callable[[Connection, HttpExchange], None]


class LookAround:
    """``glance`` fills in what is known of a connection's packets, ``tell`` tells of an exchange."""

    def __init__(self, glance: Callable[[Connection, int], None], tell: Tell) -> None:
        self._glance = glance
        self._tell = tell
        self.wanted = False
        """Whether anybody wants to be told; else nothing is ``recent``."""
        self.recent: set[Connection] = set()
        """Connections that bytes moved on, or that may have news when time has passed."""
        self.next_ns = 0
        """When to look again, while any is recent."""

    def look(self, now: int) -> None:
        """Tells of what has become long, and of the bodies of what was told of before."""
        if now < self.next_ns or not self.recent:
            return
        self.next_ns = now + LOOK_AROUND_NS
        recent, self.recent = self.recent, set()
        for connection in recent:
            for exchange in connection.under_way():
                if not exchange.announced:
                    if not is_long(exchange, now):
                        self.recent.add(connection)
                        continue
                    self._glance(connection, now)
                self._tell(connection, exchange)


def is_long(exchange: HttpExchange, now: int) -> bool:
    """Whether to tell of an unfinished exchange."""
    request, response = exchange.request, exchange.response
    if response is not None and response.content_type.startswith(EVENT_STREAM):
        return True
    first = request or response
    return first is not None and now - first.start_ns > LONG_NS
