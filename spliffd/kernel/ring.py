"""Reads a BPF ring buffer through two mmaps, in plain Python, without a system call.

Takes the ring's fd and size; ``drain`` returns the payload positions of up to ``budget`` records and
moves the consumer only when told, so that bytes stay valid while they are used. Nothing is copied until
somebody slices ``data``.

Memory order: positions are read and written as single 8-byte words through ``memoryview.cast("Q")``. On
x86-64 loads are not reordered with loads, and the consumer's store is not reordered with its earlier
loads, which is all that the protocol needs; the remaining case (store, then load of the producer's
position) is closed by the kernel's own check when the worker goes to sleep in poll(). Other
architectures need acquire and release operations that Python does not give: refused at construction.
Source: Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import mmap
import platform
from typing import Final

_BUSY: Final = 0x80000000
_DISCARD: Final = 0x40000000
_LENGTH: Final = 0x3FFFFFFF
_HEADER: Final = 8

WRAP_BYTES: Final = (256 + 16) << 10
"""More than the largest record (256 KiB of payload and its headers), in whole pages; a test compares it with
the sizes in bpf/emit.bpf.c."""


class Ring:
    """One ring buffer, with this process as its only consumer.

    ``data`` is the double-mapped area behind one page: a record never wraps. Positions that ``drain``
    returns index into ``data``.
    """

    def __init__(self, fd: int, size: int) -> None:
        if platform.machine() != "x86_64":
            raise NotImplementedError(
                "the plain Python ring reader is only right on x86-64 (see this module's memory order)"
            )
        page = mmap.PAGESIZE
        self.fd = fd
        self.size = size
        self._mask = size - 1
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The kernel offers the data area twice in a row, so that a record never wraps. Of the second copy
        # only as much is mapped as one record can reach into it: what is mapped counts as memory in use.
        wrap = min(size, WRAP_BYTES)
        self.data = mmap.mmap(fd, page + size + wrap, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = memoryview(self.data)[:page].cast("Q")
        self._words = memoryview(self.data)[page:].cast("I")
        self._base = page + _HEADER
        self._next = self._consumer[0]

    def drain(self, budget: int) -> list[int]:
        """Positions in ``data`` of up to ``budget`` committed records, oldest first.

        They stay valid until ``release``. A record that is reserved and not yet committed ends the
        batch: order is kept.
        """
        position = self._next
        producer = self._producer[0]
        words = self._words
        mask = self._mask
        base = self._base
        found: list[int] = []
        while position < producer and len(found) < budget:
            at = position & mask
            header = words[at >> 2]
            if header & _BUSY:
                break
            if not header & _DISCARD:
                found.append(at + base)
            position += ((header & _LENGTH) + 15) & ~7
        self._next = position
        return found

    def release(self) -> None:
        """Gives everything that was drained back to the producer."""
        self._consumer[0] = self._next

    def produced(self) -> int:
        """Where the newest record ends, reserved ones included: as a position of ``drained``."""
        return self._producer[0]

    def drained(self) -> int:
        """Where the next record begins that is not drained yet."""
        return self._next

    def pending(self) -> int:
        """Bytes in the ring that are not drained yet, reserved ones included."""
        return self._producer[0] - self._next

    def close(self) -> None:
        """Unmaps; positions and ``data`` are invalid from here on."""
        for view in (self._consumer, self._producer, self._words):
            view.release()
        self._consumer_map.close()
        self.data.close()
