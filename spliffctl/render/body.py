"""Bodies as lines of text, or as a hexdump when they are not text.

Takes a joined ``Body`` and its content type, returns lines ready to print, each indented so that no body
can pretend to be a line of the client's own. Text means: decodes as UTF-8 (or the charset that the
content type names, from a short list), holds no NUL and few control characters. Never cuts; a hole is
shown where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spliffctl.parts import Body
from spliffctl.render.colour import Palette
from spliffctl.render.quote import lines

INDENT = "    "

SAMPLE = 4096
"""Bytes looked at to tell text from data: enough for a header of any binary format."""

MAX_CONTROL_SHARE = 0.1
"""A text with more control characters than this (other than tab, CR, LF, ESC) is data."""

_CHARSETS = frozenset(
    (
        *("iso-8859-1", "iso-8859-15", "windows-1252", "utf-16", "utf-16le", "utf-16be"),
        *("koi8-r", "shift_jis", "euc-jp", "euc-kr", "gb18030", "big5"),
    )
)
"""Charsets that are decoded when a content type names them. A list, because the name comes from the
wire and Python's codecs hold more than charsets."""

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)

_CONTROLS = bytes(set(range(0x20)) - {0x09, 0x0A, 0x0D, 0x1B}) + b"\x7f"

_ASCII = bytes(code if 0x20 <= code < 0x7F else 0x2E for code in range(256))
"""Translation to what the right column of a hexdump shows: printable ASCII, else a dot."""


def encoding_of(data: bytes, content_type: str) -> str:
    """The encoding to decode a body with, or "" when it is not text."""
    named = _CHARSET.search(content_type)
    charset = named[1].lower() if named else "utf-8"
    if charset in _CHARSETS:
        return charset
    sample = data[:SAMPLE]
    if b"\0" in sample:
        return ""
    if len(sample) - len(sample.translate(None, _CONTROLS)) > MAX_CONTROL_SHARE * len(sample):
        return ""
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # The sample may end in the middle of a character, and a body that starts late may begin so.
        if error.start < len(sample) - 3:
            return ""
    return "utf-8"


def body_lines(body: Body, content_type: str, palette: Palette, *, hexdump: bool) -> Iterator[str]:
    """The lines of a body; none for an empty one."""
    encoding = "" if hexdump else encoding_of(body.data, content_type)
    holes = list(body.holes)
    for offset, data in body.segments:
        while holes and holes[0][0] < offset:
            yield hole_line(*holes.pop(0), palette)
        if encoding:
            # Bytes that do not decode become \xff and the like: visible, printable, not lost.
            for line in lines(data.decode(encoding, "backslashreplace")):
                yield INDENT + line
        else:
            yield from dump(data, offset)
    for hole in holes:
        yield hole_line(*hole, palette)


def dump(data: bytes, offset: int = 0) -> Iterator[str]:
    """A hexdump: offset, sixteen bytes in two groups, the same as ASCII."""
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = row.translate(_ASCII).decode("ascii")
        yield f"{INDENT}{offset + start:08x}  {left:<23}  {right:<23}  |{text}|"


def hole_line(offset: int, length: int, palette: Palette) -> str:
    """Says what is missing at its place."""
    return f"{INDENT}{palette.warning}… {length:,} bytes missing from offset {offset:,} …{palette.reset}"
