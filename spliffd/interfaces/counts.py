"""Packets and bytes that the hooks of each interface saw, in a map that the programs add to.

Takes the map's fd; an entry is made before an interface is hooked and removed when it goes, so the programs
never make one. Each processor adds to its own; reading adds them up. bpf/flows.h: struct interface_count.
"""

from __future__ import annotations

import struct

from spliffd.kernel import bpf
from spliffd.kernel.maps import INTERFACE_COUNT

_POSSIBLE = "/sys/devices/system/cpu/possible"


def processors(ranges: str) -> int:
    """How many processors ``ranges`` names (``0-3,8-11``): the kernel copies a value for each of them."""
    count = 0
    for part in ranges.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


class Counts:
    """The map ``interfaces``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        with open(_POSSIBLE, encoding="ascii") as file:
            self._size = INTERFACE_COUNT * processors(file.read())

    def start(self, index: int) -> None:
        """Counts from zero; raises OSError when the map is full."""
        bpf.map_update(self._fd, _key(index), bytes(self._size))

    def stop(self, index: int) -> None:
        """Forgets the interface."""
        bpf.map_delete(self._fd, _key(index))

    def get(self, index: int) -> tuple[int, int]:
        """Packets and bytes so far; zeros for an interface that is not counted."""
        value = bpf.map_lookup(self._fd, _key(index), self._size) or b""
        numbers = struct.unpack(f"={len(value) // 8}Q", value)
        return sum(numbers[::2]), sum(numbers[1::2])


def _key(index: int) -> bytes:
    return struct.pack("=I", index)
