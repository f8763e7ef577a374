"""``spliffctl processes``: the coverage ledger, which processes speak TLS and whether it is seen decrypted.

Takes the daemon's answer to ListProcesses, prints a table or one JSON object a line. What is not covered
comes first. ``spliffctl why`` explains one of them. Never looks at /proc itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spliffctl import options

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

ORDER = {"not": 0, "partly": 1, "covered": 2}


@click.command(
    "processes",
    epilog="""A process is covered when probes fired on every TLS connection that packets show of
it. SEEN is how many of its TLS connections that were; -v shows files and connections.

\b
Examples:
  spliffctl processes
  spliffctl processes --not-covered -v
  spliffctl why --pid 1234
  spliffctl processes -o json | jq 'select(.process.reason == "static")'""",
)
@options.pids
@click.option("--not-covered", is_flag=True, help="Only those that are not covered, or only partly.")
@click.option("-v", "--verbose", is_flag=True, help="Show reasons in words, files and connections too.")
@options.form()
@click.pass_obj
def command(path: str, pids: tuple[int, ...], not_covered: bool, verbose: bool, form: str) -> int:
    """List the processes that speak TLS, and whether it is seen decrypted."""
    from spliffctl.output import Output

    found = ask(path, pids)
    if not_covered:
        found = [one for one in found if one.covered in ("not", "partly")]
    found.sort(key=lambda one: (ORDER.get(one.covered, 3), one.process.comm, one.process.pid))
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write("".join(item_line("process", one) + "\n" for one in found))
    else:
        lines = _lines(found, output.fd, verbose=verbose, filtered=bool(pids or not_covered))
        output.write("".join(line + "\n" for line in lines))
    return 0


def ask(path: str, pids: tuple[int, ...]) -> list[pb.ProcessCoverage]:
    """The ledger, or its entries of ``pids``."""
    from spliffctl import client
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.ListProcessesRequest(pids=pids)
    answer = client.call(path, lambda stub: stub.ListProcesses(question, timeout=client.CALL_TIMEOUT_S))
    return list(answer.processes)


def _lines(found: list[pb.ProcessCoverage], fd: int, *, verbose: bool, filtered: bool) -> list[str]:
    from spliffctl.render.colour import palette
    from spliffctl.render.quote import quote
    from spliffctl.render.table import table

    if not found:
        if filtered:
            return ["No such process speaks TLS inside the scope."]
        return ["No process inside the scope has spoken TLS yet (spliffctl status)."]
    heading = ("COVERED", "REASON", "SEEN", "LIBRARY", "PROCESS")
    rows = [(one.covered, one.reason, seen(one), ",".join(one.libraries), name(one)) for one in found]
    lines = table(heading, rows, palette("auto", fd))
    if not verbose:
        return lines
    result = lines[:1]
    for line, one in zip(lines[1:], found, strict=True):
        result.append(line)
        if one.detail:
            result.append(f"    {quote(one.detail)}")
        result += [f"    {text}" for text in (*files(one), *missed(one))]
    return result


def seen(one: pb.ProcessCoverage) -> str:
    """``3/5``: TLS connections whose plaintext was seen, of all."""
    return f"{one.captured_connections}/{one.tls_flows}"


def name(one: pb.ProcessCoverage) -> str:
    """The process, as other lists name it."""
    from spliffctl.render import wire

    return wire.process(one.process) + (" ended" if one.ended else "")


def files(one: pb.ProcessCoverage) -> list[str]:
    """Its files with TLS code, one a line."""
    from spliffctl.render.quote import quote

    return [
        f"{quote(file.state)}: {quote(file.path)}{' (' + quote(file.library) + ')' if file.library else ''}"
        f"{': ' + quote(file.reason) if file.reason else ''}"
        for file in one.files
    ]


def missed(one: pb.ProcessCoverage) -> list[str]:
    """Connections that were not seen decrypted, one a line."""
    from spliffctl.render import wire

    return [f"not seen: {wire.pair(connection)}" for connection in one.missed]
