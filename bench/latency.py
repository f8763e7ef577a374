"""How long until a watcher knows: from the return of the server's SSL_write to the gRPC client.

A keep-alive client outside the scope asks nginx (in scope) for a page at a steady rate, so that exactly
that many exchanges a second are captured. The start of the clock is the kernel's own time of the response's
last SSL_write return (``exchange.end_time_ns``), its end is the arrival of the message at a watcher, a
separate process on the same host and clock. At low rates the watcher's own wake-up is in the figure.
"""

from __future__ import annotations

import statistics

from bench.report import Figure
from bench.watched import Watched, Watcher
from bench.web import Web
from tests.support.lab import PYTHON, Lab, say

RATES = {10: 10.0, 100: 8.0, 1000: 8.0}
"""Exchanges a second, and for how many seconds."""

CLIENT = r"""
import http.client, ssl, sys, time
port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
connection = http.client.HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())
began = time.monotonic()
count = int(rate * seconds)
for number in range(count):
    wait = began + number / rate - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    connection.request("GET", "/reply.txt")
    connection.getresponse().read()
print(count, time.monotonic() - began)
"""


def measure() -> list[Figure]:
    """One daemon, one watcher a rate."""
    rows: list[Figure] = []
    part = "latency: return of the server's SSL_write to arrival at a gRPC watcher"
    with Lab("bench-latency") as lab:
        daemon = Watched(lab)
        web = Web(lab)
        for rate, seconds in RATES.items():
            watcher = Watcher(daemon, "--latency")
            before = daemon.reading()
            done = lab.run(
                PYTHON,
                "-c",
                CLIENT,
                str(web.server.port),
                str(rate),
                str(seconds),
                env={"LD_LIBRARY_PATH": ""},
            )
            count, took = done.stdout.split()
            daemon.settle()
            after = daemon.reading().since(before)
            taken = sorted(watcher.stop()["latencies"])
            if len(taken) < int(count):
                raise RuntimeError(f"{len(taken)} of {int(count)} exchanges arrived, lost {after.losses}")
            p50, p99 = statistics.median(taken), taken[int(len(taken) * 0.99)]
            say(f"   {rate}/s: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms")
            reached = int(count) / float(took)
            note = (
                f"{len(taken)} exchanges at {reached:,.0f}/s, none missing, longest {taken[-1] * 1000:.1f} ms"
            )
            target = "< 15" if rate == 1000 else ""
            rows += [
                Figure(part, f"p50 at {rate}/s", p50 * 1000, "ms", note=note),
                Figure(part, f"p99 at {rate}/s", p99 * 1000, "ms", target=target),
                Figure(
                    part, f"daemon CPU at {rate}/s", after.cpu_ns / 1e7 / float(took), "% of a CPU",
                    note=f"{after.cpu_ns / 1000 / max(1, after.exchanges):,.0f} us an exchange, all of it",
                ),
            ]  # fmt: skip
        daemon.stop()
    return rows
