"""The ring grows for bodies and shrinks again under the traffic that goes through it, and nothing is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.http_programs import HttpServer, http_client
from tests.support.lab import Lab, say, wait_for
from tests.support.shared import lab_of_the_file

MIB = 1 << 20
REQUESTS = 1009


lab = lab_of_the_file("rings")


def resident(daemon: Daemon) -> int:
    """MiB of the worker's memory, its ring included."""
    (worker,) = [pid for name, pid in daemon.pids().items() if name.startswith("worker")]
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * 4096 // MIB


def test_the_ring_is_swapped_under_traffic_and_nothing_is_lost(lab: Lab):
    daemon = Daemon(lab)
    server = HttpServer(lab)
    daemon.wait_attached()
    heads = daemon.watch()
    small = resident(daemon)
    stop = threading.Event()
    made = [0]

    def traffic() -> None:
        while not stop.is_set():
            paths = [{"path": f"/down?seed=1&size=997&total=1994&n={made[0] + n}"} for n in range(REQUESTS)]
            http_client(lab, server.port, paths)
            made[0] += REQUESTS
            heads.wait_for(2 * made[0])  # or this watcher's queue would fill: it shares the processors

    thread = threading.Thread(target=traffic)
    thread.start()
    time.sleep(0.3)
    bodies = daemon.watch(bodies=True)
    wait_for(lambda: resident(daemon) > small + 100, 30, "a large ring")
    large = resident(daemon)
    time.sleep(0.3)
    bodies.stop()
    wait_for(lambda: resident(daemon) < small + 32, 30, "the large ring given back")
    time.sleep(0.3)
    stop.set()
    thread.join()
    heads.wait_for(2 * made[0])
    heads.settle(0.2)

    assert large > small + 100
    assert heads.losses == []
    for role in ("client", "server"):
        seen = [
            int(one.request.path.partition("&n=")[2])
            for one in heads.exchanges
            if one.connection.role == role
        ]
        assert seen == list(range(made[0])), role
    assert {one.completeness.state for one in heads.exchanges} == {"complete"}
    say(
        f"worker {small} -> {large} -> {resident(daemon)} MiB while {made[0]:,} requests passed, all seen in order"
    )
    heads.stop()
    daemon.stop()
