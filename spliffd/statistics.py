"""The statistics block: what the daemon prints at shutdown and ``GetStats`` returns.

Takes the metric families of ``spliffd.metrics`` and the time they cover; returns text below 80
columns, so that the block, ``spliffctl stats`` and the Prometheus page can never disagree.
Imports neither gRPC nor anything of the api: the supervisor prints the block when all else is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from spliffd import __version__, counters, metrics
from spliffd.metrics import Family

HIGH_LOAD_PERCENT = 50
"""A worker that uses up its budget in every other iteration hardly ever sleeps: it is at its limit."""

HOOKS = ("XDP", "TC")
PACKETS = {
    "own": "own connections",
    "ambiguous": "of two namespaces at once",
    "foreign": "out of scope, or of no socket",
    "forwarded": "forwarded",
    "fragments": "later fragments",
    "not_tcp": "not TCP",
    "malformed": "malformed",
}
"""What a packet can be (counters.PACKET_OUTCOMES), in words."""

LABEL_WIDTH = 31
NS = 1_000_000_000

values = metrics.values


def text(families: Iterable[Family], covered_ns: int) -> str:
    """The block, ending in a newline; ``covered_ns`` is how long the counters have been counting."""
    numbers = Numbers(families)
    sections: list[tuple[str, Callable[[Numbers], list[str]]]] = [
        ("Application layer", _application),
        ("Workers", _workers),
        ("Correlation", _correlation),
        ("Network layer", _network),
        ("sock_ops", _sock_ops),
        ("Probes", _probes),
        ("Losses", _losses),
        ("Subscribers", _subscribers),
    ]
    lines = [f"spliffd {__version__} statistics over {_duration(covered_ns)}"]
    for title, section in sections:
        lines += ["", title, *section(numbers)]
    return "\n".join(lines) + "\n"


class Numbers:
    """Looks samples up by family name and labels."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = {
            family.name: [(dict(s.labels), s.value) for s in family.samples if not s.suffix]
            for family in families
        }

    def sum(self, name: str, **labels: str) -> int:
        """The sum of the samples of ``name`` that carry ``labels``."""
        return int(
            sum(
                value
                for have, value in self._samples[name]
                if all(have.get(key) == wanted for key, wanted in labels.items())
            )
        )

    def rows(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        """All samples of ``name``: labels and value."""
        return self._samples[name]


def verdict(sleep_cycles: int, busy_polls: int, iterations: int) -> str:
    """What a worker's polling says about the processor's load."""
    percent = 100 * busy_polls / iterations if iterations else 0.0
    if percent >= HIGH_LOAD_PERCENT:
        return f"High load ({percent:.0f}% active polling)"
    return f"Good (adaptive polling, {sleep_cycles} sleep cycles)"


def _row(label: str, value: int | str, note: str = "") -> str:
    shown = f"{value:,}" if isinstance(value, int) else value
    return f"  {label:<{LABEL_WIDTH}}{shown:>14}{'  ' + note if note else ''}".rstrip()


def _percent(part: int, whole: int) -> str:
    # Rounded down: 100 % is said only when nothing is missing.
    return f"{part * 10000 // whole / 100:.2f} %" if whole else "-"


def _duration(ns: int) -> str:
    minutes, seconds = divmod(max(0, ns) // NS, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours:02}:{minutes:02}:{seconds:02}"


def _application(n: Numbers) -> list[str]:
    exchanges = "spliff_exchanges_total"
    return [
        _row("exchanges", n.sum(exchanges)),
        *(_row(f"  {protocol}", n.sum(exchanges, protocol=protocol)) for protocol in counters.PROTOCOLS),
        _row("incomplete, and marked so", n.sum("spliff_exchanges_incomplete_total")),
        _row("WebSocket messages", n.sum("spliff_websocket_messages_total")),
        _row("only counted, nobody watched", n.sum("spliff_unsampled_exchanges_total")),
        _row("handshakes", n.sum("spliff_handshakes_total", result="ok")),
        _row("handshakes failed", n.sum("spliff_handshakes_total", result="failed")),
        _row("plaintext bytes sent", n.sum("spliff_captured_bytes_total", direction="sent")),
        _row("plaintext bytes received", n.sum("spliff_captured_bytes_total", direction="received")),
        _row("connections open", n.sum("spliff_connections")),
        _row("parser resynchronisations", n.sum("spliff_parser_resyncs_total")),
        _row("calls out of scope, not read", n.sum("spliff_out_of_scope_total")),
    ]


def _workers(n: Numbers) -> list[str]:
    lines = []
    for labels, sleeps in n.rows("spliff_sleep_cycles_total"):
        number = labels["worker"]
        busy = n.sum("spliff_busy_polls_total", worker=number)
        iterations = n.sum("spliff_iterations_total", worker=number)
        lines.append(f"  worker {number}: {verdict(int(sleeps), busy, iterations)}")
        lines.append(_row("  records", n.sum("spliff_records_total", worker=number)))
    lines.append(_row("restarts", n.sum("spliff_worker_restarts_total")))
    return lines


def _correlation(n: Numbers) -> list[str]:
    exchanges = "spliff_exchanges_total"
    total = n.sum(exchanges)
    on_wire = total - n.sum(exchanges, wire="NONE")
    tied = total - n.sum(exchanges, method="NONE")
    lines = [
        _row("tied to a connection", tied, _percent(tied, total)),
        _row("tied to packets on the wire", on_wire, _percent(on_wire, total)),
    ]
    for method in counters.METHODS:
        count = n.sum(exchanges, method=method)
        lines.append(_row(f"  by {method}", count, _percent(count, total)))
    for wire in counters.WIRES:
        count = n.sum(exchanges, wire=wire)
        lines.append(_row(f"  seen by {wire}", count, _percent(count, total)))
    return [
        *lines,
        _row("cookie misses (packets)", n.sum("spliff_cookie_misses_total")),
        _row("sockets without a cookie", n.sum("spliff_sockets_without_cookie_total")),
        _row("deferred successes", n.sum("spliff_deferred_successes_total")),
        _row("deferred failures", n.sum("spliff_deferred_failures_total")),
        _row("deferred, still waiting", n.sum("spliff_deferred_pending")),
    ]


def _network(n: Numbers) -> list[str]:
    lines = [
        _row(f"interfaces on {hook} {mode}", n.sum("spliff_interfaces", hook=hook, mode=mode))
        for hook, mode in counters.HOOK_MODES
    ]
    for hook in HOOKS:
        lines.append(_row(f"packets at {hook}", n.sum("spliff_packets_total", hook=hook)))
        for kind, words in PACKETS.items():
            lines.append(_row(f"  {words}", n.sum("spliff_packets_total", hook=hook, kind=kind)))
    return [
        *lines,
        _row("beyond a flow's interfaces", n.sum("spliff_flows_without_hop_total")),
        _row("attempts to hook refused", n.sum("spliff_interface_failures_total")),
        _row("interface table read anew", n.sum("spliff_interface_overruns_total")),
        _row("interfaces beyond the table", n.sum("spliff_interface_table_full_total")),
    ]


def _sock_ops(n: Numbers) -> list[str]:
    return [
        _row("connections opened by this host", n.sum("spliff_sockets_total", event="active")),
        _row("connections accepted", n.sum("spliff_sockets_total", event="passive")),
        _row("found at start", n.sum("spliff_sockets_total", event="seeded")),
        _row("closed", n.sum("spliff_sockets_total", event="closed")),
        _row("open flows", n.sum("spliff_flows")),
        *(_table(n, table) for table in counters.TABLES),
    ]


def _table(n: Numbers, table: str) -> str:
    entries, capacity = n.sum("spliff_map_entries", map=table), n.sum("spliff_map_capacity", map=table)
    return _row(f"map {table}", entries, f"of {capacity:,}" if capacity else "")


def _probes(n: Numbers) -> list[str]:
    return [
        *(_row(labels["library"], int(sites), "sites") for labels, sites in n.rows("spliff_probes")),
        _row("files attached", n.sum("spliff_libraries", state="attached")),
        _row("files refused", n.sum("spliff_libraries", state="refused")),
        _row("program starts seen", n.sum("spliff_execs_total")),
        _row("processes asked for", n.sum("spliff_process_lookups_total")),
        _row("  gone already", n.sum("spliff_process_lookups_late_total")),
    ]


def _losses(n: Numbers) -> list[str]:
    sizes = {tuple(labels.values()): int(size) for labels, size in n.rows("spliff_lost_bytes_total")}
    counts = {tuple(labels.values()): int(count) for labels, count in n.rows("spliff_lost_total")}
    lines = []
    for stage, reason in ((loss.stage, loss.reason) for loss in metrics.LOSSES):
        count, size = counts.get((stage, reason)), sizes.get((stage, reason))
        note = f"{size:,} bytes" if size is not None else ""
        lines.append(_row(f"{stage}: {reason}", "" if count is None else count, note))
    return lines


def _subscribers(n: Numbers) -> list[str]:
    return [
        _row("connected", n.sum("spliff_subscribers")),
        _row("ever connected", n.sum("spliff_subscribers_total")),
        _row("items delivered", n.sum("spliff_items_delivered_total")),
        _row("items filtered out", n.sum("spliff_items_filtered_total")),
        _row("items and bodies missed", n.sum("spliff_subscriber_lost_total")),
        _row("bytes missed", n.sum("spliff_subscriber_lost_bytes_total")),
        _row("requests refused", n.sum("spliff_refused_total")),
    ]
