"""``spliffctl flows``: the TCP flows that are open, and the interfaces that see their packets.

Takes the daemon's answer to ListFlows, prints a table or one JSON object a line. Rows are sorted by process
and connection. ``--pid`` is asked of the daemon; ports and interfaces are looked for here. Never follows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from spliffctl import filters, options, units

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


class Interface(filters.Checked):
    """The name of a network interface; it may be gone, or be in another namespace."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """This host's interfaces."""
        del ctx, param
        try:
            names = sorted(os.listdir("/sys/class/net"))
        except OSError:
            names = []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(
    "flows",
    epilog="""WIRE says which packet hook saw the flow on which interface, in the order of the
first packet (tc:wg0,xdp:eth0); "-" means that no hook has seen a packet of it.
SENT and RCVD are bytes on the first of them, headers included; -v shows more.
CONNECTION begins with this host's end; the arrow points to who was called.

\b
Options of one kind are alternatives, different kinds must all hold.

\b
Examples:
  spliffctl flows
  spliffctl flows --pid 1234 -v
  spliffctl flows --interface wg0 --port 443
  spliffctl flows -o json | jq 'select(.flow.wire == "NONE")'""",
)
@options.pids
@click.option("--port", "ports", type=filters.PORT, multiple=True, help="Port, local or remote.")
@click.option(
    "--interface", "interfaces", type=Interface("NAME"), multiple=True, help="Interface that saw its packets."
)
@click.option("--tls", is_flag=True, help="Only flows on which a TLS ClientHello was seen.")
@click.option("-v", "--verbose", is_flag=True, help="Show cookies, times and each interface too.")
@options.form()
@click.pass_obj
def command(
    path: str,
    pids: tuple[int, ...],
    ports: tuple[int, ...],
    interfaces: tuple[str, ...],
    tls: bool,
    verbose: bool,
    form: str,
) -> int:
    """List the TCP flows that are open, and the interfaces that see their packets."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.ListFlowsRequest(pids=pids)
    answer = client.call(path, lambda stub: stub.ListFlows(question, timeout=client.CALL_TIMEOUT_S))
    flows = [flow for flow in answer.flows if _matches(flow, ports, interfaces, tls=tls)]
    flows.sort(key=_order)
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write("".join(item_line("flow", flow) + "\n" for flow in flows))
    else:
        filtered = bool(pids or ports or interfaces or tls)
        lines = _lines(flows, output.fd, verbose=verbose, filtered=filtered)
        output.write("".join(line + "\n" for line in lines))
    return 0


def _matches(flow: pb.Flow, ports: tuple[int, ...], interfaces: tuple[str, ...], *, tls: bool) -> bool:
    connection = flow.connection
    if ports and connection.local.port not in ports and connection.remote.port not in ports:
        return False
    if interfaces and not any(hop.interface in interfaces for hop in connection.path):
        return False
    return flow.client_hello or not tls


def _order(flow: pb.Flow) -> tuple[str, int, str, int, str, int]:
    local, remote = flow.connection.local, flow.connection.remote
    return flow.process.comm, flow.process.pid, local.address, local.port, remote.address, remote.port


def _lines(flows: list[pb.Flow], fd: int, *, verbose: bool, filtered: bool) -> list[str]:
    from spliffctl.render import wire
    from spliffctl.render.colour import palette
    from spliffctl.render.table import table

    if not flows:
        if filtered:
            return ["No open flow matches."]
        return ["No TCP flow is open inside the scope (spliffctl status)."]
    heading = ("WIRE", "SENT", "RCVD", "PROCESS", "CONNECTION")
    rows = []
    for flow in flows:
        connection = flow.connection
        arrow = {"client": "→", "server": "←"}.get(connection.role, "–")
        rows.append(
            (
                wire.hooks(flow.wire, connection),
                _short(connection.bytes_sent),
                _short(connection.bytes_received),
                wire.process(flow.process),
                f"{wire.endpoint(connection.local)} {arrow} {wire.endpoint(connection.remote)}",
            )
        )
    lines = table(heading, rows, palette("auto", fd))
    if not verbose:
        return lines
    result = lines[:1]
    clock = units.Clock()
    for line, flow in zip(lines[1:], flows, strict=True):
        result.append(line)
        result += [f"    {text}" for text in _details(flow, clock)]
    return result


def _short(size: int) -> str:
    """``512``, ``1.2K``, ``3.4M``: a table has two of them a line."""
    number, unit = units.size(size).split()
    return number + unit.rstrip("iB")


def _details(flow: pb.Flow, clock: units.Clock) -> list[str]:
    from spliffctl.render.quote import quote
    from spliffctl.render.wire import hook

    connection = flow.connection
    who = f"{quote(connection.family) or '?'} {quote(connection.role) or '?'}"
    first, last = clock.time_of_day(flow.first_time_ns), clock.time_of_day(flow.last_time_ns)
    packets = f"{connection.packets_sent:,} sent, {connection.packets_received:,} received"
    hello = ", ClientHello seen" if flow.client_hello else ""
    return [
        f"cookie {connection.socket_cookie:#x}, namespace {connection.netns_cookie}, {who}{hello}",
        f"seen from {first} to {last}, packets {packets}",
        *(
            f"{hook(hop.hook, hop.interface)}  {units.count(hop.packets, 'packet')}"
            for hop in connection.path
        ),
    ]
