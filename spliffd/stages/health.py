"""How the daemon is, in one line: for `systemctl status` and `spliffctl status`.

Takes the metric families, the number of probed files and the features of this host; returns text. ``facts``
returns a few numbers of which one changes whenever the line does, because adding up all series takes
milliseconds, most of what an idle daemon would cost.
"""

from __future__ import annotations

from collections.abc import Iterable

from spliffd import metrics, statistics
from spliffd.counters import Area, Region
from spliffd.stages.capture import Feature


def facts(area: Area, kernel: Region, attached: int) -> list[int]:
    """Whatever a worker counts comes of records; the losses of the others are looked at one by one."""
    regions = {"kernel": kernel, "supervisor": area.supervisor, "api": area.api}
    return [
        attached,
        *(region.get("records") for region in area.workers),
        *(
            regions[one.region].get(one.counter)
            for one in metrics.LOSSES
            if one.counter and one.region in regions
        ),
    ]


def line(families: Iterable[metrics.Family], attached: int, features: Iterable[Feature]) -> str:
    """Libraries, exchanges, the share that is tied to a socket, losses, and what is degraded."""
    numbers = statistics.Numbers(list(families))
    exchanges = numbers.sum("spliff_exchanges_total")
    alone = numbers.sum("spliff_exchanges_total", method="NONE")
    lost = numbers.sum("spliff_lost_total")
    share = 100 * (exchanges - alone) / exchanges if exchanges else 100.0
    degraded = [feature.name for feature in features if feature.state != "ok"]
    text = f"{attached} libraries probed, {exchanges} exchanges, {share:.1f}% with socket"
    if lost:
        text += f", {lost} lost"
    return text + (f"; degraded: {', '.join(degraded)}" if degraded else "")
