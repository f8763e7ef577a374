"""K1, the timing race: the first request of every fresh process has its packets, and so has all load.

Where flow information comes late, exchanges wait for it and are told as deferred; where it never comes they
are delivered without it in 50 ms. The fault switch of the worker makes both happen on a host that is never
late by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.thread import Expected, Stage, check, say, share, stage

FRESH = int(os.environ.get("FRESH", "1009"))
LATE = 211
NEVER = 53
KEPT_ALIVE = 11
DELIVERY_MS = 50
"""From the last byte of a response to the watcher, when its packets are never found."""


@pytest.fixture
def golden() -> Iterator[Stage]:
    with stage("first") as made:
        yield made


def deferred(stats: dict[str, float]) -> tuple[float, float, float]:
    return (
        stats["spliff_deferred_successes_total"],
        stats["spliff_deferred_failures_total"],
        stats["spliff_deferred_pending"],
    )


def test_every_fresh_process_has_its_packets(golden: Stage):
    golden.start()
    server = golden.serve("10.91.0.2")
    golden.daemon.wait_attached()
    watch = golden.daemon.watch()
    clients = golden.fetch_each(FRESH, server.url("/hello?n={n}"))
    watch.wait_for(2 * FRESH)
    watch.settle(0.3)
    stats = golden.daemon.stats()
    successes, failures, pending = deferred(stats)

    tally = check(watch.exchanges, clients, Expected())
    say(
        f"{FRESH:,} fresh curls, first requests: {share(watch, 2 * FRESH)}, clients {tally['client']:,}, servers "
        f"{tally['server']:,}; deferred {successes:.0f}, failed {failures:.0f}, "
        f"cookie misses {stats['spliff_cookie_misses_total']:.0f}"
    )
    assert watch.losses == []
    assert (failures, pending) == (0, 0)
    assert len(watch.exchanges) == 2 * FRESH
