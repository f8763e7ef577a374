"""Options that several commands have, each in one place, so that they read the same everywhere.

Decorators for click commands; nothing here asks the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from spliffctl import filters

Command = TypeVar("Command", bound=Callable[..., Any])


def form(json: str = "one object a line") -> Callable[[Command], Command]:
    """``-o text|json`` as ``form``; ``json`` says what JSON is."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help=f"json: {json}.",
    )


utc = click.option("--utc", is_flag=True, help="Times in UTC instead of local time.")

pids = click.option("--pid", "pids", type=filters.PID, multiple=True, help="Process id.")
