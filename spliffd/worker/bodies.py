"""Bodies on their way to watchers: kept until the exchange is finished, or sent ahead in parts.

Takes body bytes as the parser finds them; keeps up to ``PART_BYTES`` for each half of an exchange, then
hands them out as a part. Memory is bounded by parts, not by bodies: a 1 GiB download passes through
128 KiB of it. Beyond a watcher's limit nothing is kept at all.
"""

from __future__ import annotations

PART_BYTES = 128 << 10
"""A part this large costs little per byte on every hop, and stays far below MAX_DATAGRAM."""

MAX_HELD = 32 << 20
"""All that is held for all exchanges; beyond it every piece is sent on at once, as a small part."""


class Half:
    """What is held of one half's body: ``offset`` is where it begins in the body."""

    __slots__ = ("offset", "pieces", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.offset = 0

    def add(self, offset: int, data: bytes) -> None:
        """Adds bytes; a hole before them (lost, or not asked for) starts a new run."""
        if not self.pieces:
            self.offset = offset
        self.pieces.append(data)
        self.size += len(data)

    def joins(self, offset: int) -> bool:
        """Whether bytes at ``offset`` continue what is held."""
        return not self.pieces or self.offset + self.size == offset

    def take(self) -> tuple[int, bytes]:
        """Hands out what is held: offset and bytes."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        offset = self.offset
        self.pieces = []
        self.size = 0
        return offset, data


class Bodies:
    """Both halves of one exchange's bodies (kept in ``exchange.user``)."""

    __slots__ = ("request", "response")

    def __init__(self) -> None:
        self.request = Half()
        self.response = Half()
