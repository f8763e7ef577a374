"""Makes spliff.json, the Grafana dashboard: ``python packaging/grafana/dashboard.py [FOLDER]``.

Takes ``panels.ROWS``; writes the JSON that an operator imports, or a provisioned folder holds. The JSON is
committed, and ``make check`` compares it, so nobody needs this to use the dashboard.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos, VariableRefresh
from panels import ROWS, Panel

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
HEIGHT = 8


def built(panel: Panel) -> timeseries.Panel | stat.Panel | bargauge.Panel:
    """A panel's builder."""
    if panel.kind == "timeseries":
        made = timeseries.Panel().fill_opacity(25 if panel.stacked else 5).line_width(1)
        made.legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if panel.stacked:
            made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    else:
        made = stat.Panel() if panel.kind == "stat" else bargauge.Panel()
    made.title(panel.title).description(panel.told).unit(panel.unit).datasource(SOURCE)
    if panel.unit == "percentunit" and not panel.stacked:
        made.min(0).max(1)
    made.no_value("no traffic" if panel.title.startswith("Correlat") else "no data")
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        made.with_target(query.instant() if panel.kind != "timeseries" else query.range())
    return made


def board() -> dashboard.Dashboard:
    """All rows, panels flowing from left to right."""
    board = (
        dashboard.Dashboard("spliff")
        .uid("spliff")
        .tags(["spliff", "tls", "ebpf"])
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("instance")
            .label("Daemon")
            .query("label_values(spliff_build_info, instance)")
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
        )
    )
    y = 0
    for title, panels in ROWS:
        board.with_row(dashboard.Row(title).grid_pos(GridPos(h=1, w=COLUMNS, x=0, y=y)))
        y += 1
        x = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            board.with_panel(built(panel).grid_pos(GridPos(h=HEIGHT, w=panel.width, x=x, y=y)))
            x += panel.width
        y += HEIGHT
    return board


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    text = JSONEncoder(sort_keys=True, indent=1).encode(board().build())
    (folder / "spliff.json").write_text(text + "\n")
