"""WebSocket messages on their way out: counted, and kept in order with the exchange that they belong to.

Takes finished messages of a connection; hands each to the receiver, but not before the exchange that upgraded
the connection, which may still wait for its flow. While nobody wants messages they are only counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spliffd.correlation.connection import SENT, Connection
from spliffd.counters import Region
from spliffd.protocols.websocket_message import WebSocketMessage

MAX_WAITING: Final = 1024
"""Messages that wait until the exchange before them is out; beyond it they overtake it."""


class Messages:
    """``tell`` gets a connection and its message."""

    def __init__(self, counters: Region, tell: Callable[[Connection, WebSocketMessage], None]) -> None:
        self._words = counters.words
        self._slots = (
            counters.index("websocket_messages_sent"),
            counters.index("websocket_messages_received"),
        )
        self._tell = tell
        self._waiting: list[tuple[Connection, WebSocketMessage]] = []

    def take(self, connection: Connection, *, wanted: bool) -> None:
        """Takes what the connection has finished."""
        messages = connection.messages[:]
        connection.messages.clear()
        for message in messages:
            received = message.from_server == (connection.request_direction == SENT)
            self._words[self._slots[received]] += 1
            if wanted:
                self._waiting.append((connection, message))

    def hand_out(self) -> None:
        """What need not wait leaves."""
        if not self._waiting:
            return
        held: list[tuple[Connection, WebSocketMessage]] = []
        for connection, message in self._waiting:
            if connection.waiting and len(held) < MAX_WAITING:
                held.append((connection, message))
            else:
                self._tell(connection, message)
        self._waiting = held
