"""What the kernel could not hand over, told in-band by one worker.

Takes the kernel's counters; gives what was lost since the last look, with the time between the looks. Tells
nothing twice, and knows nothing of who is told.
"""

from __future__ import annotations

import time
from typing import Final

from spliffd.counters import Region

_LOST: Final = (
    ("ring", "ring_full", "ring_full_data_records", "ring_full_data_bytes"),
    ("ring", "control_ring_full", "ring_full_control", ""),
    ("kernel", "fault", "fault_records", ""),
    ("kernel", "overload", "shed_exchanges", ""),
)
"""Stage and reason of a loss, and the counters of what never reached the ring: how much, how many bytes."""

_COUNTERS: Final = tuple(name for loss in _LOST for name in loss[2:] if name)

Loss = tuple[str, str, int, int, int, int]
"""Stage, reason, count, bytes, and between which times (ns since the epoch)."""


class KernelLosses:
    """Losses from now on."""

    def __init__(self, kernel: Region) -> None:
        self._kernel = kernel
        self._before = self._values()
        self._looked_ns = time.time_ns()

    def _values(self) -> list[int]:
        kernel = self._kernel
        return [kernel.get(name) for name in _COUNTERS]

    def look(self) -> list[Loss]:
        """Those since the last look."""
        values, now = self._values(), time.time_ns()
        found: list[Loss] = []
        if values != self._before:
            lost = {
                name: after - before
                for name, after, before in zip(_COUNTERS, values, self._before, strict=True)
            }
            self._before = values
            for stage, reason, counter, size in _LOST:
                if lost[counter]:
                    found.append((stage, reason, lost[counter], lost.get(size, 0), self._looked_ns, now))
        self._looked_ns = now
        return found
