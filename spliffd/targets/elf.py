"""Reads the parts of an ELF file that probe placement needs, and believes none of it.

Takes an fd of a regular file; ``Image`` maps it read-only and gives: machine, build-id, functions by
name (dynamic table first, then the full one), code bytes by address, file offsets by address.
Everything a file can be wrong in becomes ``UnreadableError`` with a reason that ``spliffctl libraries``
shows. Sizes and counts are checked against the file's size and the bounds below before they are used.
Never writes, never follows a path, never loads or runs anything.

Source: System V gABI chapters 4 and 5; versioned symbols: LSB Core, "Symbol Versioning".
Plain ``struct`` on purpose: three record formats, every one bounded before it is unpacked, whereas a
general ELF library walks wherever a hostile file sends it, and is 80 times slower on large tables.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

MAX_FILE = 768 << 20
"""Chrome with symbols is below 400 MiB; the mapping must fit into the inspector's address space."""

MAX_HEADERS = 512
"""Program or section headers: linkers make about 40, debug builds with a section per function more."""

MAX_TABLE = 64 << 20
"""One symbol table: 2.8 million symbols, half a second. A stranger's file may not cost more."""

MAX_STRINGS = 256 << 20
"""One string table; C++ names of a browser take about 100 MiB."""

MAX_SAME_NAME = 4096
"""Places in the string table where a wanted name ends: 1 in honest files, some hundred with suffixes."""

MAX_NOTE = 64 << 10
"""One note segment."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NOTE = struct.Struct("<III")
_MACHINES = {62: "x86-64", 183: "aarch64"}
_PT_LOAD, _PT_NOTE = 1, 4
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_NOBITS, _SHT_DYNSYM, _SHT_GNU_VERSYM = 1, 2, 8, 11, 0x6FFFFFFF
_STT_FUNC = 2
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00
_VERSION_HIDDEN = 0x8000
_NT_GNU_BUILD_ID = 3
_PF_X = 1
_Row = tuple[Any, ...]
_VERSION_NAME = re.compile(rb"\0(OPENSSL_[0-9][0-9A-Za-z_.]{0,20})(?=\0)")


class UnreadableError(Exception):
    """The file cannot be used; the text says why."""


class NarrowError(UnreadableError):
    """It is for 32-bit programs."""


class Function(NamedTuple):
    """One function symbol: its address and size in bytes (0 where the file does not say)."""

    address: int
    size: int


class Segment(NamedTuple):
    """One PT_LOAD segment: addresses ``start`` to ``start + size`` are the file's bytes at ``offset``."""

    start: int
    offset: int
    size: int
    executable: bool


class Section(NamedTuple):
    """One section: its address once loaded, and where its content lies in the file, in bytes."""

    address: int
    offset: int
    size: int


class _Table(NamedTuple):
    """A symbol table: where it, its strings and its version indices (or 0, 0) lie in the file."""

    offset: int
    size: int
    strings: int
    strings_size: int
    versions: int
    versions_size: int


class Image:
    """One mapped file. ``close`` it, or use it as a context manager; the fd stays the caller's.

    A file that its owner truncates while it is mapped ends the process with SIGBUS: only the
    inspector, which can be spared, makes Images of files of strangers.
    """

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("not a regular file")
        if status.st_size < _HEADER.size:
            raise UnreadableError("too short for an ELF file")
        if status.st_size > MAX_FILE:
            raise UnreadableError(f"larger than {MAX_FILE >> 20} MiB")
        self.size = status.st_size
        try:
            self._map = mmap.mmap(fd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise UnreadableError(f"cannot be mapped: {error}") from None
        self._exported: frozenset[int] | None = None
        try:
            self._read()
        except UnreadableError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mapping."""
        self._map.close()

    def _read(self) -> None:
        header = _HEADER.unpack_from(self._map, 0)
        identity, kind, machine = header[0], header[1], header[2]
        if identity[:4] != b"\x7fELF":
            raise UnreadableError("not an ELF file")
        if identity[4] != 2:
            raise NarrowError("32-bit programs are not supported")
        if identity[5] != 1 or machine not in _MACHINES:
            raise UnreadableError(f"machine {machine} is not supported (x86-64 and aarch64 are)")
        if kind not in (2, 3):
            raise UnreadableError("neither an executable nor a shared library")
        self.machine = _MACHINES[machine]
        segments, sections = header[10], header[12]
        if not 0 < segments <= MAX_HEADERS or sections > MAX_HEADERS:
            raise UnreadableError(f"{segments} segments and {sections} sections, at most {MAX_HEADERS}")
        if sections == 0:
            raise UnreadableError("no section headers, so no symbols")
        program_headers = self._table(header[5], segments, _PROGRAM_HEADER, header[9], "program headers")
        section_headers = self._table(header[6], sections, _SECTION_HEADER, header[11], "section headers")
        self._read_segments(program_headers)
        self._read_sections(section_headers, header[13])

    def _table(self, offset: int, count: int, row: struct.Struct, row_size: int, what: str) -> list[_Row]:
        if row_size != row.size:
            raise UnreadableError(f"{what} of an unknown form")
        self._bounds(offset, count * row_size, MAX_HEADERS * row_size, what)
        return list(row.iter_unpack(self._slice(offset, count * row_size)))

    def _read_segments(self, headers: list[_Row]) -> None:
        self._segments: list[Segment] = []
        self.build_id = ""
        for kind, flags, offset, address, _, size, _, _ in headers:
            if kind == _PT_LOAD:
                self._bounds(offset, size, MAX_FILE, "a segment")
                self._segments.append(Segment(address, offset, size, bool(flags & _PF_X)))
            elif kind == _PT_NOTE and not self.build_id:
                self._bounds(offset, size, MAX_NOTE, "a note")
                self.build_id = _build_id(self._slice(offset, size))

    def _read_sections(self, headers: list[_Row], names_index: int) -> None:
        self._tables: dict[str, _Table] = {}
        self._plt: list[tuple[int, int]] = []
        names_at = headers[names_index][4] if names_index < len(headers) else self.size
        self._named = [(names_at + row[0], row[1], Section(*row[3:6])) for row in headers]
        versions = (0, 0)
        for name, kind, _, address, offset, size, *_ in headers:
            if kind == _SHT_GNU_VERSYM:
                self._bounds(offset, size, MAX_TABLE, "a version table")
                versions = (offset, size)
            elif kind == _SHT_PROGBITS and self._slice(names_at + name, 4) == b".plt":
                self._plt.append((address, address + size))
        for _, kind, _, _, offset, size, link, _, _, row_size in headers:
            table = {_SHT_DYNSYM: "dynamic", _SHT_SYMTAB: "full"}.get(kind)
            if table is None or table in self._tables:
                continue
            if row_size != _SYMBOL.size or link >= len(headers):
                raise UnreadableError("a symbol table of an unknown form")
            strings, strings_size = headers[link][4:6]
            self._bounds(offset, size, MAX_TABLE, "a symbol table")
            self._bounds(strings, strings_size, MAX_STRINGS, "a string table")
            whole = size - size % _SYMBOL.size
            of_table = versions if table == "dynamic" else (0, 0)
            self._tables[table] = _Table(offset, whole, strings, strings_size, *of_table)

    def _bounds(self, offset: int, size: int, most: int, what: str) -> None:
        if offset + size > self.size:
            raise UnreadableError(f"{what} reaches beyond the end of the file (truncated?)")
        if size > most:
            raise UnreadableError(f"{what} of {size} bytes, at most {most}")

    def _slice(self, offset: int, size: int) -> bytes:
        return self._map[offset : offset + size]

    # ---- addresses ----------------------------------------------------------------------------

    def offset_of(self, address: int) -> int:
        """The file offset of executable code at ``address``. Raises UnreadableError where none is."""
        for segment in self._segments:
            if segment.executable and segment.start <= address < segment.start + segment.size:
                return address - segment.start + segment.offset
        raise UnreadableError(f"address {address:#x} is not in executable code")

    def code(self, address: int, length: int) -> bytes:
        """Up to ``length`` bytes of executable code at ``address``; b"" where there is none."""
        for segment in self._segments:
            inside = address - segment.start
            if segment.executable and 0 <= inside < segment.size:
                return self._slice(segment.offset + inside, min(length, segment.size - inside))
        return b""

    def section(self, *names: str) -> Section | None:
        """The first section of one of these names whose content is in the file."""
        for at, kind, section in self._named:
            named = any(self._slice(at, len(name) + 1) == name.encode() + b"\0" for name in names)
            if named and kind != _SHT_NOBITS and section.offset + section.size <= self.size:
                return section
        return None

    def content(self, offset: int, size: int) -> bytes:
        """``size`` bytes of the file, less at its end."""
        return self._slice(offset, size) if offset >= 0 and size > 0 else b""

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """File offset of ``pattern`` between two file offsets, -1 without one."""
        return self._map.find(pattern, start, end)

    def in_plt(self, address: int) -> bool:
        """Whether ``address`` is a stub of the procedure linkage table."""
        return any(start <= address < end for start, end in self._plt)

    def find_text(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """First match of ``pattern`` in read-only data: what is loaded and not code."""
        for segment in self._segments:
            if not segment.executable:
                match = pattern.search(self._map, segment.offset, segment.offset + segment.size)
                if match:
                    return match
        return None

    # ---- symbols ------------------------------------------------------------------------------

    def functions(self, names: Sequence[str]) -> dict[str, Function]:
        """The defined functions among ``names``; the full table counts if the dynamic one has none.

        Of several versions of a name the default one is taken: it is what new programs link to.
        """
        for table in ("dynamic", "full"):
            found = self._search(self._tables[table], names) if table in self._tables else {}
            if found:
                return found
        return {}

    def _search(self, table: _Table, names: Sequence[str]) -> dict[str, Function]:
        places = self._places(table, names)
        found: dict[str, Function] = {}
        if not places:
            return found
        for index, (place, info, _, section, value, size) in enumerate(self._symbols(table)):
            if place not in places or not _is_function(info, section, value):
                continue
            name = places[place]
            if name not in found or not self._is_hidden(table, index):
                found[name] = Function(value, size)
        return found

    def _places(self, table: _Table, names: Sequence[str]) -> dict[int, str]:
        """Where in the string table each name stands; linkers share suffixes, so all places count."""
        places: dict[int, str] = {}
        start, end = table.strings, table.strings + table.strings_size
        for name in names:
            text = name.encode() + b"\0"
            at, count = self._map.find(text, start, end), 0
            while at >= 0:
                count += 1
                if count > MAX_SAME_NAME:
                    raise UnreadableError(f"the name {name} more than {MAX_SAME_NAME} times")
                places[at - start] = name
                at = self._map.find(text, at + 1, end)
        return places

    def _symbols(self, table: _Table) -> Iterator[_Row]:
        return _SYMBOL.iter_unpack(self._slice(table.offset, table.size))

    def _is_hidden(self, table: _Table, index: int) -> bool:
        if index * 2 + 2 > table.versions_size:
            return False
        at = table.versions + index * 2
        return bool(int.from_bytes(self._slice(at, 2), "little") & _VERSION_HIDDEN)

    def exported_addresses(self) -> frozenset[int]:
        """The addresses of all functions that other files may call."""
        if self._exported is None:
            table = self._tables.get("dynamic")
            # Written out: a program such as node exports 75,000 functions.
            self._exported = frozenset(
                value
                for _, info, _, section, value, _ in (self._symbols(table) if table else ())
                if info & 15 == _STT_FUNC and _SHN_UNDEF < section < _SHN_LORESERVE
            )
        return self._exported

    def version_names(self) -> list[str]:
        """Names such as OPENSSL_3.0.0 that the dynamic strings mention, in their order."""
        table = self._tables.get("dynamic")
        if table is None:
            return []
        matches = _VERSION_NAME.finditer(self._map, table.strings, table.strings + table.strings_size)
        return [match[1].decode("ascii") for match, _ in zip(matches, range(64), strict=False)]


def _is_function(info: int, section: int, value: int) -> bool:
    return info & 15 == _STT_FUNC and _SHN_UNDEF < section < _SHN_LORESERVE and value != 0


def _build_id(notes: bytes) -> str:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name = at + _NOTE.size
        content = name + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[content : content + min(size, 64)].hex()
        at = content + (size + 3 & ~3)
    return ""
