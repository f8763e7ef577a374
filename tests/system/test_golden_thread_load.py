"""K1 and K3 at the machine's limit: exchanges keep their packets, and the worker neither sleeps nor hides it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon
from tests.support.lab import wait_for
from tests.support.thread import FAR, Stage, say, stage

pytestmark = pytest.mark.quiet

SECONDS = int(os.environ.get("THREAD_LOAD_SECONDS", "6"))
CONNECTIONS = 31
FROZEN_SECONDS = 0.7
BEHIND = 4001
"""Records that the worker is behind by, at least, when it goes on: 62 full iterations."""


@pytest.fixture
def golden() -> Iterator[Stage]:
    with stage("load") as made:
        yield made


def of_worker(stats: dict[str, float], name: str) -> int:
    return int(stats[f'spliff_{name}_total{{worker="0"}}'])


def by_wire(stats: dict[str, float]) -> dict[str, int]:
    """Exchanges so far, by the hook that saw their packets."""
    found: dict[str, int] = {}
    for name, value in stats.items():
        if (wire := re.fullmatch(r'spliff_exchanges_total\{.*wire="(\w+)"\}', name)) and value:
            found[wire[1]] = found.get(wire[1], 0) + int(value)
    return found


def verdict(daemon: Daemon) -> str:
    text = daemon.stub().GetStats(pb.GetStatsRequest()).text
    return next(line for line in text.splitlines() if "worker 0:" in line).strip()


def test_at_the_machines_limit(golden: Stage):
    daemon = golden.start("[capture]\nunwatched_rate = 0\n")  # every exchange is taken apart
    server = golden.serve(workers=2)
    daemon.wait_attached()
    golden.fetch(server.url(host=FAR))
    idle_verdict = verdict(daemon)
    before = by_wire(daemon.stats())
    worker = daemon.pids()["worker 0"]
    wrk = golden.lab.start(
        *golden.near.enter("wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}s", server.url(host=FAR)),
        stdout=subprocess.PIPE,
    )
    time.sleep(SECONDS / 2)

    # Behind for sure: it stood still while the load went on.
    os.kill(worker, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    then = daemon.stats()
    os.kill(worker, signal.SIGCONT)
    wait_for(
        lambda: of_worker(daemon.stats(), "records") >= of_worker(then, "records") + BEHIND // 2, 5, "records"
    )
    now = daemon.stats()
    sleeps, busy, records = (
        of_worker(now, name) - of_worker(then, name) for name in ("sleep_cycles", "busy_polls", "records")
    )
    assert wrk.stdout is not None
    said = wrk.stdout.read().decode()
    assert wrk.wait(30) == 0, said
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None, said
    wait_for(lambda: daemon.stats()["spliff_deferred_pending"] == 0, 10, "an empty retry queue")
    time.sleep(0.3)

    stats = daemon.stats()
    seen = {wire: count - before.get(wire, 0) for wire, count in by_wire(stats).items()}
    total = sum(seen.values())
    share = seen["TC"] / total
    say(
        f"wrk at {float(rate[1]):,.0f} requests/s: {seen['TC']:,} of {total:,} exchanges with packets ({share:.4%}); "
        f"deferred {stats['spliff_deferred_successes_total']:.0f}, failed "
        f"{stats['spliff_deferred_failures_total']:.0f}; behind by a backlog: {records:,} records, {busy} busy polls, "
        f"{sleeps} sleep cycles; {idle_verdict} -> {verdict(daemon)}"
    )
    assert share >= 0.999
    assert total > 1_000 * SECONDS
    assert records >= BEHIND // 2
    assert (sleeps, busy >= records // 64 - 2) == (0, True)
    assert "Good (adaptive polling, " in idle_verdict
    assert "High load (" in verdict(daemon)
