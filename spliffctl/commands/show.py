"""``spliffctl show ID``: one exchange of the daemon's history, with everything that is known of it.

Takes an id as ``list`` prints it; asks the daemon once. Bodies come as far as history keeps them ([history]
body_limit). ``--body`` writes a body's bytes as they are, and nothing else. Never shows secrets: history has
none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from spliffctl import filters, options

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


@click.command(
    "show",
    epilog="""\b
Examples:
  spliffctl show 1234
  spliffctl show 1234 --body response > body
  spliffctl show 1234 -o json | jq .exchange.tls""",
)
@click.argument("number", metavar="ID", type=filters.Number("ID", 1, (1 << 64) - 1))
@click.option("--body", type=click.Choice(["request", "response"]), help="Write this body's bytes only.")
@click.option(
    "--epoch", type=filters.Number("EPOCH", 1, (1 << 64) - 1), help="The ids' epoch, if not the present."
)
@options.form("one object")
@options.utc
@click.pass_obj
def command(path: str, number: int, body: str | None, epoch: int | None, form: str, utc: bool) -> int:
    """Show one exchange of history: headers, bodies, timing, connection, correlation."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.GetExchangeRequest(id=number, epoch=epoch or 0)
    answer = client.call(path, lambda stub: stub.GetExchange(question, timeout=client.CALL_TIMEOUT_S))
    exchange = answer.exchange
    if body:
        return _write(getattr(exchange, body).body)
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write(item_line("exchange", exchange) + "\n")
    else:
        output.write(_text(exchange, output.fd, utc=utc))
    return 0


def _write(data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
    return 0


def _text(exchange: pb.Exchange, fd: int, *, utc: bool) -> str:
    from spliffctl.parts import PartStore
    from spliffctl.render.colour import palette
    from spliffctl.render.facts import facts, head
    from spliffctl.render.text import TextOptions, TextRenderer

    colours = palette("auto", fd)
    renderer = TextRenderer(TextOptions(latency=True, utc=utc), colours)
    bodies = PartStore().take(exchange)
    lines = [renderer.exchange(exchange, None)]
    for title, message, joined in (
        ("Request", exchange.request, bodies[0]),
        ("Response", exchange.response, bodies[1]),
    ):
        lines.append(f"\n{colours.method}{title}{colours.reset}\n")
        lines += [f"  {line}\n" for line in head(message)]
        lines.append(_body(joined, message, colours))
    lines.append("\n")
    lines += [f"{name:<12} {value}\n" for name, value in facts(exchange, utc=utc)]
    return "".join(lines)


def _body(body: Any, message: pb.Request | pb.Response, colours: Any) -> str:
    from spliffctl.render.content import content_lines

    if not body.segments:
        return f"  (body of {message.body_size:,} bytes, not kept)\n" if message.body_size else ""
    shown = "".join([f"{line}\n" for line in content_lines(body, message, colours, hexdump=False)])
    missing = (message.decoded_size or message.body_size) - len(body.data)
    return shown + (f"    … {missing:,} body bytes not kept …\n" if missing > 0 else "")
