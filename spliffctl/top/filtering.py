"""The filter line: what ``watch`` takes as options, or an expression, as a Filter of the contract.

Takes the line as it is typed (``--host 'api.*' --status 5xx``, or ``response.status >= 500``), returns the
message. Raises ValueError with a sentence. Does not ask the daemon.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from spliffctl import filters

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


def options() -> list[click.Option]:
    """The options that make up a filter, those of ``watch``."""
    made = [
        click.Option([option, field], type=kind, multiple=True, help=description)
        for option, field, kind, description in filters.OPTIONS
    ]
    expression = click.Option(
        ["--filter", "expression"], metavar="EXPR", help="Expression over the fields of an exchange."
    )
    return [*made, expression]


def parse(line: str) -> pb.Filter:
    """The filter of a line; an empty one matches everything."""
    line = line.strip()
    if line and not line.startswith("-"):
        return filters.build({"expression": line})
    command = click.Command("filter", params=list(options()), add_help_option=False)
    try:
        context = command.make_context("filter", shlex.split(line))
    except click.ClickException as error:
        raise ValueError(error.format_message()) from None
    values: dict[str, Any] = context.params
    return filters.build(values)


def line_of(values: dict[str, Any]) -> str:
    """The line that stands for options given on the command line."""
    words = []
    for option in options():
        name = str(option.name)
        given = values.get(name) or ()
        for value in (given,) if isinstance(given, str) else given:
            shown = f"{value[0]}-{value[1]}" if isinstance(value, tuple) else str(value)
            words += [option.opts[0], shown]
    return shlex.join(words)
