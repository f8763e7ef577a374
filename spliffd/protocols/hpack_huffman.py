"""Huffman-coded strings of HPACK (RFC 7541 section 5.2), decoded a byte at a time.

Takes the coded bytes of one string; returns the string, or None where they are no valid coding. Never raises.

A walk through the tree takes eight steps a byte. What a byte does from an inner node (which symbols it gives,
at which node it ends) is always the XX
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.hpack_tables import EOS, huffman_codes

MAX_REMEMBERED: Final = 8192
"""Strings remembered. When they are that many, all are forgotten: a flood of new ones costs time, no room."""
MAX_REMEMBERED_SIZE: Final = 64
"""Longest coded string remembered: with the result at most 250 bytes, so 2 MiB in all."""

known_strings: Final[dict[bytes, bytes]] = {}
"""Coded string to string. Readers may look up here before they call ``decode``."""


class Node:
    """An inner node of the tree: the beginnings of codes that lead to it are read, what follows is open."""

    __slots__ = ("branches", "ends", "steps")

    def __init__(self) -> None:
        self.branches: list[Node | int] = [-1, -1]
        """What follows on 0 and on 1: a node or a symbol."""
        self.steps: list[tuple[Node, bytes] | None] = []
        """By byte, once worked out: the node it ends at, and the symbols on the way."""
        self.ends = False
        """Whether a string may end here: behind nothing, or behind one to seven bits of 1 (RFC 7541, 5.2)."""


def _build_tree() -> Node:
    root = Node()
    for symbol, (code, length) in huffman_codes().items():
        node = root
        for bit in range(length - 1, 0, -1):
            side = code >> bit & 1
            following = node.branches[side]
            if isinstance(following, int):
                following = node.branches[side] = Node()
            node = following
        node.branches[code & 1] = symbol
    node = root
    for _ in range(8):
        node.ends = True
        following = node.branches[1]
        assert isinstance(following, Node)
        node = following
    return root


_root: Final = _build_tree()
_root.steps = [None] * 256


def _step(node: Node, byte: int) -> tuple[Node, bytes] | None:
    """What a byte does from ``node``; None where it completes EOS, which no string may contain."""
    symbols = bytearray()
    end = node
    for bit in range(7, -1, -1):
        following = end.branches[byte >> bit & 1]
        if isinstance(following, Node):
            end = following
        elif following == EOS:
            return None
        else:
            symbols.append(following)
            end = _root
    if not end.steps:
        end.steps = [None] * 256
    step = node.steps[byte] = (end, bytes(symbols))
    return step


def decode(coded: bytes) -> bytes | None:
    """The string that ``coded`` stands for; None where it contains EOS or ends in anything but padding."""
    known = known_strings.get(coded)
    if known is not None:
        return known
    node = _root
    parts: list[bytes] = []
    for byte in coded:
        step = node.steps[byte] or _step(node, byte)
        if step is None:
            return None
        node, part = step
        parts.append(part)
    if not node.ends:
        return None
    result = b"".join(parts)
    if len(coded) <= MAX_REMEMBERED_SIZE:
        if len(known_strings) >= MAX_REMEMBERED:
            known_strings.clear()
        known_strings[coded] = result
    return result
