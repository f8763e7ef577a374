"""Header blocks of HTTP/2, decoded by somebody who may have come late or lost some (RFC 7541).

``Decoder`` belongs to one direction of one connection. Takes whole header blocks in the order of the wire;
returns their fields. Never raises, and is never done with a connection: what a block refers to and nobody
knows is named ``UNKNOWN``, and the next block is tried as if nothing had happened.

Why that works: the dynamic table is counted from its newest entry (index 62) to its oldest. Who joins in the
middle, or lost blocks (``lose``), knows nothing of what the table holds; but entries inserted from then on
stand in front of the unknown ones, and their indices are known exactly. As the encoder inserts, unknown
entries move back and fall out of the table; after one table's worth of insertions nothing is unknown.

Nor does the table's size matter for that: entries are evicted from the old end, and an encoder does not
refer to what it evicted. Keeping an entry for too long is harmless, dropping it too early makes it unknown,
and neither ever makes a field wrong. So behind a loss, which may hide a size update, the table is taken
for as large as allowed here.

Why not the hpack library, which is the oracle of the tests: it takes 32 us for a block of twelve
fields, this 4; and an index that it does not know ends it for good.
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.hpack_huffman import decode as huffman_decode
from spliffd.protocols.hpack_huffman import known_strings
from spliffd.protocols.hpack_tables import STATIC, STATIC_LAST
from spliffd.protocols.http1_fields import Headers

UNKNOWN: Final = b"(unknown)"
"""Name (and, of a whole field, value too) of what stood in the dynamic table before we could see it. No name
on the wire can look like that: parentheses are no token characters (RFC 9110 section 5.6.2)."""

DEFAULT_TABLE: Final = 4096
"""Bytes of a dynamic table until the encoder says otherwise (RFC 9113 section 6.5.2)."""
MAX_TABLE: Final = 64 * 1024
"""Largest dynamic table kept, as large as any browser or server asks for. Entries beyond become unknown."""
MAX_FIELDS: Final = 2000
"""Most fields kept of one block, as of an HTTP/1 head; servers refuse more than 100 to 1,000."""
MAX_LIST: Final = 256 * 1024
"""Most bytes of names and values kept of one block, as of an HTTP/1 head. A block of 16 KiB can refer to a
large entry 16,000 times; the fields share that entry here, but whoever writes them out would not."""
MAX_INDEX: Final = STATIC_LAST + (1 << 20) // 32
"""Highest index taken for real: the last of a table of 1 MiB, sixteen times the largest seen in the wild."""
MAX_INTEGER_BYTES: Final = 5
"""Bytes behind the prefix of an integer: 2^35. No length or index needs more (RFC 7541 section 5.1)."""

_TOO_LARGE: Final = 1 << 62
_UNKNOWN_FIELD: Final = (UNKNOWN, UNKNOWN)


class Decoder:
    """One direction's decoder. ``decode`` leaves in ``unknown``, ``broken`` and ``cut`` how it went."""

    __slots__ = (
        "bad_blocks",
        "broken",
        "cut",
        "entries",
        "largest",
        "limit",
        "nameless",
        "oversize_updates",
        "size",
        "table_size",
        "unknown",
    )

    def __init__(self, *, joined: bool = False) -> None:
        self.entries: Headers = []
        """The dynamic table as far as known, oldest entry first."""
        self.size = 0
        """Bytes of ``entries`` as RFC 7541 section 4.1 counts them."""
        self.largest = 0
        """No entry is larger than this."""
        self.table_size = MAX_TABLE if joined else DEFAULT_TABLE
        """Where eviction begins."""
        self.limit = MAX_TABLE if joined else DEFAULT_TABLE
        """What the peer of the encoder allows the table to grow to (SETTINGS_HEADER_TABLE_SIZE)."""
        self.nameless = False
        """Whether ``entries`` may hold some whose names are not known."""
        self.unknown = 0
        """Fields of the last block that are not known, or not known in full."""
        self.broken = False
        """Whether the last block was no valid one; what came before the fault was returned."""
        self.cut = False
        """Whether the last block had more than MAX_FIELDS or MAX_LIST."""
        self.bad_blocks = 0
        self.oversize_updates = 0
        """Size updates beyond ``limit``; they are followed all the same, up to MAX_TABLE."""

    def lose(self) -> None:
        """Blocks of this direction are lost: how far the table moved cannot be known."""
        self.entries.clear()
        self.size = 0
        self.largest = 0
        self.nameless = False
        self.table_size = MAX_TABLE

    def decode(self, block: bytes) -> Headers:
        """The fields of a block, as far as they can be known."""
        self.unknown = 0
        self.broken = False
        self.cut = False
        headers: Headers = []
        try:
            self.broken = not self._read(block, headers)
        except IndexError:  # behind the last byte: cheaper than to ask before each one
            self.broken = True
        if self.nameless:
            self.unknown = sum([name is UNKNOWN for name, _ in headers])
        if self.broken:
            self.bad_blocks += 1
            self.lose()
        if len(headers) > MAX_FIELDS or len(headers) * self.largest + 2 * len(block) > MAX_LIST:
            self._cut(headers)
        return headers

    def _read(self, block: bytes, headers: Headers) -> bool:
        pos = 0
        size = len(block)
        entries = self.entries
        known = known_strings
        while pos < size:
            first = block[pos]
            pos += 1
            if first >= 0x80:  # indexed field
                index = first & 0x7F
                if index == 0x7F:
                    index, pos = _integer(block, pos, 0x7F)
                if index <= STATIC_LAST:
                    if not index:
                        return False
                    headers.append(STATIC[index])
                elif index - STATIC_LAST <= len(entries):
                    headers.append(entries[STATIC_LAST - index])
                elif index > MAX_INDEX:
                    return False
                else:
                    self.unknown += 1
                    headers.append(_UNKNOWN_FIELD)
                continue
            if first >= 0x40:  # literal with incremental indexing
                insert = True
                index = first & 0x3F
                if index == 0x3F:
                    index, pos = _integer(block, pos, 0x3F)
            elif first >= 0x20:
                size_asked = first & 0x1F
                if size_asked == 0x1F:
                    size_asked, pos = _integer(block, pos, 0x1F)
                if headers or size_asked == _TOO_LARGE:
                    return False
                self._resize(size_asked)
                continue
            else:  # literal without indexing, or never indexed
                insert = False
                index = first & 0x0F
                if index == 0x0F:
                    index, pos = _integer(block, pos, 0x0F)
            if not index:
                length = block[pos]
                pos += 1
                coded = length >= 0x80
                length &= 0x7F
                if length == 0x7F:
                    length, pos = _integer(block, pos, 0x7F)
                if length > size - pos:
                    return False
                name = block[pos : pos + length]
                pos += length
                if coded:
                    string = known.get(name) or huffman_decode(name)
                    if string is None:
                        return False
                    name = string
            elif index <= STATIC_LAST:
                name = STATIC[index][0]
            elif index - STATIC_LAST <= len(entries):
                name = entries[STATIC_LAST - index][0]
            elif index > MAX_INDEX:
                return False
            else:
                self.unknown += 1
                name = UNKNOWN
            length = block[pos]
            pos += 1
            coded = length >= 0x80
            length &= 0x7F
            if length == 0x7F:
                length, pos = _integer(block, pos, 0x7F)
            if length > size - pos:
                return False
            value = block[pos : pos + length]
            pos += length
            if coded:
                string = known.get(value) or huffman_decode(value)
                if string is None:
                    return False
                value = string
            field = (name, value)
            headers.append(field)
            if insert:
                length = len(name) + len(value) + 32
                entries.append(field)
                if name is UNKNOWN:
                    self.nameless = True
                self.size += length
                if length > self.largest:  # noqa: PLR1730 - max() costs three times as much
                    self.largest = length
                if self.size > self.table_size:
                    self._evict()
        return True

    def _resize(self, size: int) -> None:
        if size > self.limit:
            self.oversize_updates += 1
        self.table_size = min(size, MAX_TABLE)
        self._evict()

    def _evict(self) -> None:
        entries = self.entries
        over = self.size - self.table_size
        count = 0
        while over > 0:
            name, value = entries[count]
            over -= len(name) + len(value) + 32
            count += 1
        self.size = self.table_size + over
        del entries[:count]

    def _cut(self, headers: Headers) -> None:
        room = MAX_LIST
        for count, (name, value) in enumerate(headers):
            room -= len(name) + len(value)
            if room < 0 or count == MAX_FIELDS:
                self.cut = True
                del headers[count:]
                return


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """The rest of an integer behind a full prefix of ``value``; (it, the position behind it)."""
    for shift in range(0, 7 * MAX_INTEGER_BYTES, 7):
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    return _TOO_LARGE, pos
