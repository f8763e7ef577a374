"""Faults that tests switch on in a worker: flow information that comes late, or never.

Takes a way to look flows up and gives another that finds nothing until a while after a socket was first
asked for. Without it tests of the retry queue would wait for luck: the packet programs are nearly always
faster than the worker. Never active unless ``FLOW_DELAY`` stands in the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spliffd.correlation.flows import Look
from spliffd.correlation.retry import NEVER
from spliffd.errors import UsageError
from spliffd.kernel.flows import Hop

FLOW_DELAY: Final = "SPLIFF_FAULT_FLOW_DELAY_MS"
"""Milliseconds, or "never"."""

MAX_SOCKETS: Final = 65536
"""Sockets remembered; a test has fewer. Beyond it the oldest are late once more."""


def flow_delay(text: str) -> int:
    """The delay in ns; raises UsageError."""
    if text == "never":
        return NEVER
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f'{FLOW_DELAY} is "{text}"', 'use milliseconds, or "never"; unset it outside of tests'
        )
    return int(text) * 1_000_000


def late(look: Look, delay_ns: int, clock: Callable[[], int]) -> tuple[Look, Look]:
    """``look``, but each socket's flow is found only ``delay_ns`` after it was first asked for.

    The second function finds what the first has found, and does not count as asking: handshakes look, too,
    at a time that would make the exchange's own look a late one by chance.
    """
    asked: dict[int, int] = {}

    def look_late(cookie: int) -> tuple[Hop, ...]:
        now = clock()
        first = asked.get(cookie)
        if first is None:
            if len(asked) >= MAX_SOCKETS:
                del asked[next(iter(asked))]
            first = asked[cookie] = now
        return look(cookie) if now - first >= delay_ns else ()

    def glance_late(cookie: int) -> tuple[Hop, ...]:
        return look_late(cookie) if cookie in asked else ()

    return look_late, glance_late
