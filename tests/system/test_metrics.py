"""The Prometheus page of the real daemon: promtool, a real Prometheus, and the other ways to the same numbers."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.prometheus import Prometheus
from tests.support.servers import Nginx, free_port

SERIES = {
    "spliff_cookie_misses_total", "spliff_deferred_successes_total", "spliff_deferred_failures_total",
    "spliff_deferred_pending", "spliff_sleep_cycles_total", "spliff_busy_polls_total", "spliff_exchanges_total",
    "spliff_correlation_seconds_bucket", "spliff_correlation_seconds_sum", "spliff_correlation_seconds_count",
    "spliff_tls_records_total", "spliff_captured_bytes_total", "spliff_lost_total", "spliff_connections",
    "spliff_flows", "spliff_interfaces", "spliff_probes", "spliff_subscribers", "spliff_subscriber_lost_total",
    "spliff_worker_restarts_total", "spliff_build_info", "spliff_out_of_scope_total", "spliff_processes",
    "spliff_map_entries", "spliff_map_capacity",
}  # fmt: skip
"""The contract's."""

EXCHANGES = 'spliff_exchanges_total{protocol="http1",library="openssl",method="SOCKET_NESTED",wire="TC"}'


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


class Page:
    """The metrics page of a daemon."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.port = port

    def text(self) -> bytes:
        return get(self.url)

    def values(self) -> dict[str, float]:
        """Every sample by its series, written as GetStats writes it."""
        lines = [line for line in self.text().decode().splitlines() if not line.startswith("#")]
        return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def page(lab: Lab) -> Page:
    return Page(free_port())


@pytest.fixture
def daemon(lab: Lab, page: Page) -> Iterator[Daemon]:
    daemon = Daemon(lab, "--metrics", f"127.0.0.1:{page.port}")
    yield daemon
    daemon.stop()


def test_every_series_is_there_from_the_start(lab: Lab, daemon: Daemon, page: Page):
    text = page.text()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == b"", checked.stderr.decode()

    samples = [s for family in text_string_to_metric_families(text.decode()) for s in family.samples]
    assert {s.name for s in samples} >= SERIES
    alive = {
        "spliff_sleep_cycles_total",
        "spliff_iterations_total",
        "spliff_ready_seconds",
        "spliff_execs_total",
        "spliff_map_capacity",
        "spliff_interfaces",
        "spliff_packets_total",  # whatever goes over lo
        "spliff_process_cpu_seconds_total",
        "spliff_process_resident_bytes",
    }
    # Starting takes time and sleeps, and others on this host may use a library that is probed, out of scope.
    for sample in samples:
        if sample.name not in alive | {"spliff_build_info", "spliff_out_of_scope_total"}:
            assert sample.value == 0, sample
    print(f"{len(samples)} samples, {len(text):,} bytes")


def test_all_ways_lead_to_the_same_numbers(lab: Lab, daemon: Daemon, page: Page):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    for n in range(11):
        assert lab.run("curl", "-sk", server.url(f"/hello?{n}")).returncode == 0
    watch.wait_for(22)
    watch.settle(0.5)

    # All that goes over lo, the daemon's own costs, and its sleep go on while it is asked.
    always = (
        "spliff_packets_total",
        "spliff_process_",
        "spliff_sleep_cycles_total",
        "spliff_iterations_total",
    )

    def fixed(values: dict[str, float]) -> dict[str, float]:
        return {key: value for key, value in values.items() if not key.startswith(always)}

    deadline = time.monotonic() + 30
    while True:  # until nothing of the rest moves between a page, an answer and another page
        before, asked, shown = page.values(), daemon.stats(), page.values()
        if fixed(before) == fixed(shown):
            break
        assert time.monotonic() < deadline, {k for k in shown if before.get(k) != shown[k]}
    assert shown.keys() == asked.keys()
    same, told = fixed(shown), fixed(asked)
    assert {key: (same[key], told[key]) for key in same if same[key] != told[key]} == {}
    assert shown[EXCHANGES] == 22
    assert shown["spliff_subscribers"] == 1
    assert shown["spliff_items_delivered_total"] == 22 + 1  # the answer to Flush
    assert (
        shown['spliff_captured_bytes_total{direction="sent"}']
        == shown['spliff_captured_bytes_total{direction="received"}']
        > 0
    )
    assert sum(value for key, value in shown.items() if key.startswith("spliff_lost_total")) == 0

    block = daemon.client("stats").communicate(timeout=30)[0].decode()
    rows = dict(
        line[2:].rsplit(None, 1)
        for line in block.splitlines()
        if line.startswith("  ") and line[-1:].isdigit()
    )
    rows = {name.strip(): int(value.replace(",", "")) for name, value in rows.items()}
    sent = int(shown['spliff_captured_bytes_total{direction="sent"}'])
    assert (rows["exchanges"], rows["plaintext bytes sent"], rows["files attached"]) == (22, sent, 2)
    assert rows["items delivered"] == 22 + 1


def test_a_scrape_costs_the_worker_nothing(lab: Lab, daemon: Daemon, page: Page):
    page.text()
    time.sleep(0.3)
    key = 'spliff_sleep_cycles_total{worker="0"}'

    def cost() -> float:
        before = page.values()[key]
        for _ in range(23):
            page.text()
        return page.values()[key] - before

    # The worker has timers of its own, which go off while the machine holds the scraper up.
    wait_for(lambda: cost() <= 1, 30, "23 scrapes without waking the worker")


def test_a_real_prometheus_scrapes_it(lab: Lab, daemon: Daemon, page: Page):
    server = Nginx(lab)
    daemon.wait_attached()
    prometheus = Prometheus(lab, page.port)
    for n in range(7):
        assert lab.run("curl", "-sk", server.url(f"/hello?{n}")).returncode == 0
    wait_for(
        lambda: prometheus.value("sum(spliff_exchanges_total)") == 14, 60, "Prometheus knows of 14 exchanges"
    )
    # A scrape that came too late, beside others, takes every series away until the next one.
    rate = "sum(spliff_exchanges_total{method!='NONE'}) / sum(spliff_exchanges_total)"
    wait_for(lambda: prometheus.value(rate) == 1.0, 60, "every exchange with a method")
    built: list[dict] = []
    wait_for(lambda: built.extend(prometheus.query("spliff_build_info")) or built, 60, "a build")
    assert built[0]["metric"]["version"]
    wait_for(lambda: prometheus.value("up{job='spliff'}") == 1, 60, "a scrape in time")
    print("Prometheus:", prometheus.query(EXCHANGES))
