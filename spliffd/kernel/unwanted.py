"""Tells the kernel which bytes of a connection nobody wants: shared memory, no system call.

Takes a connection's key (``records.KEY_AT``), a direction and an offset of its stream; what calls of at least
``CALL_BYTES`` move before that offset is then not copied, and the next record's offset shows that it is
missing. A hint, never a promise: two connections of the same slot take it from each other.
Layout: struct unwanted in bpf/maps.h.
"""

from __future__ import annotations

import struct

from spliffd.kernel import bpf

SLOTS = 4096
ENTRY_BYTES = 32
CALL_BYTES = 4096
"""UNWANTED_CALL in bpf/maps.h."""

_WORDS = ENTRY_BYTES // 8
_SSL_GENERATION = struct.Struct("=16xQQ")
"""Of a connection's key."""


class Unwanted:
    """The table, writable; ``fd`` is its map."""

    def __init__(self, fd: int) -> None:
        self._words = memoryview(bpf.map_memory(fd, SLOTS * ENTRY_BYTES, writable=True)).cast("Q")

    def until(self, key: bytes, sent: int, received: int) -> None:
        """Nobody wants this connection's bytes before these offsets; 0: all are wanted."""
        ssl, generation = _SSL_GENERATION.unpack(key)
        slot = ((ssl >> 4) ^ (generation >> 8)) & (SLOTS - 1)
        words, at = self._words, slot * _WORDS
        words[at] = 0  # nobody's while it is written: x86 keeps the order of stores
        words[at + 1] = ssl
        words[at + 2] = sent
        words[at + 3] = received
        words[at] = generation
