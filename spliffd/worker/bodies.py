"""Bodies on their way to watchers: kept until the exchange is finished, or sent ahead in parts.

Takes body bytes as the parser finds them; keeps up to ``PART_BYTES`` for each half of an exchange, then
hands them out as a part. Memory is bounded by parts, not by bodies: a 1 GiB download passes through
128 KiB of it. Beyond a watcher's limit nothing is kept at all.
"""

from __future__ import annotations

from typing import Final

from spliffd.worker.masked_bodies import MaskedBody

PART_BYTES: Final = 128 << 10
"""A part this large costs little per byte on every hop, and stays far below MAX_DATAGRAM."""

MAX_HELD: Final = 32 << 20
"""All that is held for all exchanges; beyond it every piece is sent on at once, as a small part."""


class Half:
    """What is held of one half's body: ``offset`` is where it begins in the body."""

    __slots__ = ("asked", "masked", "offset", "pieces", "raw", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        """For everybody."""
        self.raw: list[bytes] | None = None
        """For those who may see secrets, as many bytes; None while there is no difference."""
        self.size = 0
        self.offset = 0
        self.asked = False
        """Whether ``masked`` is decided."""
        self.masked: MaskedBody | None = None
        """How secrets in it are masked; None: there are none."""

    def add(self, offset: int, data: bytes) -> None:
        """Adds bytes; a hole before them (lost, or not asked for) starts a new run."""
        if not self.size:
            self.offset = offset
        self.pieces.append(data)
        if self.raw is not None:
            self.raw.append(data)
        self.size += len(data)

    def add_secret(self, offset: int, data: bytes, raw: bytes) -> None:
        """Adds bytes of which ``raw`` is what was there; ``data`` is as long, or nothing."""
        if not self.size:
            self.offset = offset
        if self.raw is None:
            self.raw = list(self.pieces)
        self.pieces.append(data)
        self.raw.append(raw)
        self.size += len(raw)

    def joins(self, offset: int) -> bool:
        """Whether bytes at ``offset`` continue what is held."""
        return not self.size or self.offset + self.size == offset

    def take(self) -> tuple[int, bytes, bytes]:
        """Hands out what is held: offset, bytes, and the bytes unmasked where they differ."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        raw = b"" if self.raw is None else b"".join(self.raw)
        offset = self.offset
        self.pieces = []
        self.raw = None
        self.size = 0
        return offset, data, raw


class Bodies:
    """Both halves of one exchange's bodies (kept in ``exchange.user``)."""

    __slots__ = ("request", "response")

    def __init__(self) -> None:
        self.request = Half()
        self.response = Half()
