"""Colours as strings to put around text: SGR sequences, or nothing.

Takes the decision (``wanted``), returns a ``Palette`` whose members are escape sequences or "".
Hand-written, because rich needs 66 microseconds for a line and this 0.3. The only place of the client
from which an escape character may come.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Palette:
    """Escape sequences by meaning; all empty when there are no colours."""

    reset: str = ""
    request: str = ""
    response: str = ""
    method: str = ""
    faint: str = ""
    good: str = ""
    moved: str = ""
    client_error: str = ""
    server_error: str = ""
    warning: str = ""
    loss: str = ""

    def status(self, status: int) -> str:
        """The colour of a response status."""
        if status < 300:
            return self.good
        if status < 400:
            return self.moved
        return self.client_error if status < 500 else self.server_error


PLAIN = Palette()
COLOURS = Palette(
    reset="\x1b[0m",
    request="\x1b[36m",
    response="\x1b[34m",
    method="\x1b[1m",
    faint="\x1b[2m",
    good="\x1b[32m",
    moved="\x1b[36m",
    client_error="\x1b[33m",
    server_error="\x1b[31m",
    warning="\x1b[33m",
    loss="\x1b[1;31m",
)


def wanted(choice: str, fd: int) -> bool:
    """Whether to colour what goes to ``fd``: ``choice`` is always, never or auto.

    auto: only on a terminal that is not dumb, and not when NO_COLOR is set and not empty
    (no-color.org).
    """
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return os.isatty(fd)


def palette(choice: str, fd: int) -> Palette:
    """The palette for what goes to ``fd``."""
    return COLOURS if wanted(choice, fd) else PLAIN
