"""What the dashboard shows: rows of panels, each with its question, its expressions and their unit.

Only data; ``dashboard.py`` makes Grafana's JSON of it. ``$instance`` is the dashboard's choice of daemons,
``$__rate_interval`` Grafana's. An expression must have an answer for a daemon that has seen traffic: a test
runs each against a real Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass

ME = 'instance=~"$instance"'
"""Of the chosen daemons."""


@dataclass(frozen=True)
class Panel:
    """``queries``: expression and legend of each line. ``kind``: timeseries, stat or bargauge."""

    title: str
    told: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


def per_second(series: str, by: str = "", labels: str = "") -> str:
    """The rate of a counter, summed up by labels."""
    selector = f"{ME},{labels}" if labels else ME
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({series}{{{selector}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """``part`` of ``whole``; no answer while there is no traffic, for then nothing is known."""
    return f"{part} / ({whole} > 0)"


EXCHANGES = per_second("spliff_exchanges_total")
TIED = per_second("spliff_exchanges_total", labels='method!="NONE"')
ON_THE_WIRE = per_second("spliff_exchanges_total", labels='wire!="NONE"')


def quantile(q: float) -> str:
    """Of how long exchanges waited to be correlated."""
    return f"histogram_quantile({q}, {per_second('spliff_correlation_seconds_bucket', 'le')})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Correlation",
        (
            Panel(
                "Correlated",
                "Share of exchanges tied to a socket, and to packets on an interface.",
                "percentunit",
                ((share(TIED, EXCHANGES), "to a socket"), (share(ON_THE_WIRE, EXCHANGES), "to packets")),
                "stat",
                6,
            ),
            Panel(
                "Correlation rate",
                "The same over time. What is missing is in the next panel.",
                "percentunit",
                ((share(TIED, EXCHANGES), "to a socket"), (share(ON_THE_WIRE, EXCHANGES), "to packets")),
                width=10,
            ),
            Panel(
                "Not tied to packets, by how the socket was known",
                "Exchanges without a hop: no hook on their interfaces (SOCKET_*), or no socket (NONE).",
                "reqps",
                ((per_second("spliff_exchanges_total", "method", 'wire="NONE"'), "{{method}}"),),
                stacked=True,
            ),
            Panel(
                "Evidence",
                "Exchanges per second by correlation method and packet hook.",
                "reqps",
                ((per_second("spliff_exchanges_total", "method, wire"), "{{method}} {{wire}}"),),
                stacked=True,
            ),
            Panel(
                "Deferred",
                "Exchanges that waited for late flow information: found, given up, waiting now.",
                "reqps",
                (
                    (per_second("spliff_deferred_successes_total"), "found in time"),
                    (per_second("spliff_deferred_failures_total"), "given up"),
                    (f"sum (spliff_deferred_pending{{{ME}}})", "waiting (number)"),
                ),
            ),
            Panel(
                "Cookie misses",
                "Packets of sockets in scope whose connection was not known; foreign traffic is not here.",
                "pps",
                (
                    (per_second("spliff_cookie_misses_total"), "misses"),
                    (per_second("spliff_sockets_without_cookie_total"), "sockets without a cookie"),
                ),
            ),
            Panel(
                "Correlation delay",
                "How long exchanges waited for flow information; nearly all do not wait.",
                "s",
                ((quantile(0.5), "p50"), (quantile(0.99), "p99"), (quantile(0.999), "p99.9")),
            ),
        ),
    ),
    (
        "Traffic",
        (
            Panel(
                "Exchanges by protocol",
                "Finished exchanges per second.",
                "reqps",
                ((per_second("spliff_exchanges_total", "protocol"), "{{protocol}}"),),
                stacked=True,
            ),
            Panel(
                "Left out of the sample",
                "Connections that nobody watches, beyond [capture] unwatched_rate: counted, not decoded.",
                "reqps",
                ((per_second("spliff_unsampled_exchanges_total"), "left out"), (EXCHANGES, "decoded")),
            ),
            Panel(
                "Exchanges by TLS library",
                "Finished exchanges per second.",
                "reqps",
                ((per_second("spliff_exchanges_total", "library"), "{{library}}"),),
                stacked=True,
            ),
            Panel(
                "Plaintext",
                "Bytes captured, as the traced programs see their direction.",
                "Bps",
                ((per_second("spliff_captured_bytes_total", "direction"), "{{direction}}"),),
            ),
            Panel(
                "Handshakes",
                "TLS handshakes per second; failed ones are often the first sign of an expired certificate.",
                "reqps",
                ((per_second("spliff_handshakes_total", "result"), "{{result}}"),),
            ),
            Panel(
                "Connections",
                "TLS connections held by the workers, and TCP connections in scope.",
                "short",
                (
                    (f"sum (spliff_connections{{{ME}}})", "TLS connections"),
                    (f"sum (spliff_flows{{{ME}}})", "TCP flows"),
                ),
            ),
            Panel(
                "Watchers",
                "Clients that watch, and what they are sent.",
                "short",
                (
                    (f"sum (spliff_subscribers{{{ME}}})", "watchers"),
                    (per_second("spliff_items_delivered_total"), "items per second"),
                ),
            ),
        ),
    ),
    (
        "Losses",
        (
            Panel(
                "Lost",
                "Everything that was lost, by stage and reason; each was told to whoever missed it.",
                "cps",
                ((f"{per_second('spliff_lost_total', 'stage, reason')}", "{{stage}}: {{reason}}"),),
                width=12,
            ),
            Panel(
                "Lost bytes",
                "Where they are known.",
                "Bps",
                ((per_second("spliff_lost_bytes_total", "stage, reason"), "{{stage}}: {{reason}}"),),
            ),
            Panel(
                "Slow watchers",
                "What watchers missed because they read too slowly.",
                "cps",
                ((per_second("spliff_subscriber_lost_total"), "items"),),
                width=4,
            ),
            Panel(
                "Incomplete exchanges",
                "Exchanges that say that something is missing, and parsers that lost their place.",
                "cps",
                (
                    (per_second("spliff_exchanges_incomplete_total"), "incomplete"),
                    (per_second("spliff_parser_resyncs_total"), "resynchronised"),
                ),
            ),
            Panel(
                "Kernel tables",
                "How full each table is; at 1 the least recently used entries make room.",
                "percentunit",
                ((f"max by (map) (spliff_map_entries{{{ME}}} / spliff_map_capacity{{{ME}}})", "{{map}}"),),
            ),
            Panel(
                "Restarts",
                "Of workers and of the api within the last hour.",
                "short",
                (
                    (f"sum (increase(spliff_worker_restarts_total{{{ME}}}[1h]))", "workers"),
                    (f"sum (increase(spliff_api_restarts_total{{{ME}}}[1h]))", "api"),
                ),
                "stat",
            ),
        ),
    ),
    (
        "Coverage",
        (
            Panel(
                "Processes",
                "Processes that speak TLS: decrypted, partly, or not; `spliffctl why --pid N` says more.",
                "short",
                ((f"sum by (covered) (spliff_processes{{{ME}}})", "{{covered}}"),),
                stacked=True,
            ),
            Panel(
                "Not covered, by reason",
                "Why processes are not decrypted, or only partly.",
                "short",
                (
                    (
                        f'sum by (covered, reason) (spliff_processes{{{ME},covered!="covered"}})',
                        "{{covered}}: {{reason}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Probes",
                "Places that are probed, by TLS library.",
                "short",
                ((f"sum by (library) (spliff_probes{{{ME}}})", "{{library}}"),),
                "bargauge",
            ),
            Panel(
                "Libraries",
                "Files with TLS code, by what became of them.",
                "short",
                ((f"sum by (state) (spliff_libraries{{{ME}}})", "{{state}}"),),
                "stat",
            ),
            Panel(
                "Interfaces",
                "Interfaces whose packets are seen, by hook and mode.",
                "short",
                ((f"sum by (hook, mode) (spliff_interfaces{{{ME}}})", "{{hook}} {{mode}}"),),
                "stat",
            ),
            Panel(
                "Packets",
                "What the hooks saw: own connections, forwarded ones, programs out of scope (foreign).",
                "pps",
                ((per_second("spliff_packets_total", "hook, kind"), "{{hook}} {{kind}}"),),
                width=12,
            ),
            Panel(
                "Out of scope",
                "TLS calls outside of the configured scope: noticed, never read.",
                "cps",
                ((per_second("spliff_out_of_scope_total"), "calls"),),
                width=12,
            ),
        ),
    ),
    (
        "Overhead",
        (
            Panel(
                "CPU",
                "Of the daemon's own processes, 1 is one core.",
                "percentunit",
                ((per_second("spliff_process_cpu_seconds_total", "process"), "{{process}}"),),
                stacked=True,
            ),
            Panel(
                "Memory",
                "Resident, the shared ring counted in each process that maps it.",
                "bytes",
                ((f"sum by (process) (spliff_process_resident_bytes{{{ME}}})", "{{process}}"),),
                stacked=True,
            ),
            Panel(
                "Polling",
                "Sleeps per second, and polls that used up their budget: many busy ones mean full load.",
                "cps",
                (
                    (per_second("spliff_sleep_cycles_total", "worker"), "sleep cycles, worker {{worker}}"),
                    (per_second("spliff_busy_polls_total", "worker"), "busy polls, worker {{worker}}"),
                ),
            ),
        ),
    ),
)
