"""The Prometheus page: every series from start, right numbers, readable by Prometheus's own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from spliffd import __version__, counters, metrics
from spliffd.counters import Area, Region


@pytest.fixture
def area():
    return Area.create()


@pytest.fixture
def kernel() -> Region:
    return counters.kernel_region(memoryview(bytearray(4096)).cast("Q"))


def parsed(area, kernel, workers=1) -> dict[tuple[str, frozenset], float]:
    page = metrics.exposition(metrics.collect(area, kernel, workers)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


NAMED = {
    # The names of the product's contract, with their labels.
    "spliff_cookie_misses_total": set(),
    "spliff_deferred_successes_total": set(),
    "spliff_deferred_failures_total": set(),
    "spliff_deferred_pending": set(),
    "spliff_sleep_cycles_total": {"worker"},
    "spliff_busy_polls_total": {"worker"},
    "spliff_exchanges_total": {"protocol", "library", "method", "wire"},
    "spliff_correlation_seconds_bucket": {"le"},
    "spliff_correlation_seconds_sum": set(),
    "spliff_correlation_seconds_count": set(),
    "spliff_tls_records_total": {"kind"},
    "spliff_captured_bytes_total": {"direction"},
    "spliff_lost_total": {"stage", "reason"},
    "spliff_connections": set(),
    "spliff_flows": set(),
    "spliff_map_entries": {"map"},
    "spliff_map_capacity": {"map"},
    "spliff_packets_total": {"hook", "kind"},
    "spliff_sockets_total": {"event"},
    "spliff_sockets_without_cookie_total": set(),
    "spliff_flows_without_hop_total": set(),
    "spliff_interface_failures_total": set(),
    "spliff_interface_overruns_total": set(),
    "spliff_interface_table_full_total": set(),
    "spliff_interfaces": {"hook", "mode"},
    "spliff_probes": {"library"},
    "spliff_subscribers": set(),
    "spliff_subscriber_lost_total": set(),
    "spliff_worker_restarts_total": set(),
    "spliff_out_of_scope_total": set(),
    "spliff_build_info": {"version"},
}


@pytest.mark.parametrize("name", NAMED)
def test_every_series_exists_from_start_at_zero(area, kernel, name):
    found = {labels: value for (have, labels), value in parsed(area, kernel).items() if have == name}

    assert found
    assert {frozenset(key for key, _ in labels) for labels in found} == {frozenset(NAMED[name])}
    assert set(found.values()) == ({1.0} if name == "spliff_build_info" else {0.0})


def test_every_counter_shows_somewhere(area, kernel):
    """Raising any counter changes the page, but for the few that only the workers' own log uses."""
    silent = {"worker": {"correlation_count", "link_restarts", "output_stalls"}}
    regions = {
        "kernel": kernel,
        "supervisor": area.supervisor,
        "api": area.api,
        "worker": area.workers[0],
    }
    for region, owner in regions.items():
        for name in owner.names:
            # Closed connections only count against opened ones.
            area.workers[0].set("connections_opened", 1000)
            before = metrics.exposition(metrics.collect(area, kernel, 1))
            owner.add(name, 7)
            changed = metrics.exposition(metrics.collect(area, kernel, 1)) != before
            assert changed != (name in silent.get(region, set())), f"{region}: {name}"


def test_numbers_are_the_counters(area, kernel):
    kernel.set("out_of_scope", 11)
    area.supervisor.set("worker_restarts", 2)
    area.api.set("subscriber_lost_items", 3)
    area.api.set("subscriber_lost_bodies", 4)
    for number in (0, 1):
        area.workers[number].set("sleep_cycles", 100 + number)
        area.workers[number].set("captured_bytes_sent", 500)
        area.workers[number].set("exchanges/http2/openssl/SOCKET_FD/TC", 5)
    kernel.set("ring_full_data_records", 13)
    kernel.set("ring_full_data_bytes", 1300)

    found = parsed(area, kernel, workers=2)

    def value(name, **labels):
        return found[name, frozenset(labels.items())]

    assert value("spliff_out_of_scope_total") == 11
    assert value("spliff_worker_restarts_total") == 2
    assert value("spliff_subscriber_lost_total") == 7
    assert [value("spliff_sleep_cycles_total", worker=w) for w in "01"] == [100, 101]
    assert value("spliff_captured_bytes_total", direction="sent") == 1000
    exchanges = {"protocol": "http2", "library": "openssl", "method": "SOCKET_FD", "wire": "TC"}
    assert value("spliff_exchanges_total", **exchanges) == 10
    assert value("spliff_lost_total", stage="ring", reason="ring_full") == 13
    assert value("spliff_lost_bytes_total", stage="ring", reason="ring_full") == 1300
    assert value("spliff_build_info", version=__version__) == 1


def test_a_worker_that_is_configured_away_stays_in_the_sums(area, kernel):
    area.workers[3].set("captured_bytes_sent", 500)

    found = parsed(area, kernel, workers=1)

    assert found["spliff_captured_bytes_total", frozenset({("direction", "sent")})] == 500
    assert ("spliff_sleep_cycles_total", frozenset({("worker", "3")})) not in found


def test_the_histogram_is_cumulative_and_agrees_with_itself(area, kernel):
    worker = area.workers[0]
    for i in range(len(counters.CORRELATION_BUCKETS) + 1):
        worker.set(f"correlation_bucket_{i}", i + 1)
    worker.set("correlation_sum_ns", 1_500_000_000)

    found = parsed(area, kernel)

    buckets = [
        found["spliff_correlation_seconds_bucket", frozenset({("le", le)})]
        for le in ("0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "+Inf")
    ]
    assert buckets == [1, 3, 6, 10, 15, 21, 28, 36]
    assert found["spliff_correlation_seconds_count", frozenset()] == 36
    assert found["spliff_correlation_seconds_sum", frozenset()] == 1.5


def test_other_libraries_join_the_matrix_with_their_first_exchange(area, kernel):
    def libraries():
        names = [labels for name, labels in parsed(area, kernel) if name == "spliff_exchanges_total"]
        return len(names), {dict(labels)["library"] for labels in names}

    assert libraries() == (75, {"openssl"})
    area.workers[0].add("exchanges/raw/gnutls/NONE/NONE")
    assert libraries() == (150, {"openssl", "gnutls"})


def test_closing_more_than_was_opened_is_not_negative(area, kernel):
    # A restarted worker closes nothing that its predecessor opened, and the other way round.
    area.workers[0].set("connections_closed", 5)

    assert parsed(area, kernel)["spliff_connections", frozenset()] == 0


def test_values_have_the_names_of_the_page(area, kernel):
    families = metrics.collect(area, kernel, 1)
    lines = [line for line in metrics.exposition(families).decode().splitlines() if not line.startswith("#")]

    assert [line.rpartition(" ")[0] for line in lines] == list(metrics.values(families))
