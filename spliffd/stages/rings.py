"""Rings that fit what is wanted: small for heads, large while somebody watches bodies.

Takes what each worker says of its watchers; makes rings and puts them into the kernel's table, returns the
new ring's fd for the worker. Bodies come at the speed of memory, in bursts as long as the file: a ring that
holds a whole transfer at both ends does not depend on who gets a processor core when. Heads alone need a
tenth of that, and memory that nobody needs is not held.

When ``swap`` returns, no program writes into the old ring any more (the kernel's update of a table of maps
waits for those that run), so the worker reads the old ring to its end and goes on with the new one: nothing
is lost, and the order holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from spliffd.config import Capture
from spliffd.journal import logger
from spliffd.kernel.maps import Maps

log = logger("rings")

SHRINK_SECONDS = 10.0
"""How long a large ring stays after the last watcher of bodies left: who looks again finds it there."""


class Rings:
    """The rings of all workers; ``give`` hands a worker its new ring (number, size in bytes)."""

    def __init__(self, maps: Maps, capture: Capture, give: Callable[[int, int], None]) -> None:
        self._maps = maps
        self._small = capture.ring_mib << 20
        self._large = max(capture.ring_mib, capture.body_ring_mib) << 20
        self._give = give
        self._shrinking: dict[int, asyncio.TimerHandle] = {}

    def wanted(self, number: int, *, bodies: bool) -> None:
        """Worker ``number`` has watchers of bodies, or has none (any more)."""
        timer = self._shrinking.pop(number, None)
        if timer is not None:
            timer.cancel()
        if bodies:
            self._resize(number, self._large)
        elif self._maps.ring_sizes[number] != self._small:
            loop = asyncio.get_running_loop()
            self._shrinking[number] = loop.call_later(SHRINK_SECONDS, self._shrink, number)

    def _shrink(self, number: int) -> None:
        del self._shrinking[number]
        self._resize(number, self._small)

    def _resize(self, number: int, size: int) -> None:
        if self._maps.ring_sizes[number] == size:
            return
        try:
            self._maps.swap_ring(number, size)
        except OSError as error:
            log.warning(
                "no larger ring, bodies may be lost (and told)",
                ring_mib=size >> 20,
                error=error.strerror,
                remedy="free memory, or lower capture.body_ring_mib",
            )
            return
        self._give(number, size)
