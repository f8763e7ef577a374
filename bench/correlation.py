"""How many exchanges are tied to their packets, against the load that is offered.

nginx in one network namespace, clients in another, the daemon in that of the clients, both ends in scope.
Keep-alive requests at steady rates, fresh clients as fast as they start, and wrk as fast as it goes. Counted
is what the daemon says of itself (``spliff_exchanges_total`` by hook), over all exchanges that it finished.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial

from bench.latency import CLIENT
from bench.report import Figure
from tests.support.lab import PYTHON, say, wait_for
from tests.support.servers import Nginx
from tests.support.thread import FAR, Stage, stage

RATES = (100, 1000)
"""Keep-alive requests a second."""

SECONDS = 4.0
FRESH = 211
CONNECTIONS = 64


def finished(golden: Stage) -> tuple[int, int]:
    """Exchanges so far: all, and those with packets."""
    everything = with_packets = 0
    for name, value in golden.daemon.stats().items():
        if wire := re.fullmatch(r'spliff_exchanges_total\{.*wire="(\w+)"\}', name):
            everything += int(value)
            with_packets += int(value) if wire[1] != "NONE" else 0
    return everything, with_packets


def settled(golden: Stage) -> None:
    """Until nothing is under way any more."""
    last = (-1, -1)
    while (now := finished(golden)) != last:
        last = now
        time.sleep(0.3)
    wait_for(lambda: golden.daemon.stats()["spliff_deferred_pending"] == 0, 10, "an empty retry queue")


def steady(golden: Stage, server: Nginx, rate: int) -> None:
    """One keep-alive connection."""
    namespaced = CLIENT.replace('"127.0.0.1"', f'"{FAR}"').replace("/reply.txt", "/hello")
    done = golden.lab.run(
        *golden.near.enter(PYTHON, "-c", namespaced, str(server.port), str(rate), str(SECONDS))
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())


def limit(golden: Stage, server: Nginx) -> None:
    """As many as both ends and the daemon can do together on this machine."""
    wrk = ("wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS:g}s", server.url(host=FAR))
    done = golden.lab.run(*golden.near.enter(*wrk))
    if done.returncode:
        raise RuntimeError(done.stdout.decode())


def measure() -> list[Figure]:
    """One daemon for all loads."""
    rows: list[Figure] = []
    part = "correlation: exchanges tied to their packets, both ends, over a veth pair"
    with stage("bench-thread") as golden:
        golden.start("[capture]\nunwatched_rate = 0\n")
        server = golden.serve(workers=2)
        golden.daemon.wait_attached()
        loads: dict[str, Callable[[], object]] = {
            **{f"{rate:,} requests/s, keep-alive": partial(steady, golden, server, rate) for rate in RATES},
            f"{FRESH} fresh curls, four at a time": lambda: golden.fetch_each(
                FRESH, server.url("/hello?{n}", FAR)
            ),
            f"wrk, {CONNECTIONS} connections, as fast as it goes": lambda: limit(golden, server),
        }
        for name, load in loads.items():
            settled(golden)
            before, was_deferred = finished(golden), golden.daemon.stats()["spliff_deferred_successes_total"]
            began = time.monotonic()
            load()
            took = time.monotonic() - began
            settled(golden)
            total, tied = (after - earlier for after, earlier in zip(finished(golden), before, strict=True))
            deferred = golden.daemon.stats()["spliff_deferred_successes_total"] - was_deferred
            share = 100 * tied / max(1, total)
            say(f"   {name}: {share:.3f} % of {total:,}")
            note = (
                f"{total:,} exchanges, {total / took:,.0f}/s offered; {deferred:,.0f} of them waited for it"
            )
            rows.append(Figure(part, name, share, "%", target=">= 99.9", note=note))
    return rows
