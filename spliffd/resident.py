"""Lets go of memory that only starting up, or a rush that is over, has used.

Of a process's code and constants most is run once: what imports, sets up and connects. Those pages are the
files' own, unchanged, and stay in the kernel's cache as long as that has room; what is needed again is mapped
again when it is touched, sixteen pages at a time and without reading a disk. Takes nothing, returns how much
was let go, and never touches a page that differs from its file (madvise(2), MADV_DONTNEED; proc(5), smaps).
What the allocator keeps between pieces that are in use is given back as well (malloc_trim(3)).
"""

from __future__ import annotations

import asyncio
import ctypes
import re
from pathlib import Path

MUCH = 10_000
"""Things that make a rush: as many as history keeps, so that most of what came has been freed again."""

CALM_SECONDS = 5.0
"""A rush is over when less than that came in so long: to let go costs three milliseconds."""

_DONTNEED = 4
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r(.).p \S+ \S+ ([0-9]+) +/|[0-9a-f]+-[0-9a-f]+ ")
"""A mapping; its address range, whether it can be written and its inode if it is a private one of a file."""


def let_go() -> int:
    """Unmaps every page of code and constants; returns bytes. 0 where the kernel does not tell or let."""
    libc = ctypes.CDLL(None)
    freed = 0
    try:
        mappings = unchanged(Path("/proc/self/smaps").read_text())
    except OSError:
        return 0
    for start, size, resident in mappings:
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED) == 0:
            freed += resident
    libc.malloc_trim(ctypes.c_size_t(0))
    return freed


class Ebb:
    """Lets go once after each rush; no timer runs while nothing happens."""

    def __init__(self) -> None:
        self._came = 0
        self._waiting = False

    def came(self, count: int) -> None:
        """So many things passed through."""
        self._came += count
        if self._came >= MUCH and not self._waiting:
            self._waiting = True
            self._wait()

    def _wait(self) -> None:
        self._came = 0
        asyncio.get_running_loop().call_later(CALM_SECONDS, self._look)

    def _look(self) -> None:
        if self._came >= MUCH:
            self._wait()
        else:
            self._waiting = False
            let_go()


def unchanged(smaps: str) -> list[tuple[int, int, int]]:
    """Address, size and resident bytes of mappings that nobody can write and nothing was written to."""
    found: list[tuple[int, int, int]] = []
    start = size = rss = 0
    for line in smaps.splitlines():
        if header := _HEADER.match(line):
            fixed = header[3] == "-" and header[4] != "0"
            start, size = (int(header[1], 16), int(header[2], 16) - int(header[1], 16)) if fixed else (0, 0)
        elif line.startswith("Rss:"):
            rss = int(line.split()[1]) << 10
        elif line.startswith("Anonymous:") and size and rss and line.split()[1] == "0":
            # Relocated addresses and breakpoints are copies of its own: without them nothing would work.
            found.append((start, size, rss))
    return found
