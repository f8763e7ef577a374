"""How long the worker rests between two passes over its ring.

Takes how far the ring was drained, and whether anybody watches; returns seconds. Watchers are served within
a fraction of the latency that they are promised. Most of what a pass costs it costs once, however many
records it finds: so rests are longer while much comes, and while nobody watches, when nothing has to be there
at once. Reads no clock.
"""

from __future__ import annotations

REST_SECONDS = 0.002
"""Pause between passes while somebody watches: a quarter of the latency target, 500 passes a second."""

BUSY_SECONDS = 0.008
BUSY_BYTES = 64 << 10
"""The same while as much as this comes between two passes: from some 13,000 exchanges/s of 1 KiB on, until
fewer than 3,000 come. Nobody reads as fast, and of what the daemon costs at 30,000/s this saves a tenth."""

UNWATCHED_SECONDS = 0.05
"""The same while nobody watches and little comes: much sooner than metrics are scraped, and in time for every
table that is looked into (closed connections stay for 10 s). A pass finds its code and tables out of the
processor's caches: 0.6 ms for what a busy worker does in 0.1."""

LITTLE_SHARE = 16
"""Part of the ring that may fill between two passes for traffic to be called little. When that much waits, a
rest that is longer than ``REST_SECONDS`` is over."""


def much(size: int) -> int:
    """Bytes in a ring of ``size`` that end a long rest."""
    return size // LITTLE_SHARE


class Rests:
    """The rests of one worker."""

    def __init__(self) -> None:
        self._drained = 0

    def seconds(self, drained: int, size: int, *, watched: bool) -> float:
        """Until the next pass; ``drained`` is a position in a ring of ``size`` bytes."""
        before, self._drained = self._drained, drained
        came = drained - before  # below 0 in a ring that is new
        if not watched and came < size // LITTLE_SHARE:
            return UNWATCHED_SECONDS
        return BUSY_SECONDS if came >= BUSY_BYTES else REST_SECONDS
