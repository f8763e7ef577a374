"""The field lines of an HTTP/1.1 head as one block, known again when they come again.

Takes the field lines as they came; returns a ``Block``: what frames the body, and room for what others make
of the lines. A program sends the same fields again and again, and a server answers with them, so for most
heads one look-up is all that they cost. A pure function, and a bounded table of blocks met before.
"""

from __future__ import annotations

from typing import Any, Final

from spliffd.protocols.http1_fields import scan_framing

MAX_BLOCKS: Final = 1024
"""Blocks remembered. With what is made of them, MAX_BLOCK keeps all below 5 MiB; usual ones take 1 MiB."""
MAX_BLOCK: Final = 1024
MISSES: Final = 64
PAUSE: Final = 4096
"""After so many blocks in a row that were not among them, so many are not looked for: where all heads differ,
to remember them costs a twentieth of an exchange."""


class Block:
    """Field lines, each but the last with its LF, not yet read for more than what frames the body."""

    __slots__ = ("content", "encoded", "encoder", "framing", "lines", "message", "message_of", "repeats")

    def __init__(self, lines: bytes, framing: int) -> None:
        self.lines = lines
        self.framing = framing
        """As of ``scan_framing``."""
        self.repeats = False
        """Whether it was met before: then it may pay to remember more of its messages."""
        self.content: tuple[str, str] | None = None
        """Content-Type and Content-Encoding, once somebody has looked for them."""
        self.encoder: Any = None
        """Who serialised the lines last, and what that gave: the engine's own."""
        self.encoded: tuple[bytes, str] | None = None
        self.message_of: tuple[int | str, ...] = ()
        """What the last message with these lines was besides, and what that gave: the engine's own, too."""
        self.message = b""


_known: Final[dict[bytes, Block]] = {}
_misses = 0
_pause = 0


def block_of(data: bytes, newline: int, end: int) -> Block:
    """The block of the lines between the LF at ``newline`` and the one at ``end``, where there are any.

    Maybe one that was met before, so it must not be changed but in its room.
    """
    global _misses, _pause
    lines = data[newline + 1 : end] if newline < end else b""
    if _pause or end == newline + 1:  # one empty line is not the same as none
        _pause -= _pause > 0
        return Block(lines, scan_framing(data, newline, end + 1))
    block = _known.get(lines)
    if block is not None:
        _misses = 0
        block.repeats = True
        return block
    block = Block(lines, scan_framing(data, newline, end + 1))
    if len(lines) <= MAX_BLOCK:
        _misses += 1
        if _misses > MISSES:
            _misses, _pause = 0, PAUSE
        if len(_known) >= MAX_BLOCKS:
            _known.clear()  # cheaper than keeping their order: what is in use is back at once
        _known[lines] = block
    return block
