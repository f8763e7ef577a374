"""``spliffctl stats``: the statistics block, as the daemon prints it at shutdown.

Takes the daemon's answer to GetStats, prints its text, or its numbers as one JSON object. Never computes a
figure of its own.
"""

from __future__ import annotations

import click


@click.command(
    "stats",
    epilog="""\b
Examples:
  spliffctl stats
  spliffctl stats -o json | jq '.values | with_entries(select(.key | startswith("spliff_lost")))'""",
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help='json: {"since_time_ns": "…", "values": {name: number, …}}.',
)
@click.pass_obj
def command(path: str, form: str) -> int:
    """Print the daemon's statistics."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffctl.render.quote import lines
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.GetStatsRequest()
    answer = client.call(path, lambda stub: stub.GetStats(question, timeout=client.CALL_TIMEOUT_S))
    if form == "json":
        from spliffctl.render.json import to_json

        answer.ClearField("text")
        Output().write(to_json(answer) + "\n")
    else:
        Output().write("".join(line + "\n" for line in lines(answer.text)))
    return 0
