"""Finds functions of a Go program by name in its line table, which stripping leaves in place.

Takes an ``Image``; ``LineTable`` answers for a few names where each function starts, as an offset from the
start of Go's code (or as an address: Go before 1.18), and how long it is. The table holds every function of
the program, a hundred thousand in large ones: names and entries are searched for as bytes, never listed.
Everything comes from a stranger's file: offsets and counts are compared with the section before they are
used, and whatever does not fit raises ``UnreadableError``. Never reads outside of the section.

Source: src/runtime/symtab.go of Go (pcHeader, functab, _func) and "Go 1.2 Runtime Symbol Information".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from spliffd.targets.elf import Image, Section, UnreadableError

SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
"""The second is what the linker calls it in position-independent programs up to Go 1.25."""

MAX_TABLE = 512 << 20
"""Kubernetes' largest programs have 40 MiB."""

MAX_FUNCTIONS = 1 << 22
"""The largest programs known have 300,000."""

MAX_FUNCTION = 1 << 16
"""Longest function of interest in bytes; the longest honest one has 4 KiB."""

MAX_PLACES = 4096
"""Places where the four bytes of a name's offset stand: mostly one or two, but a number that all functions
of a package share may be the same by chance. 0.1 s."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEADER = struct.Struct("<IBBBB8Q")
_POINTER = 8
_ALIGNMENT = 4


class _Format(NamedTuple):
    """Which word of the header says what, counted from its eighth byte; None: the section's start."""

    since: str
    text: int | None
    names: int | None
    functions: int | None
    entry_size: int
    """Bytes of an address in the table: 8, or 4 where it is an offset."""


_FORMATS = {
    0xFFFFFFFB: _Format("1.2", None, None, None, 8),
    0xFFFFFFFA: _Format("1.16", None, 2, 6, 8),
    0xFFFFFFF0: _Format("1.18", 2, 3, 7, 4),
    0xFFFFFFF1: _Format("1.20", 2, 3, 7, 4),
}


class GoFunction(NamedTuple):
    """One function: ``start`` counts from the start of the code if the table's ``relative``, and ``size``."""

    start: int
    size: int


def _merged(image: Image) -> Section | None:
    """The table where the system's linker has put it among other constants: position-independent with cgo."""
    whole = image.section(".data.rel.ro")
    if whole is None:
        return None
    end = whole.offset + whole.size
    for magic in _FORMATS:
        at = image.find(_U32.pack(magic) + b"\0\0\1\x08", whole.offset, end)
        if at >= 0:
            return Section(whole.address + at - whole.offset, at, end - at)
    return None


class LineTable:
    """The line table of a Go program. Raises UnreadableError when it is not one."""

    def __init__(self, image: Image) -> None:
        section = image.section(*SECTIONS) or _merged(image)
        if section is None:
            raise UnreadableError("no line table (.gopclntab)")
        if section.size > MAX_TABLE:
            raise UnreadableError(f"a line table of {section.size} bytes, at most {MAX_TABLE}")
        self._image, self._section = image, section
        magic, zero, zero2, quantum, pointer, *words = _HEADER.unpack(self._bytes(0, _HEADER.size))
        layout = _FORMATS.get(magic)
        if layout is None or zero or zero2 or quantum not in (1, 2, 4) or pointer != _POINTER:
            raise UnreadableError(f"a line table of an unknown form ({magic:#x})")
        self._layout = layout
        self.relative = layout.text is not None
        """Whether functions start at offsets from the start of the code."""
        self.since = layout.since
        """The first version of Go that writes this form."""
        self.text_start = words[layout.text] if layout.text is not None else 0
        """Address of the code; 0: the file does not say (Go 1.26, position-independent programs)."""
        self._names = words[layout.names] if layout.names is not None else 0
        self._base = words[layout.functions] if layout.functions is not None else 0
        """What the offsets of functions' records count from."""
        self._entries = self._base if layout.functions is not None else 16
        self._count = words[0]
        if not 0 < self._count <= MAX_FUNCTIONS:
            raise UnreadableError(f"a line table of {self._count} functions, at most {MAX_FUNCTIONS}")
        if self._names >= section.size or self._entries >= section.size:
            raise UnreadableError("a line table whose parts lie outside of it")
        self._bytes(self._entries + self._count * self._row, layout.entry_size)

    @property
    def section(self) -> Section:
        """Where the table lies."""
        return self._section

    @property
    def _row(self) -> int:
        return 2 * self._layout.entry_size

    def _bytes(self, at: int, size: int) -> bytes:
        if at < 0 or at + size > self._section.size:
            raise UnreadableError("a line table that points outside of itself")
        return self._image.content(self._section.offset + at, size)

    def _word(self, at: int, size: int) -> int:
        return int((_U32 if size == 4 else _U64).unpack(self._bytes(at, size))[0])

    def _entry(self, index: int) -> int:
        return self._word(self._entries + index * self._row, self._layout.entry_size)

    def _record(self, index: int) -> int:
        size = self._layout.entry_size
        return self._base + self._word(self._entries + index * self._row + size, size)

    def find(self, names: tuple[str, ...]) -> dict[str, GoFunction]:
        """Those of the functions ``names`` that the program has."""
        found = {}
        for name in names:
            function = self._find(name)
            if function is not None:
                found[name] = function
        return found

    def _find(self, name: str) -> GoFunction | None:
        at, end = self._section.offset, self._section.offset + self._section.size
        place = self._image.find(b"\0" + name.encode() + b"\0", at + self._names, end)
        if place < 0:
            return None
        # A record holds its function's entry and, behind it, the offset of the name.
        offset = _U32.pack(place + 1 - at - self._names)
        records = at + self._entries
        place = self._image.find(offset, records, end)
        for _ in range(MAX_PLACES):
            while place >= 0 and (place - at) % _ALIGNMENT:
                place = self._image.find(offset, place + 1, end)
            if place < 0:
                return None
            index = self._index_of(place - at - self._layout.entry_size)
            if index is not None:
                start = self._entry(index)
                size = self._entry(index + 1) - start  # behind the last one stands the end of the code
                if not 0 < size <= MAX_FUNCTION:
                    raise UnreadableError(f"{name} of {size} bytes, at most {MAX_FUNCTION}")
                return GoFunction(start, size)
            place = self._image.find(offset, place + 1, end)
        return None

    def _index_of(self, record: int) -> int | None:
        """Which function's record lies at ``record``, if it is one: its entry must lead back to it."""
        if record < self._entries + self._count * self._row:
            return None
        entry = self._word(record, self._layout.entry_size)
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle) < entry:
                low = middle + 1
            else:
                high = middle
        if low < self._count and self._entry(low) == entry and self._record(low) == record:
            return low
        return None
