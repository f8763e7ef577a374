"""Durations, sizes and times: from what people type, and to what people read.

Takes text of options or plain numbers, returns numbers or short text. Raises ValueError with a
sentence for the operator. Clock times are rendered through a cache of one second, because a watcher
prints two of them for each exchange. Never reads a clock.
"""

from __future__ import annotations

import re
import time

NANOSECONDS = 1_000_000_000

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+)\s*([kKmMgG]?)(?:i?[bB])?")
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_duration(text: str) -> float:
    """Seconds of ``30``, ``30s``, ``500ms``, ``5m``, ``1h`` or ``1h30m``; more than zero."""
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        seconds = float(text)
    else:
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{text!r} is not a duration: write 30s, 5m, 1h or a number of seconds")
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError("a duration must be longer than zero")
    return seconds


def parse_size(text: str) -> int:
    """Bytes of ``4096``, ``64K`` or ``1M`` (powers of 1024); more than zero."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size: write 4096, 64K or 1M")
    size = int(match[1]) * _SIZE_UNITS[match[2].lower()]
    if size == 0:
        raise ValueError("a limit of 0 bytes shows no body: leave -b away instead")
    return size


def size(number: int) -> str:
    """``512 B``, ``1.2 KiB``, ``3.4 MiB``."""
    if number < 1024:
        return f"{number} B"
    value = float(number)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        # 1023.95 and above would round to "1024.0".
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def duration(nanoseconds: int) -> str:
    """``12 µs``, ``294.3 ms``, ``1.20 s``, ``2 min 5 s``: four significant digits at most."""
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1000:.0f} µs"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1_000_000:.1f} ms"
    seconds = nanoseconds / NANOSECONDS
    if seconds < 99.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def count(number: int, singular: str, plural: str = "") -> str:
    """``1 exchange``, ``1,234 exchanges``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


class Clock:
    """Renders nanoseconds since the epoch as local (or UTC) time of day with milliseconds."""

    def __init__(self, *, utc: bool = False) -> None:
        self._convert = time.gmtime if utc else time.localtime
        self._second = -1
        self._prefix = ""

    def time_of_day(self, time_ns: int) -> str:
        """``15:11:59.346``; a time that is not known (0) is ``--:--:--.---``."""
        if not time_ns:
            return "--:--:--.---"
        second, rest = divmod(time_ns, NANOSECONDS)
        if second != self._second:
            self._prefix = self._render(second, "%H:%M:%S")
            self._second = second
        return f"{self._prefix}.{rest // 1_000_000:03d}"

    def date_and_time(self, time_ns: int) -> str:
        """``2026-11-22 15:11:59``."""
        return self._render(time_ns // NANOSECONDS, "%Y-%m-%d %H:%M:%S")

    def _render(self, second: int, form: str) -> str:
        try:
            return time.strftime(form, self._convert(second))
        except (ValueError, OverflowError, OSError):
            # A time beyond what the C library can render comes from a broken daemon, not from the wire.
            return "??:??:??"
