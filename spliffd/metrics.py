"""Every number spliffd publishes, computed from the shared counters when somebody asks.

Takes the counters of ``spliffd.counters`` (user-space area and the eBPF programs' map); returns
metric families, and from them the Prometheus text exposition (format 0.0.4) or a flat dictionary.
Nothing is kept between two calls, so a scrape costs the writers nothing and an idle daemon stays idle.

Rules: no label takes a value from the wire; every series listed here exists from start at 0.
The exchange matrix is emitted in full for every library that this build can probe, and for any other
library as soon as one of its exchanges was counted: all 675 combinations would drown the page.
"""

from __future__ import annotations

from spliffd import __version__, counters, coverage_series
from spliffd.counters import Area, Region
from spliffd.losses import LOSSES, Loss
from spliffd.series import Family, Sample, counter, exposition, gauge, labelled, values

__all__ = ["LOSSES", "PROBED_LIBRARIES", "Family", "Loss", "Sample", "collect", "exposition", "values"]

PROBED_LIBRARIES: tuple[str, ...] = tuple(
    name.removeprefix("probes_") for name in counters.SUPERVISOR if name.startswith("probes_")
)
"""The libraries this build can probe: those that the supervisor counts probes of."""

ALWAYS_SHOWN = "openssl"
"""A series that is there before its first event starts at 0; nine libraries of 75 each would be too many."""

LABEL_NAMES = ("protocol", "library", "method", "wire")


class Readings:
    """One consistent look at the counters: each region read once, workers also summed up.

    ``workers`` is how many the configuration asks for; their numbers are 0 to workers - 1. Sums run over
    every region that a worker ever wrote, so nothing is lost from view when their number is lowered.
    """

    def __init__(self, area: Area, kernel: Region, workers: int) -> None:
        self.workers = [region.values() for region in area.workers[:workers]]
        everyone = self.workers + [region.values() for region in area.workers[workers:]]
        self.regions: dict[str, dict[str, int]] = {
            "kernel": kernel.values(),
            "supervisor": area.supervisor.values(),
            "api": area.api.values(),
            "worker": {name: sum(one[name] for one in everyone) for name in counters.WORKER},
        }

    def get(self, region: str, name: str) -> int:
        """One counter of ``kernel``, ``supervisor``, ``api`` or ``worker`` (the workers' sum)."""
        return self.regions[region][name]


def collect(area: Area, kernel: Region, workers: int) -> list[Family]:
    """Reads the counters once and returns every family, in the order of the page."""
    readings = Readings(area, kernel, workers)
    return [*_correlation(readings), *_application(readings), *_host(readings), *_delivery(readings)]


def _correlation(readings: Readings) -> list[Family]:
    total = readings.regions["worker"]
    return [
        _exchanges(total),
        Family(
            "spliff_correlation_seconds",
            "histogram",
            "How long exchanges waited for late flow information; most do not.",
            _histogram(total),
        ),
        counter(
            "spliff_cookie_misses_total",
            "Packets of sockets in scope whose connection was not in the cookie map.",
            readings.get("kernel", "cookie_misses"),
        ),
        counter(
            "spliff_sockets_without_cookie_total",
            "TLS connections whose socket was named but had no cookie yet.",
            readings.get("kernel", "sockets_without_cookie"),
        ),
        counter(
            "spliff_deferred_successes_total",
            "Exchanges that waited in the retry queue and were correlated.",
            total["deferred_successes"],
        ),
        counter(
            "spliff_deferred_failures_total",
            "Exchanges not tied to packets: waited in vain, queue full, or connection given up before.",
            total["deferred_failures"],
        ),
        gauge("spliff_deferred_pending", "Exchanges waiting in the retry queue.", total["deferred_pending"]),
    ]


def _exchanges(total: dict[str, int]) -> Family:
    samples = []
    for library in counters.LIBRARIES:
        rows = [
            Sample("", tuple(zip(LABEL_NAMES, (protocol, library, method, wire), strict=True)), value)
            for protocol in counters.PROTOCOLS
            for method in counters.METHODS
            for wire in counters.WIRES
            for value in (total[f"exchanges/{protocol}/{library}/{method}/{wire}"],)
        ]
        if library == ALWAYS_SHOWN or any(row.value for row in rows):
            samples += rows
    return Family(
        "spliff_exchanges_total",
        "counter",
        "Exchanges by protocol, TLS library, correlation method and the packet hook that saw them.",
        samples,
    )


def _histogram(total: dict[str, int]) -> list[Sample]:
    samples = []
    running = 0
    bounds = [*(repr(bound) for bound in counters.CORRELATION_BUCKETS), "+Inf"]
    for i, bound in enumerate(bounds):
        running += total[f"correlation_bucket_{i}"]
        samples.append(Sample("_bucket", (("le", bound),), running))
    samples.append(Sample("_sum", (), total["correlation_sum_ns"] / 1e9))
    # Not the worker's own count: the words are read one by one and the page must agree with itself.
    samples.append(Sample("_count", (), running))
    return samples


def _application(readings: Readings) -> list[Family]:
    total = readings.regions["worker"]
    kinds = ("data", "handshake", "socket", "close", "fact", "skipped", "unknown")
    # Evicted ones are closed as well. Those of a worker that died are never closed: an upper bound.
    live = total["connections_opened"] - total["connections_closed"]
    return [
        labelled(
            "counter",
            "spliff_tls_records_total",
            "Records read from the ring, by kind.",
            "kind",
            [(kind, total[f"tls_records_{kind}"]) for kind in kinds],
        ),
        labelled(
            "counter",
            "spliff_captured_bytes_total",
            "Plaintext bytes captured, by direction as the traced program sees it.",
            "direction",
            [(way, total[f"captured_bytes_{way}"]) for way in ("sent", "received")],
        ),
        labelled(
            "counter",
            "spliff_handshakes_total",
            "TLS handshakes seen, by result.",
            "result",
            [("ok", total["handshakes_ok"]), ("failed", total["handshakes_failed"])],
        ),
        labelled(
            "counter",
            "spliff_websocket_messages_total",
            "WebSocket messages seen, by direction as the traced program sees it.",
            "direction",
            [(way, total[f"websocket_messages_{way}"]) for way in ("sent", "received")],
        ),
        labelled(
            "counter",
            "spliff_client_hellos_total",
            "ClientHellos looked for among a connection's packets: read, cut (longer than is kept), missing.",
            "state",
            [(state, total[f"hellos_{state}"]) for state in counters.HELLO_STATES],
        ),
        counter(
            "spliff_exchanges_incomplete_total",
            "Exchanges of which something is missing, and that say so.",
            total["exchanges_incomplete"],
        ),
        counter(
            "spliff_unwanted_bytes_total",
            "Bytes of bodies that nobody wanted and that were not copied.",
            readings.get("kernel", "unwanted_bytes"),
        ),
        counter(
            "spliff_unsampled_exchanges_total",
            "Exchanges that were only counted: nobody watched, and there were more than unwatched_rate.",
            readings.get("kernel", "unsampled_exchanges"),
        ),
        counter(
            "spliff_unjudged_calls_total",
            "Calls delivered to watchers of units and containers because their cgroup was not looked at yet.",
            readings.get("kernel", "unjudged_calls"),
        ),
        counter(
            "spliff_parser_resyncs_total",
            "Times a parser found its place again after a gap or a mid-stream start.",
            total["parser_resyncs"],
        ),
        counter(
            "spliff_connections_reconciled_total",
            "Connections whose end was lost, and found out in the kernel's tables.",
            total["connections_reconciled"],
        ),
        gauge("spliff_connections", "TLS connections that the workers hold.", max(0, live)),
        _per_worker(readings, "sleep_cycles", "Times a worker went to sleep for want of work."),
        _per_worker(readings, "busy_polls", "Polling iterations that used up their whole budget."),
        _per_worker(readings, "iterations", "Polling iterations."),
        _per_worker(readings, "records", "Records read from the ring."),
    ]


def _per_worker(readings: Readings, name: str, text: str) -> Family:
    pairs = [(str(number), float(one[name])) for number, one in enumerate(readings.workers)]
    return labelled("counter", f"spliff_{name}_total", text, "worker", pairs)


def _host(readings: Readings) -> list[Family]:
    kernel, supervisor = readings.regions["kernel"], readings.regions["supervisor"]
    return [
        gauge("spliff_flows", "TCP connections in scope that are open.", supervisor["flows"]),
        *(
            labelled(
                "gauge",
                f"spliff_map_{kind}",
                text,
                "map",
                [(table, supervisor[f"map_{kind}_{table}"]) for table in counters.TABLES],
            )
            for kind, text in (
                ("entries", "Entries of the kernel's tables, counted every 10 s while anything changes."),
                ("capacity", "How many entries they can hold; the least recently used makes room."),
            )
        ),
        Family(
            "spliff_interfaces",
            "gauge",
            "Interfaces whose packets are seen, by hook and mode.",
            [
                Sample("", (("hook", hook), ("mode", mode)), supervisor[f"interfaces_{hook}_{mode}"])
                for hook, mode in counters.HOOK_MODES
            ],
        ),
        counter(
            "spliff_interface_failures_total",
            "Attempts to hook an interface that the kernel refused.",
            supervisor["interface_failures"],
        ),
        counter(
            "spliff_interface_overruns_total",
            "Times the kernel's link messages came too fast, and the table was read anew.",
            supervisor["interface_overruns"],
        ),
        counter(
            "spliff_interface_table_full_total",
            "Interfaces without a hook because the table was full.",
            supervisor["interface_table_full"],
        ),
        Family(
            "spliff_packets_total",
            "counter",
            "Packets that a hook saw, by what they are; those of cookie misses are counted there.",
            [
                Sample("", (("hook", hook.upper()), ("kind", kind)), kernel[f"{hook}_{kind}"])
                for hook in ("xdp", "tc")
                for kind in counters.PACKET_OUTCOMES
            ],
        ),
        counter("spliff_flows_total", "TCP connections in scope ever seen.", kernel["flows_made"]),
        counter(
            "spliff_flows_without_hop_total",
            "Packets on more interfaces than one connection is followed over.",
            kernel["flows_without_hop"],
        ),
        labelled(
            "counter",
            "spliff_sockets_total",
            "Connections opened and closed, and those found at start.",
            "event",
            [(event, kernel[f"sockets_{event}"]) for event in ("active", "passive", "closed", "seeded")],
        ),
        labelled(
            "gauge",
            "spliff_probes",
            "Probe sites attached, by TLS library.",
            "library",
            [(library, supervisor[f"probes_{library}"]) for library in PROBED_LIBRARIES],
        ),
        labelled(
            "gauge",
            "spliff_libraries",
            "Files with TLS code found, by what became of them.",
            "state",
            [(state, supervisor[f"libraries_{state}"]) for state in ("attached", "refused")],
        ),
        labelled(
            "counter",
            "spliff_placements_total",
            "Files whose relocated probes were compared with ones at first instructions, by what came of it.",
            "result",
            [("passed", supervisor["placements_tested"]), ("taken_back", supervisor["placement_fallbacks"])],
        ),
        *coverage_series.families(supervisor),
        counter("spliff_execs_total", "Program starts seen.", supervisor["execs_seen"]),
        counter(
            "spliff_mappings_lost_total",
            "Mapped files that nobody was told of: libraries among them are found some milliseconds later.",
            supervisor["mappings_lost"],
        ),
        counter(
            "spliff_process_lookups_total",
            "Questions of workers about a process.",
            supervisor["whois_requests"],
        ),
        counter(
            "spliff_process_lookups_late_total",
            "Questions about a process that was gone already.",
            supervisor["whois_too_late"],
        ),
        counter(
            "spliff_out_of_scope_total", "TLS calls outside the scope, never read.", kernel["out_of_scope"]
        ),
        labelled(
            "counter",
            "spliff_process_cpu_seconds_total",
            "CPU time of the daemon's own processes, read every 10 s.",
            "process",
            [(kind, supervisor[f"cpu_ms_{kind}"] / 1000) for kind in counters.KINDS_OF_PROCESS],
        ),
        labelled(
            "gauge",
            "spliff_process_resident_bytes",
            "Memory of the daemon's own processes, what they share counted in each.",
            "process",
            [(kind, supervisor[f"rss_kib_{kind}"] * 1024) for kind in counters.KINDS_OF_PROCESS],
        ),
        gauge(
            "spliff_ready_seconds",
            "How long the daemon took from start to ready.",
            supervisor["ready_after_ms"] / 1000,
        ),
    ]


def _delivery(readings: Readings) -> list[Family]:
    api, supervisor = readings.regions["api"], readings.regions["supervisor"]
    lost: list[Sample] = []
    lost_bytes: list[Sample] = []
    for loss in LOSSES:
        labels = (("stage", loss.stage), ("reason", loss.reason))
        if loss.counter is not None:
            lost.append(Sample("", labels, readings.get(loss.region, loss.counter)))
        if loss.byte_counter is not None:
            lost_bytes.append(Sample("", labels, readings.get(loss.region, loss.byte_counter)))
    return [
        Family("spliff_lost_total", "counter", "Things lost, by stage and reason.", lost),
        Family("spliff_lost_bytes_total", "counter", "Bytes lost, where they are known.", lost_bytes),
        gauge("spliff_subscribers", "Watchers connected.", api["subscribers"]),
        counter("spliff_subscribers_total", "Watchers ever connected.", api["subscribers_total"]),
        counter(
            "spliff_subscriber_lost_total",
            "Items and bodies that slow watchers missed, each told to its watcher.",
            api["subscriber_lost_items"] + api["subscriber_lost_bodies"],
        ),
        counter(
            "spliff_subscriber_lost_bytes_total",
            "Bytes that slow watchers missed.",
            api["subscriber_lost_bytes"],
        ),
        counter("spliff_frames_total", "Frames that the api got from workers.", api["frames_received"]),
        counter("spliff_items_delivered_total", "Items written to watchers.", api["items_delivered"]),
        counter(
            "spliff_items_filtered_total",
            "Items that a watcher's filter or wishes held back.",
            api["items_filtered"],
        ),
        counter("spliff_responses_total", "Batches written to watchers.", api["batches_sent"]),
        counter(
            "spliff_refused_total", "Requests refused for want of permission.", api["refused_permission"]
        ),
        counter("spliff_worker_restarts_total", "Restarts of workers.", supervisor["worker_restarts"]),
        counter("spliff_api_restarts_total", "Restarts of the api.", supervisor["api_restarts"]),
        labelled("gauge", "spliff_build_info", "Always 1.", "version", [(__version__, 1)]),
    ]
