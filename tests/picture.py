"""``make picture``: the dashboard's panels, drawn from what a real Prometheus scraped of a real spliffd.

Starts the daemon scoped to a lab, a Prometheus, and traffic of several kinds for some minutes: fresh curls,
HTTP/2, a burst at the machine's limit. Then asks Prometheus each panel's expressions, as Grafana would, and
draws them into docs/dashboard.png. No number in the picture is made up. Argument: minutes of traffic (4).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import time

import matplotlib as mpl
from matplotlib import dates
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab, say, stop, wait_for
from tests.support.prometheus import Prometheus
from tests.support.servers import Nginx, free_port

SHOWN = (
    "Correlation rate",
    "Evidence",
    "Processes",
    "Exchanges by protocol",
    "Plaintext",
    "Lost",
    "Kernel tables",
    "Packets",
    "CPU",
)
STEP = 5
WINDOW = "20s"
BACK, FRAME, TEXT = "#111217", "#181b1f", "#ccccdc"
CURLS = "while :; do curl -sk -o /dev/null {url}; sleep 0.02; done"


def formatter(unit: str) -> FuncFormatter:
    """Numbers as Grafana writes them."""

    def text(value: float, _: object) -> str:
        if unit == "percentunit":
            return f"{value:.0%}"
        if unit in ("Bps", "bytes"):
            for name in ("B", "KiB", "MiB", "GiB"):
                if abs(value) < 1024:
                    return f"{value:.0f} {name}" + ("/s" if unit == "Bps" else "")
                value /= 1024
        return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"

    return FuncFormatter(text)


def legend(template: str, labels: dict[str, str]) -> str:
    """Grafana's legend format."""
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def draw(panel: dict, axes, prometheus: Prometheus, begin: int, end: int) -> None:
    """One panel."""
    axes.set_title(panel["title"], loc="left", color=TEXT, fontsize=10)
    axes.set_facecolor(FRAME)
    lines = []
    for target in panel["targets"]:
        expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", WINDOW)
        found = prometheus.get(
            "query_range", query=expression, start=str(begin), end=str(end), step=str(STEP)
        )
        for series in found["result"]:
            values = {float(when): float(value) for when, value in series["values"]}
            if any(values.values()) or len(found["result"]) == 1:
                lines.append((legend(target["legendFormat"], series["metric"]), values))
    grid = [begin + STEP * n for n in range((end - begin) // STEP + 1)]
    times = [dates.date2num(dt.datetime.fromtimestamp(when, dt.UTC)) for when in grid]
    stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
    floor = [0.0] * len(grid)
    for name, values in sorted(lines, key=lambda line: -max(line[1].values()))[:6]:
        heights = [values.get(when, float("nan")) for when in grid]
        if stacked:
            heights = [
                base + (0 if math.isnan(height) else height)
                for base, height in zip(floor, heights, strict=True)
            ]
            axes.fill_between(times, floor, heights, alpha=0.35, linewidth=0)
            floor = heights
        axes.plot(times, heights, linewidth=1.2, label=name)
    if not lines:
        axes.plot(times, [0.0] * len(times), linewidth=1.2, label="nothing")
    axes.set_xlim(times[0], times[-1])
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    axes.yaxis.set_major_formatter(formatter(unit))
    axes.set_ylim(bottom=0, top=1.05 if unit == "percentunit" and not stacked else None)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(colors=TEXT, labelsize=7, length=0)
    axes.grid(visible=True, color="#2c3235", linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_color("#2c3235")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=3,
        fontsize=7,
        frameon=False,
        labelcolor=TEXT,
    )


def main() -> int:
    """Traffic, then the picture."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 4
    panels = {panel["title"]: panel for panel in json.loads(
        (REPOSITORY / "packaging/grafana/spliff.json").read_text()
    )["panels"]}  # fmt: skip
    with Lab("picture") as lab:
        port = free_port()
        daemon = Daemon(lab, "--metrics", f"127.0.0.1:{port}")
        server, modern = Nginx(lab), Nginx(lab, http2=True)
        server.file("big", b"x" * 262_147)
        prometheus = Prometheus(lab, port)
        wait_for(lambda: prometheus.value("up") == 1, 60, "the first scrape")
        watch = daemon.watch()
        begin = int(time.time())
        say(f"== {minutes:g} minutes of traffic")
        loads = [lab.start("sh", "-c", CURLS.format(url=server.url("/hello")))]
        time.sleep(minutes * 15)
        loads.append(lab.start("sh", "-c", CURLS.format(url=server.url("/big"))))
        loads.append(lab.start("sh", "-c", CURLS.format(url=modern.url("/hello"))))
        time.sleep(minutes * 15)
        burst = lab.start("wrk", "-t1", "-c8", f"-d{int(minutes * 10)}s", server.url("/hello"), stdout=-3)
        burst.wait()
        time.sleep(minutes * 20)
        end = int(time.time())
        for load in loads:
            stop(load)

        mpl.rcParams["axes.prop_cycle"] = mpl.cycler(
            color=["#73bf69", "#5794f2", "#f2cc0c", "#ff9830", "#f2495c", "#b877d9"]
        )
        figure, axes = plt.subplots(3, 3, figsize=(15, 9.5), facecolor=BACK)
        for title, place in zip(SHOWN, axes.flat, strict=True):
            draw(panels[title], place, prometheus, begin, end)
        figure.tight_layout(h_pad=2.5)
        figure.savefig(REPOSITORY / "docs/dashboard.png", dpi=70, facecolor=BACK)
        watch.stop()
        daemon.stop()
    say("== docs/dashboard.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
