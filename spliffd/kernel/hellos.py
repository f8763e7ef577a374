"""How TLS connections began, as the packet programs keep it: struct hello of bpf/flows.h, read by cookie.

Takes the read-only fd of the ``hellos`` map; returns the first bytes of both directions as far as they are
there without a hole. Entries are made by the programs only; least recently used ones go first.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from spliffd.kernel import bpf

HELLO_ROOM = 3072
"""Bytes kept of each side."""
HELLO_SIZE = 6188

_SIDE_AT = 4
_SIDE = struct.Struct("=IIIII")
"""base, have, from, until, alert; the bytes follow."""
_SIDE_SIZE = _SIDE.size + HELLO_ROOM
assert _SIDE_AT + 2 * _SIDE_SIZE == HELLO_SIZE


class Hello(NamedTuple):
    """The beginning of one TLS connection, in the clear."""

    client: bytes
    """What the client has sent, from its ClientHello on: records of TLS."""
    server: bytes
    """What came back."""
    client_alert: int
    """The last alert in the clear that the client sent in a packet of its own: level << 8 | description;
    0: none."""
    server_alert: int
    sent: bool
    """Whether this end is the client."""


def unpack_hello(data: bytes | memoryview) -> Hello:
    """Decodes a struct hello; any HELLO_SIZE bytes give a result."""
    sides = []
    for at in (_SIDE_AT, _SIDE_AT + _SIDE_SIZE):
        _, have, _, _, alert = _SIDE.unpack_from(data, at)
        start = at + _SIDE.size
        sides.append((bytes(data[start : start + min(have, HELLO_ROOM)]), alert))
    return Hello(sides[0][0], sides[1][0], sides[0][1], sides[1][1], not data[0])


class HelloLookup:
    """Looks up how the connection of a socket began."""

    def __init__(self, fd: int) -> None:
        self._look = bpf.Lookup(fd, HELLO_SIZE)

    def __call__(self, cookie: int) -> Hello | None:
        """None where no ClientHello was seen, or it was evicted. Raises OSError where looking is refused."""
        return unpack_hello(self._look.value) if self._look(cookie) else None
