"""Numbers of the statistics page: rates from the daemon's counters, with the last two minutes of each.

Takes the values of GetStats and the time of asking, returns rates. The correlation rates are those of the
dashboard: of the exchanges since the last look, those that are tied to a connection, and those of which a
packet hook saw the packets. Knows nothing of textual, reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

LENGTH = 120
"""Points kept of each series: two minutes at one a second, and as wide as most terminals."""

EXCHANGES = "spliff_exchanges_total"

SHARES = (("tied to a connection", 'method="NONE"'), ("seen on the wire", 'wire="NONE"'))
"""Correlation rates: name on the page, label of the exchanges that do not count."""

RATES = (
    ("exchanges/s", EXCHANGES),
    ("captured bytes/s", "spliff_captured_bytes_total"),
    ("lost/s", "spliff_lost_total"),
    ("cookie misses/s", "spliff_cookie_misses_total"),
    ("deferred successes/s", "spliff_deferred_successes_total"),
    ("deferred failures/s", "spliff_deferred_failures_total"),
    ("sleep cycles/s", "spliff_sleep_cycles_total"),
)
"""Name on the page, counter (all its labels are added up)."""


class Series:
    """One line of the page: its latest value and those before."""

    def __init__(self) -> None:
        self.points: deque[float] = deque(maxlen=LENGTH)
        self.latest: float | None = None
        """None: nothing is known yet, or there was nothing to take the rate of."""

    def add(self, value: float | None) -> None:
        """Adds a point; an unknown one repeats the last, so that the line stays where it was."""
        self.latest = value
        if value is None and not self.points:
            return
        self.points.append(self.points[-1] if value is None else value)


BARS = " ▁▂▃▄▅▆▇█"


def bars(points: list[float], width: int, top: float = 0.0) -> str:
    """The latest points as bars from 0 to ``top`` (0: the highest point); what is not 0 is seen."""
    shown = points[-width:] if width > 0 else []
    top = top or max(shown, default=0.0) or 1.0
    last = len(BARS) - 1
    return "".join(BARS[max(min(last, round(point / top * last)), int(point > 0))] for point in shown)


class Rates:
    """Series by name; feed it once a second."""

    def __init__(self) -> None:
        self.shares = {name: Series() for name, _ in SHARES}
        """Per cent."""
        self.rates = {name: Series() for name, _ in RATES}
        """A second."""
        self._before: dict[str, float] = {}
        self._since = 0.0

    def add(self, values: Mapping[str, float], now: float) -> None:
        """Takes the counters as they are at ``now`` (seconds, of any monotonic clock)."""
        sums = {counter: _sum(values, counter) for _, counter in RATES}
        sums |= {label: _sum(values, EXCHANGES, label) for _, label in SHARES}
        before, seconds = self._before, now - self._since
        self._before, self._since = sums, now
        # A counter that went back belongs to another run of the daemon.
        if not before or seconds <= 0 or any(sums[name] < before[name] for name in before):
            return
        grown = {name: sums[name] - before[name] for name in sums}
        for name, counter in RATES:
            self.rates[name].add(grown[counter] / seconds)
        exchanges = grown[EXCHANGES]
        for name, label in SHARES:
            self.shares[name].add(100 * (1 - grown[label] / exchanges) if exchanges else None)


def _sum(values: Mapping[str, float], name: str, label: str = "") -> float:
    """All series of a counter; with ``label`` those that have it."""
    return sum(value for key, value in values.items() if key.partition("{")[0] == name and label in key)
