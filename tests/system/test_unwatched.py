"""While nobody watches the worker rests for long: what comes meanwhile is counted, kept, and nobody else's."""

from __future__ import annotations

import time
from pathlib import Path

from spliffd.worker.rests import UNWATCHED_SECONDS
from tests.support.daemon import Daemon
from tests.support.keepalive import KeepAlive
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx

ROUNDS = 53
SECONDS = 3


def seen(daemon: Daemon) -> int:
    return int(sum(n for key, n in daemon.stats().items() if key.startswith("spliff_exchanges_total")))


def test_whoever_begins_to_watch_sees_what_comes_from_then_on(lab: Lab, daemon: Daemon, server: Nginx):
    client = KeepAlive(lab, None, "127.0.0.1", server.port)
    for number in range(ROUNDS):
        client.ask(f"/hello?before={number}")
        watch = daemon.watch()
        client.ask(f"/hello?n={number}")
        watch.wait_for(2)
        watch.stop()
        paths = [one.request.path for one in watch.exchanges]
        assert paths == [f"/hello?n={number}"] * 2
        assert not watch.losses
    wait_for(lambda: seen(daemon) == 4 * ROUNDS, 30, "all of them")
    client.close()


def test_a_worker_that_nobody_waits_for_wakes_up_seldom(lab: Lab, daemon: Daemon, server: Nginx):
    client = KeepAlive(lab, None, "127.0.0.1", server.port)
    status = Path(f"/proc/{daemon.pids()['worker 0']}/status")

    def slept() -> int:
        return int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    before, began, asked = slept(), time.monotonic(), 0
    # A slow machine needs longer for so many.
    while time.monotonic() - began < SECONDS or asked <= 100 * SECONDS:
        client.ask("/hello")
        asked += 1
        time.sleep(0.001)
    times, seconds = slept() - before, time.monotonic() - began
    print(f"{asked} exchanges in {seconds:.1f} s, the worker slept {times} times")
    assert times < 2 * seconds / UNWATCHED_SECONDS
    client.close()
