"""``spliffctl list``: exchanges of the daemon's history, one line each, with the id that ``show`` takes.

Takes the filters of ``watch``; prints the last of what matches, oldest first, and ends. Losses stand where
they happened. Never follows.
"""

from __future__ import annotations

import time
from typing import Any

import click

from spliffctl import filters, history, options
from spliffctl.commands.watch import filter_options

DEFAULT_COUNT = 50
"""A screen or two; -n gives more."""


@click.command(
    "list",
    epilog="""The filters are those of spliffctl watch. The number in front is what show takes;
numbers start anew when the daemon does.

\b
Examples:
  spliffctl list
  spliffctl list -n 5 --status 5xx
  spliffctl list --since 10m --unit nginx.service --filter 'duration_ns > 1s'
  spliffctl list -o json | jq -r .exchange.request.path""",
)
@filter_options
@click.option(
    "-n", "count", type=history.LAST, default=None, help=f"The last N that match.  [default: {DEFAULT_COUNT}]"
)
@click.option(
    "--since", type=history.SINCE, help="All since then, unless -n says less: 5m, 2026-11-22T15:04."
)
@options.form()
@options.utc
@click.pass_obj
def command(path: str, /, count: int | None, since: Any, form: str, utc: bool, **selected: Any) -> int:
    """List what the daemon remembers, one line for each exchange."""
    from spliffctl import client
    from spliffctl.errors import RefusedError
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    request = spliff_pb2.WatchRequest(
        filter=filters.build(selected),
        since_time_ns=history.since_ns(since, time.time_ns()),
        last=count or (0 if since else DEFAULT_COUNT),
        follow=False,
    )
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        def line(item: Any, kind: str) -> str:
            return item_line(kind, getattr(item, kind)) + "\n"
    else:
        line = _text_line(output.fd, utc=utc)
    try:
        for items in client.stream(path, request):
            kinds = [(item, item.WhichOneof("kind")) for item in items]
            output.write("".join([line(item, kind) for item, kind in kinds if kind in ("exchange", "loss")]))
    except RefusedError as error:
        raise RefusedError(filters.pointed_at(str(error), selected.get("expression"))) from None
    return 0


def _text_line(fd: int, *, utc: bool) -> Any:
    from spliffctl.render.colour import palette
    from spliffctl.render.text import TextOptions, TextRenderer

    renderer = TextRenderer(TextOptions(compact=True, utc=utc), palette("auto", fd))

    def line(item: Any, kind: str) -> str:
        if kind == "loss":
            return renderer.loss(item.loss)
        return f"{item.exchange.id:>7}  {renderer.exchange(item.exchange, None)}"

    return line
