"""Dashboard and rules against the truth: a real Prometheus that scrapes a real spliffd under traffic."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import promql_parser
import pytest

from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab, wait_for
from tests.support.prometheus import RULES, Prometheus
from tests.support.servers import Nginx, free_port

DASHBOARD = REPOSITORY / "packaging/grafana/spliff.json"


def queries() -> list[tuple[str, str]]:
    """Title and expression of every panel, Grafana's variables filled in as Grafana does."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        (panel["title"], target["expr"].replace("$instance", ".*").replace("$__rate_interval", "10s"))
        for panel in panels
        for target in panel.get("targets", ())
    ]


def selectors(node) -> Iterator[str]:
    """Every vector selector of an expression, comparisons and functions left aside."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.prettify()
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector.prettify()
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    else:
        for name in ("expr", "lhs", "rhs"):
            if hasattr(node, name):
                yield from selectors(getattr(node, name))


def test_the_rules_are_right_by_promtool():
    for command in ("rules", "spliff.rules.yml"), ("test", "spliff.rules.test.yml"):
        words = ["check", *command] if command[0] == "rules" else ["test", "rules", command[1]]
        done = subprocess.run(["promtool", *words], cwd=RULES.parent, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def daemon(lab: Lab, port: int) -> Iterator[Daemon]:
    daemon = Daemon(lab, "--metrics", f"127.0.0.1:{port}")
    yield daemon
    daemon.stop()


def test_every_expression_has_an_answer(lab: Lab, daemon: Daemon, port: int):
    server = Nginx(lab)
    daemon.wait_attached()
    prometheus = Prometheus(lab, port)
    wait_for(lambda: prometheus.value("up") == 1, 60, "the first scrape")
    watch = daemon.watch()
    traffic = lab.start(
        "sh", "-c", f"while :; do curl -sk -o /dev/null {server.url('/hello')}; sleep 0.05; done"
    )
    wait_for(
        lambda: prometheus.value("sum(rate(spliff_exchanges_total[10s]))") > 1, 60, "a rate of exchanges"
    )
    wait_for(lambda: prometheus.value("instance:spliff_correlated:ratio_rate5m") == 1, 60, "recorded rules")
    # The daemon reads its own processes every 10 s.
    wait_for(lambda: prometheus.value("min(spliff_process_resident_bytes)") > 0, 60, "the daemon's memory")

    asked = queries()
    assert len(asked) >= 35
    for title, expression in asked:
        found = prometheus.query(expression)
        assert found, f"{title}: nothing for {expression}"
    by_title = dict(asked)
    assert prometheus.value(by_title["Correlated"]) == 1.0
    assert prometheus.value(by_title["CPU"]) >= 0

    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    for rule in rules:
        for selector in selectors(promql_parser.parse(rule["query"])):
            assert prometheus.query(selector), f"{rule['name']}: no series for {selector}"
    assert [rule["name"] for rule in rules if rule.get("state", "inactive") != "inactive"] == []
    traffic.terminate()
    watch.stop()
    print(f"{len(asked)} expressions of the dashboard, {len(rules)} rules; the alerts are quiet")


def test_the_json_shows_every_row_in_order():
    board = json.loads(DASHBOARD.read_text())
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Correlation", "Traffic", "Losses", "Coverage", "Overhead"]
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        here = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & here, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        cells |= here
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["datasource"]["uid"] == "${datasource}"
