"""Field lines as the parser finds them in a head."""

from __future__ import annotations

from spliffd.protocols.http1_block import Block, block_of


def block_of_lines(lines: bytes) -> Block:
    """The block of these lines below a first line."""
    head = b"GET / HTTP/1.1\r\n" + lines + (b"\n" if lines else b"")
    return block_of(head, head.index(b"\n"), len(head) - 1)
