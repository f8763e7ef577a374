"""``spliffctl interfaces``: the network interfaces of the daemon's namespace, and the hook that each has.

Takes the daemon's answer to ListInterfaces, prints a table or one JSON object a line. Rows are sorted by
index, which is the order of appearance. Never asks the kernel itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spliffctl import options

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


@click.command(
    "interfaces",
    epilog="""HOOK says where packets are seen: XDP (in the driver; sent packets by TC), TC (in the
stack), NONE. MODE is native or generic (XDP), tcx or clsact (TC). REASON says why this
hook, or what the kernel answered; a refused interface is tried again by itself.

\b
Examples:
  spliffctl interfaces
  spliffctl interfaces -o json | jq 'select(.interface.hook == "NONE")'
  sudoedit /etc/spliff/spliffd.toml     (section [interfaces])
  sudo systemctl reload spliffd""",
)
@options.form()
@click.pass_obj
def command(path: str, form: str) -> int:
    """List the network interfaces and their packet hooks."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.ListInterfacesRequest()
    answer = client.call(path, lambda stub: stub.ListInterfaces(question, timeout=client.CALL_TIMEOUT_S))
    interfaces = sorted(answer.interfaces, key=lambda interface: interface.index)
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write("".join(item_line("interface", interface) + "\n" for interface in interfaces))
    else:
        output.write("".join(line + "\n" for line in _lines(interfaces, output.fd)))
    return 0


def _lines(interfaces: list[pb.Interface], fd: int) -> list[str]:
    from spliffctl.render.colour import palette
    from spliffctl.render.table import table
    from spliffctl.units import size

    if not interfaces:
        return ["No network interface is known to spliffd (spliffctl status)."]
    heading = ("NAME", "HOOK", "MODE", "PACKETS", "BYTES", "REASON")
    rows = [
        (
            one.name,
            one.hook,
            one.mode,
            str(one.packets) if one.hook != "NONE" else "",
            size(one.bytes) if one.hook != "NONE" else "",
            one.reason,
        )
        for one in interfaces
    ]
    return table(heading, rows, palette("auto", fd))
