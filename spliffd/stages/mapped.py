"""Which process maps which files that may hold TLS code: remembered for processes that have ended.

Takes looks at processes (``discovery.look``) with their start times; gives back the last one that saw
anything. Bounded, the oldest go first. Reads nothing itself.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from spliffd.targets.discovery import Look

PROCESSES = 4096
"""Processes remembered, as many as ``attribution.processes`` keeps facts of; about 0.4 KiB each."""


class MappedFile(msgspec.Struct, frozen=True):
    """A file as a process maps it."""

    device: int
    inode: int
    path: str
    executable: bool


class Mapped(msgspec.Struct, frozen=True):
    """What one process maps."""

    files: tuple[MappedFile, ...]
    bits32: bool


class Memory:
    """What was seen of processes that may be gone, by pid and start time (ns since boot)."""

    def __init__(self) -> None:
        self._files: dict[MappedFile, MappedFile] = {}
        self._known: OrderedDict[tuple[int, int], Mapped] = OrderedDict()

    def keep(self, look: Look, start_ns: int) -> None:
        """A process maps these; what was known of it before is over."""
        if len(self._files) > PROCESSES:
            self._files.clear()  # those that are still named by processes live on with them
        self._known[look.pid, start_ns] = mapped(look, self._files)
        self._known.move_to_end((look.pid, start_ns))
        while len(self._known) > PROCESSES:
            self._known.popitem(last=False)

    def recall(self, pid: int, start_ns: int) -> Mapped | None:
        """What a process was last seen to map; None when nobody looked in time."""
        return self._known.get((pid, start_ns))


def mapped(look: Look, shared: dict[MappedFile, MappedFile] | None = None) -> Mapped:
    """A look without its addresses; ``shared`` keeps files of many processes only once."""
    files = []
    for one in look.candidates:
        file = MappedFile(one.device, one.inode, one.path, one.executable)
        files.append(file if shared is None else shared.setdefault(file, file))
    return Mapped(tuple(files), look.bits32)
