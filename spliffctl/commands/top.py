"""``spliffctl top``: the full-screen view.

Takes the options of a filter, checks what can be checked while there is an ordinary terminal to say it on,
and runs the application. textual is imported here and only when the view starts.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import click

from spliffctl import options
from spliffctl.commands.watch import filter_options
from spliffctl.errors import ClientError


@click.command(
    "top",
    epilog="""\b
Keys:
  up, down, page up, page down, home   move; the list stands still meanwhile
  f, end       follow the newest again     p, space   pause, and go on
  enter        everything about the exchange
  /            filter: options of watch, or an expression; empty: everything
  c            copy as curl to the terminal's clipboard (OSC 52, also by ssh)
  w            write the same to exchange-ID.sh in the current folder
  s            statistics, with the correlation rate
  escape, q    back, quit

\b
The latest 10,000 exchanges are kept, with 16 KiB of each body.

\b
Examples:
  spliffctl top
  spliffctl top --unit nginx.service --status 5xx
  spliffctl top --filter 'duration_ns > 250ms'""",
)
@filter_options
@options.utc
@click.pass_obj
def command(path: str, /, utc: bool, **selected: Any) -> int:
    """Show it full-screen: live list, details, statistics."""
    if not (os.isatty(0) and os.isatty(1)):
        raise click.UsageError("top needs a terminal; for pipes and files there is spliffctl watch.")
    if find_spec("textual") is None:
        raise ClientError("top needs textual: pip install 'spliff[tui]' (the Debian package has it)")
    from spliffctl import client
    from spliffctl.top.filtering import line_of

    client.way(path)
    from spliffctl.top.app import run

    return run(path, line_of(selected), utc=utc)
