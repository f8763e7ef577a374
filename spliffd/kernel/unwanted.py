"""Tells the kernel which bytes of a connection nobody wants: shared memory, no system call.

Takes a connection's key (``records.KEY_AT``), a direction and an offset of its stream; what calls of at least
``CALL_BYTES`` move before that offset is then not copied, and the next record's offset shows that it is
missing. Or, of HTTP/2, numbers of streams: of calls that move nothing but their data a record tells
(``records.SKIPPED``). A hint, never a promise: two connections of the same slot take it from each other.
Layout: struct unwanted in bpf/maps.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from spliffd.kernel import bpf

SLOTS = 4096
ENTRY_BYTES = 64
CALL_BYTES = 4096
"""UNWANTED_CALL in bpf/maps.h."""

STREAMS = 4
"""UNWANTED_STREAMS in bpf/events.h."""

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
        for word in range(at + 4, at + _WORDS):
            words[word] = 0
        words[at] = generation

    def streams(self, key: bytes, sent: Sequence[int], received: Sequence[int]) -> None:
        """Nobody wants the bodies of these streams, ``STREAMS`` numbers each way; 0: none."""
        ssl, generation = _SSL_GENERATION.unpack(key)
        slot = ((ssl >> 4) ^ (generation >> 8)) & (SLOTS - 1)
        words, at = self._words, slot * _WORDS
        words[at] = 0
        words[at + 1] = ssl
        words[at + 2] = words[at + 3] = 0
        words[at + 4], words[at + 5] = sent[0] | sent[1] << 32, sent[2] | sent[3] << 32
        words[at + 6], words[at + 7] = received[0] | received[1] << 32, received[2] | received[3] << 32
        words[at] = generation
