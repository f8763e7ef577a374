"""Holds the exchanges that became WebSockets until their messages have come.

HAR and mitmproxy keep the messages of a WebSocket inside the exchange that opened it, so that exchange can
be written only when the WebSocket is closed, or the file ends. What waits is bounded in number and bytes:
past either the oldest is given back early, and its later messages are strays, which are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb

MAX_HELD = 1024
"""WebSockets open at one time: browsers hold few, a busy server's are many, and each costs some KiB."""

MAX_HELD_BYTES = 64 << 20
"""Payload of all that wait, overhead included."""

MESSAGE_OVERHEAD = 1024
"""Bytes of memory that a message costs beside its payload (it carries its process and connection)."""


@dataclass(slots=True)
class Upgraded:
    """An exchange and what was said behind it."""

    exchange: pb.Exchange
    bodies: tuple[Body, Body]
    messages: list[pb.Message] = field(default_factory=list)
    bytes: int = 0
    closed: set[str] = field(default_factory=set)
    """Directions in which a close was seen."""


def is_upgrade(exchange: pb.Exchange) -> bool:
    """Whether WebSocket messages may follow."""
    return exchange.part_key != 0 and (exchange.response.status == 101 or exchange.protocol == "websocket")


class Upgrades:
    """Open WebSockets by the part key of their exchange."""

    def __init__(self, *, capacity: int = MAX_HELD, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._held: dict[int, Upgraded] = {}
        self._bytes = 0
        self.strays = 0
        """Messages that came when their exchange was not held any more, or never."""

    def add(self, exchange: pb.Exchange, bodies: tuple[Body, Body]) -> list[Upgraded]:
        """Holds an exchange; returns those that make room for it. One sent again is replaced."""
        known = self._held.get(exchange.part_key)
        if known:
            known.exchange, known.bodies = exchange, bodies
            return []
        self._held[exchange.part_key] = Upgraded(exchange, bodies)
        return self._make_room()

    def message(self, message: pb.Message) -> list[Upgraded]:
        """Adds a message to its exchange; returns what is complete by that, and what makes room."""
        held = self._held.get(message.exchange_part_key)
        if held is None:
            self.strays += 1
            return []
        held.messages.append(message)
        cost = len(message.data) + MESSAGE_OVERHEAD
        held.bytes += cost
        self._bytes += cost
        if message.type == "close":
            held.closed.add(message.direction)
            if len(held.closed) == 2:
                return [self._pop(message.exchange_part_key)]
        return self._make_room()

    def drain(self) -> list[Upgraded]:
        """All that wait, oldest first."""
        return [self._pop(key) for key in list(self._held)]

    def _make_room(self) -> list[Upgraded]:
        out = []
        while len(self._held) > self._capacity or self._bytes > self._max_bytes:
            out.append(self._pop(next(iter(self._held))))
        return out

    def _pop(self, key: int) -> Upgraded:
        held = self._held.pop(key)
        self._bytes -= held.bytes
        return held
