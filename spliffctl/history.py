"""Options that reach into the daemon's history, shared by ``watch`` and ``list``.

Takes what the operator typed; returns nanoseconds since the epoch, with the clock that the command read.
Raises usage errors with a sentence.
"""

from __future__ import annotations

import datetime as dt

from spliffctl import filters, units

LAST = filters.Number("N", 1, 100_000)


class Since(filters.Checked):
    """``5m`` before now, or a local date and time."""

    def check(self, text: str) -> float | dt.datetime:
        """Seconds before now, or the time."""
        try:
            return units.parse_duration(text)
        except ValueError:
            pass
        try:
            return dt.datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is no time: write 5m (ago), 1h30m or 2026-11-22T15:04") from None


SINCE = Since("TIME")


def since_ns(since: float | dt.datetime | None, now_ns: int) -> int:
    """Nanoseconds since the epoch; 0 for None."""
    if since is None:
        return 0
    if isinstance(since, dt.datetime):
        return max(1, int(since.timestamp() * units.NANOSECONDS))
    return max(1, now_ns - int(since * units.NANOSECONDS))
