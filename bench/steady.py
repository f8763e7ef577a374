"""What one more watcher costs the whole daemon, at 5,000 exchanges a second of real traffic.

h2load asks nginx for different paths at two hosts, 2,500 requests a second at a steady pace, over HTTP/1.1
and TLS; both ends are in the lab, so spliff sees each request twice: 5,000 exchanges. Supervisor, worker and
api are the real ones, with memory history as by default. Every watcher has another filter, each of which lets
most through, so that what is measured is more than refusing. Watchers read bytes and take nothing apart
meanwhile; their CPU, nginx's and the load's are not the daemon's and are not counted.

Returns figures; part of ``python -m bench watchers``. Fails when the rate was not reached or
anything was lost.
"""

from __future__ import annotations

import re
import subprocess
import time

from bench import watchers
from bench.report import Figure
from bench.watched import Watched
from bench.web import Web
from spliffd.pb import spliff_pb2 as pb
from tests.support.lab import Lab, say

REQUESTS = 2_500
"""A second, each seen at both ends."""
SECONDS = 5
CLIENTS = 10
"""Connections to each host."""
HOSTS = ("127.0.0.1", "localhost")
PATHS = ("/reply.txt", "/hello?x=1", "/missing?x=2", "/moved", "/hello?x=3")
REACHED = 0.95
"""Share of the rate that must be reached: h2load's clocks start one after the other."""
COUNTS = (1, 2, 4, 8, 16)


def filters(count: int) -> list[pb.Filter]:
    """Another filter for each watcher: names and globs, statuses, and expressions that need the message."""
    made = []
    for n in range(count):
        kind = n % 4
        if kind == 0:
            made.append(
                pb.Filter(comms=["nginx", "h2load"], statuses=[pb.StatusRange(first=200, last=302 + n)])
            )
        elif kind == 1:
            made.append(
                pb.Filter(paths=["/reply.*", "/hello*", f"/missing?x={n}"], hosts=["localhost", "127.*"])
            )
        elif kind == 2:
            made.append(pb.Filter(expression=f"response.status < {400 + n} && duration_ns >= 0ms"))
        else:
            made.append(
                pb.Filter(
                    expression=f"request.path.matches('^/[h-r]e[a-p]l') && size(request.headers) < {n}0"
                )
            )
    return made


def run(daemon: Watched, web: Web, count: int) -> tuple[float, float, int]:
    """(us of the daemon's CPU for each exchange, exchanges a second, exchanges delivered)."""
    readers = watchers.Watchers.start(daemon.socket, filters(count))
    readers.ready.wait()
    daemon.settle()
    before, began = daemon.reading(), time.monotonic()
    loads = [daemon.lab.start(*command(web, host), stdout=subprocess.PIPE) for host in HOSTS]
    texts = [load.communicate(timeout=60)[0].decode() for load in loads]
    took = time.monotonic() - began
    daemon.settle()
    spent = daemon.reading().since(before)
    delivered, lost = readers.stop()
    expected = REQUESTS * SECONDS * 2
    done = sum(int(number) for text in texts for number in re.findall(r"(\d+) done", text))
    if done * 2 != expected or spent.exchanges != expected or lost or spent.losses:
        told = f"{done:,} requests, {spent.exchanges:,} exchanges, {lost} losses told, lost {spent.told()}"
        raise RuntimeError(f"{count} watchers, {expected:,} exchanges expected: {told}")
    rate = expected / took
    if rate < REACHED * REQUESTS * 2:
        raise RuntimeError(f"{count} watchers: only {rate:,.0f} exchanges/s were reached")
    return spent.cpu_ns / 1000 / spent.exchanges, rate, delivered


def command(web: Web, host: str) -> list[str]:
    """A load of half the requests."""
    share = REQUESTS // len(HOSTS)
    return [
        "h2load", "--h1", f"--requests={share * SECONDS}", f"--clients={CLIENTS}", "--threads=1",
        f"--rps={share / CLIENTS:g}", *(web.server.url(path, host) for path in PATHS),
    ]  # fmt: skip


def measure() -> list[Figure]:
    """Each number of watchers, and what one more costs."""
    part = f"watchers: the whole daemon's CPU at {REQUESTS:,} requests/s that both ends show"
    figures, cost = [], {}
    with Lab("bench-steady") as lab:
        daemon = Watched(lab, config="[capture]\nunwatched_rate = 0\n")
        web = Web(lab)
        daemon.wait_attached()
        for count in COUNTS:
            cost[count], rate, delivered = run(daemon, web, count)
            say(f"   {count} watchers: {cost[count]:.1f} us each at {rate:,.0f} exchanges/s, {delivered:,}")
            note = f"{rate:,.0f} exchanges/s, {delivered:,} delivered, none lost"
            figures.append(Figure(part, f"{count} watchers", cost[count], "us/exchange", note=note))
        daemon.stop()
    added = (cost[16] - cost[1]) / 15
    share = 100 * added / cost[1]
    note = f"{added:.2f} us/exchange"
    figures.append(Figure(part, "one more watcher, of what one costs", share, "%", target="< 10", note=note))
    return figures
