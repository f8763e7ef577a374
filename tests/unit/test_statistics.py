"""The statistics block: its sections, its verdicts, its width, and that it agrees with the page."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spliffd import counters, metrics, statistics
from spliffd.counters import Area

SECOND = 1_000_000_000


@pytest.fixture
def area():
    return Area.create()


@pytest.fixture
def kernel():
    return counters.kernel_region(memoryview(bytearray(4096)).cast("Q"))


def block(area, kernel, workers=1, covered=90_061 * SECOND) -> str:
    return statistics.text(metrics.collect(area, kernel, workers), covered)


def section(text: str, title: str) -> dict[str, str]:
    """The lines of a section: label to everything behind it, single-spaced."""
    body = text.split(f"\n{title}\n", 1)[1].split("\n\n", maxsplit=1)[0]
    rows = [line.strip().split("  ", 1) for line in body.splitlines()]
    return {row[0]: " ".join(row[1].split()) if len(row) > 1 else "" for row in rows}


def test_all_sections_are_there_in_order(area, kernel):
    text = block(area, kernel)

    titles = [line for line in text.splitlines()[1:] if line and not line.startswith(" ")]
    assert titles == [
        "Application layer",
        "Workers",
        "Correlation",
        "Network layer",
        "sock_ops",
        "Probes",
        "Losses",
        "Subscribers",
    ]
    assert text.splitlines()[0].endswith("statistics over 1 d 01:01:01")


def test_lines_stay_below_80_columns_whatever_the_numbers(area, kernel):
    for region in (kernel, area.supervisor, area.api, *area.workers):
        for name in region.names:
            region.set(name, 10**12)

    assert max(map(len, block(area, kernel, workers=16).splitlines())) < 80


def test_correlation_is_a_rate_by_method_and_hook(area, kernel):
    worker = area.workers[0]
    worker.set("exchanges/http1/openssl/SOCKET_NESTED/XDP", 9_998)
    worker.set("exchanges/http2/openssl/SOCKET_FD/NONE", 1)
    worker.set("exchanges/raw/openssl/NONE/NONE", 1)
    kernel.set("cookie_misses", 17)

    found = section(block(area, kernel), "Correlation")

    assert found["tied to a connection"] == "9,999 99.99 %"
    assert found["tied to packets on the wire"] == "9,998 99.98 %"
    assert found["by SOCKET_NESTED"] == "9,998 99.98 %"
    assert found["seen by XDP"] == "9,998 99.98 %"
    assert found["seen by TC"] == "0 0.00 %"
    assert found["cookie misses (packets)"] == "17"


def test_the_network_layer_is_told_by_hook(area, kernel):
    area.supervisor.set("interfaces_XDP_native", 2)
    area.supervisor.set("interfaces_TC_tcx", 211)
    area.supervisor.set("interface_failures", 3)
    for kind, number in (("own", 1009), ("forwarded", 503), ("foreign", 11), ("ambiguous", 7)):
        kernel.set(f"tc_{kind}", number)
    kernel.set("xdp_not_tcp", 5)

    found = section(block(area, kernel), "Network layer")
    lines = block(area, kernel).splitlines()

    assert (found["interfaces on XDP native"], found["interfaces on TC tcx"]) == ("2", "211")
    assert (found["packets at XDP"], found["packets at TC"]) == ("5", "1,530")
    at = lines.index(next(line for line in lines if "packets at TC" in line))
    kinds = dict(line.rsplit(maxsplit=1) for line in map(str.strip, lines[at + 1 : at + 8]))
    assert kinds == {
        "own connections": "1,009", "of two namespaces at once": "7", "out of scope, or of no socket": "11",
        "forwarded": "503", "later fragments": "0", "not TCP": "0", "malformed": "0",
    }  # fmt: skip
    assert found["attempts to hook refused"] == "3"


def test_flows_and_tables_are_told_with_their_bounds(area, kernel):
    kernel.set("sockets_seeded", 13)
    area.supervisor.set("flows", 17)
    area.supervisor.set("map_entries_cookies", 34)
    area.supervisor.set("map_capacity_cookies", 65536)

    found = section(block(area, kernel), "sock_ops")

    assert (found["found at start"], found["open flows"], found["map cookies"]) == (
        "13",
        "17",
        "34 of 65,536",
    )


def test_a_rate_is_rounded_down(area, kernel):
    area.workers[0].set("exchanges/http1/openssl/SOCKET_NESTED/XDP", 999_999)
    area.workers[0].set("exchanges/http1/openssl/NONE/XDP", 1)

    assert section(block(area, kernel), "Correlation")["tied to a connection"] == "999,999 99.99 %"


@pytest.mark.parametrize(
    ("sleeps", "busy", "iterations", "said"),
    [
        (0, 0, 0, "Good (adaptive polling, 0 sleep cycles)"),
        (1009, 3, 1012, "Good (adaptive polling, 1009 sleep cycles)"),
        (1, 99, 100, "High load (99% active polling)"),
        (50, 50, 100, "High load (50% active polling)"),
        (51, 49, 100, "Good (adaptive polling, 51 sleep cycles)"),
    ],
)
def test_the_verdict_on_polling(area, kernel, sleeps, busy, iterations, said):
    worker = area.workers[0]
    for name, value in (("sleep_cycles", sleeps), ("busy_polls", busy), ("iterations", iterations)):
        worker.set(name, value)

    assert f"  worker 0: {said}\n" in block(area, kernel)


def test_losses_by_stage_with_their_bytes(area, kernel):
    kernel.set("ring_full_data_records", 1009)
    kernel.set("ring_full_data_bytes", 1_000_000)
    kernel.set("oversize_bytes", 77)
    area.api.set("subscriber_lost_items", 5)

    found = section(block(area, kernel), "Losses")

    assert found["ring: ring_full"] == "1,009 1,000,000 bytes"
    assert found["kernel: oversize"] == "77 bytes"
    assert found["subscriber: queue_full"] == "5"
    assert len(found) == len(metrics.LOSSES)


def test_every_number_of_the_block_is_on_the_page(area, kernel):
    for region in (kernel, area.supervisor, area.api, area.workers[0]):
        for i, name in enumerate(region.names):
            region.set(name, 1_000_003 + 17 * i)
    families = metrics.collect(area, kernel, 1)
    page = statistics.values(families)
    found = section(statistics.text(families, 0), "Subscribers")

    assert int(found["items delivered"].replace(",", "")) == page["spliff_items_delivered_total"]
    assert int(found["connected"].replace(",", "")) == page["spliff_subscribers"]
    found = section(statistics.text(families, 0), "sock_ops")
    assert int(found["closed"].replace(",", "")) == page['spliff_sockets_total{event="closed"}']


def test_the_supervisor_can_use_it_without_grpc():
    code = "import sys, spliffd.statistics; sys.exit(any(m.partition('.')[0] == 'grpc' for m in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
