"""``spliffctl stats``: the statistics block, as the daemon prints it at shutdown.

Takes the daemon's answer to GetStats, prints its text, or its numbers as one JSON object; with ``--watch``
again and again, on a terminal in place. Never computes a figure of its own: rates are on ``top``'s page.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from spliffctl import filters, options, units

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

INTERVAL_S = 2.0
"""Between two blocks of --watch, as other programs that watch have it."""

HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
"""Redraws in place without the flicker of a cleared screen."""


class Seconds(filters.Checked):
    """A duration, as ``watch --for`` takes it."""

    def check(self, text: str) -> float:
        """Seconds."""
        return units.parse_duration(text)


@click.command(
    "stats",
    epilog="""\b
Examples:
  spliffctl stats
  spliffctl stats --watch --interval 10s
  spliffctl stats -o json | jq '.values."spliff_cookie_misses_total"'""",
)
@options.form('{"since_time_ns": "…", "values": {name: number, …}}')
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval", type=Seconds("TIME"), help="Between two of them.  [default: 2s]; implies --watch."
)
@click.option("--utc", is_flag=True, help="Time of --watch in UTC instead of local time.")
@click.pass_obj
def command(path: str, form: str, watch: bool, interval: float | None, utc: bool) -> int:
    """Print the daemon's statistics."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    output = Output()
    clock = units.Clock(utc=utc)
    question = spliff_pb2.GetStatsRequest()

    def ask(stub: Any) -> pb.GetStatsResponse:
        answer: pb.GetStatsResponse = stub.GetStats(question, timeout=client.CALL_TIMEOUT_S)
        return answer

    if not (watch or interval):
        output.write(_shown(client.call(path, ask), form))
        return 0
    in_place = form == "text" and os.isatty(output.fd)
    # Not as an exception: one that is raised inside of gRPC's own code can be lost there.
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    while True:
        shown = _shown(client.call(path, ask), form)
        if form == "text":
            shown = f"{clock.date_and_time(time.time_ns())}\n{shown}\n"
        if in_place:
            shown = HOME + shown.replace("\n", CLEAR_LINE + "\n") + CLEAR_BELOW
        output.write(shown)
        if interrupted.wait(interval or INTERVAL_S):
            raise KeyboardInterrupt


def _shown(answer: pb.GetStatsResponse, form: str) -> str:
    """The block, or its numbers on one line."""
    if form == "json":
        from spliffctl.render.json import to_json

        answer.ClearField("text")
        return to_json(answer) + "\n"
    from spliffctl.render.quote import lines

    return "".join(line + "\n" for line in lines(answer.text))
