"""``spliffctl libraries``: the files that hold TLS code, and where their probes sit.

Takes the daemon's answer to ListLibraries, prints a table or one JSON object a line. Rows are sorted by
library and path. Never looks at the files itself.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from spliffctl import options

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


@click.command(
    "libraries",
    epilog="""Placement says where the probes of a file sit: "internal" at a cheaper instruction
inside the function, "entry" and "return" at its ends; -v lists each with its proof.

\b
Examples:
  spliffctl libraries
  spliffctl libraries -v
  spliffctl libraries -o json | jq 'select(.library.state != "attached")'""",
)
@click.option("-v", "--verbose", is_flag=True, help="List every probe site too.")
@options.form()
@click.pass_obj
def command(path: str, verbose: bool, form: str) -> int:
    """List the TLS libraries found and where their probes sit."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.ListLibrariesRequest()
    answer = client.call(path, lambda stub: stub.ListLibraries(question, timeout=client.CALL_TIMEOUT_S))
    libraries = sorted(answer.libraries, key=lambda library: (library.library, library.path))
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write("".join(item_line("library", library) + "\n" for library in libraries))
    else:
        lines = _lines(libraries, output.fd, verbose=verbose)
        output.write("".join(line + "\n" for line in lines))
    return 0


def _lines(libraries: list[pb.Library], fd: int, *, verbose: bool) -> list[str]:
    from spliffctl.render.colour import palette
    from spliffctl.render.quote import quote
    from spliffctl.render.table import table

    if not libraries:
        return ["No TLS library found yet: none is mapped by a process inside the scope (spliffctl status)."]
    colours = palette("auto", fd)
    heading = ("LIBRARY", "STATE", "PLACEMENT", "PATH", "REASON")
    rows = [(lib.library, lib.state, _placement(lib), lib.path, lib.reason) for lib in libraries]
    lines = table(heading, rows, colours)
    if not verbose:
        return lines
    result = lines[:1]
    for line, library in zip(lines[1:], libraries, strict=True):
        result.append(line)
        device, build_id = quote(library.device) or "?", quote(library.build_id) or "-"
        result.append(f"    file {device} inode {library.inode} build id {build_id}")
        result.extend(
            f"    {quote(site.placement):<8}  {site.offset:#x}  {quote(site.symbol)}"
            f"{'  (' + quote(site.proof) + ')' if site.proof else ''}"
            for site in library.sites
        )
    return result


def _placement(library: pb.Library) -> str:
    """``8 internal, 2 return``: how many probes sit in which kind of place."""
    kinds = Counter(site.placement for site in library.sites)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
