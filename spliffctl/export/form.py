"""What a file format has to give, and which formats there are.

A format takes items of the stream in the order in which they come and returns the bytes that each adds to
the file, so memory stays bounded however long a capture is. ``head`` begins a file (also after a rotation,
so it forgets everything that only the file before knew), ``end`` gives what was held back, ``tail`` closes
the file. The writer puts the tail behind whatever is there and overwrites it with the next items: a file is
whole after every batch. Formats do no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb


class Form(Protocol):
    """A file format. Each method returns the bytes to append, which may be none."""

    binary: bool
    """Whether a terminal must not get it."""

    def head(self) -> bytes:
        """Begins a new file."""

    def exchange(self, exchange: pb.Exchange, bodies: tuple[Body, Body]) -> bytes:
        """A finished exchange."""

    def handshake(self, handshake: pb.Handshake) -> bytes:
        """A TLS handshake."""

    def message(self, message: pb.Message) -> bytes:
        """A WebSocket message."""

    def chunk(self, chunk: pb.Chunk) -> bytes:
        """Bytes of a protocol that is not taken apart."""

    def loss(self, loss: pb.Loss) -> bytes:
        """Something was lost."""

    def end(self) -> bytes:
        """What was held back, before the file ends."""

    def tail(self) -> bytes:
        """Closes the file; may be asked for at any time, and changes nothing."""

    def left_out(self) -> dict[str, int]:
        """What the format has no place for, as a sentence's subject with its number; since the start."""


def make(name: str) -> Form:
    """The format of that name."""
    return FORMS[name]()


def _har() -> Form:
    from spliffctl.export.har import Har

    return Har()


def _pcapng() -> Form:
    from spliffctl.export.pcapng import Pcapng

    return Pcapng()


def _mitmproxy() -> Form:
    from spliffctl.export.mitmproxy import Mitmproxy

    return Mitmproxy()


FORMS: dict[str, Callable[[], Form]] = {"har": _har, "pcapng": _pcapng, "mitmproxy": _mitmproxy}
"""Formats by name; each module is imported when it is used."""

SUFFIXES = {
    ".har": "har",
    ".pcapng": "pcapng",
    ".mitm": "mitmproxy",
    ".flow": "mitmproxy",
    ".flows": "mitmproxy",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
"""What a file's name says about its format, when -o does not."""
