"""Field lines as the parser finds them in a head."""

from __future__ import annotations

from spliffd.protocols.http1_block import PAUSE, Block, block_of


def block_of_lines(lines: bytes) -> Block:
    """The block of these lines below a first line."""
    head = b"GET / HTTP/1.1\r\n" + lines + (b"\n" if lines else b"")
    return block_of(head, head.index(b"\n"), len(head) - 1)


def look_for_blocks() -> None:
    """Ends the pause that blocks without a repetition, of any test before, have begun."""
    for _ in range(PAUSE + 2):
        found = block_of_lines(b"X: again")
        if found.repeats:
            return
    raise AssertionError("no block is remembered")
