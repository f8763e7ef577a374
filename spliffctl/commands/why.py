"""``spliffctl why --pid N``: whether a process's TLS is seen decrypted, why not, and what to do about it.

Takes the daemon's answer to ListProcesses for one process, prints sentences (or the JSON that ``processes``
prints). The remedy for each reason is here; the daemon says which reason it is. Exits with 1 when there is no
such process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spliffctl import filters, options

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

REMEDIES = {
    "static": (
        "Run a build of the program that keeps its symbols (not stripped, TLS library not hidden), "
        "or one that uses the system's TLS library."
    ),
    "unknown_library": (
        "Its TLS library is not one of those that spliff knows (spliffctl libraries lists what was "
        "found); please report which one it is."
    ),
    "unsupported": "Use a version of the library that spliff supports, or report this one.",
    "attached_late": (
        "Nothing needs to be done: its new connections are seen. To see one of these, let the "
        "program connect again."
    ),
    "ktls": (
        "Switch the kernel's TLS off for this program (OpenSSL: Options = -KTLS in its "
        "configuration), or use what the packets tell."
    ),
    "probe_refused": (
        "See what the kernel says (journalctl -u spliffd), and whether another tracer holds the "
        "file; spliffd doctor checks the host."
    ),
    "probes_silent": (
        "It speaks TLS by other code than the probed library, for example a copy that is linked in;"
        " please report the program."
    ),
    "uncovered_namespace": (
        "spliffd hooks the interfaces of its own network namespace: what stays inside of another "
        "one is not seen as packets. Probes work there all the same: once it is seen to call a "
        "probed library, it is listed as covered."
    ),
    "out_of_scope": (
        "Widen the scope if you may: [scope] paths, cgroups and users in the configuration "
        "(spliffctl status shows it)."
    ),
    "32bit": "Run the 64-bit build of the program.",
    "unreadable": (
        "Look at the file: it is damaged, or not there any more; start the program from an intact one."
    ),
    "not_inspected": (
        "It ended, or spoke, before its files were looked at. Run it again: a library that is known"
        " is probed from the start."
    ),
}
"""What to do, by the reason that the daemon names; a test compares the list."""


@click.command(
    "why",
    epilog="""\b
Examples:
  spliffctl why --pid 1234
  spliffctl why --pid "$(pidof -s nginx)\"""",
)
@click.option("--pid", type=filters.PID, required=True, help="Process id.")
@options.form("as `processes` prints it")
@click.pass_obj
def command(path: str, pid: int, form: str) -> int:
    """Say whether a process's TLS is seen decrypted, why not, and what to do."""
    from spliffctl.commands.processes import ask
    from spliffctl.errors import ClientError
    from spliffctl.output import Output

    found = ask(path, (pid,))
    if not found:
        raise ClientError(f"there is no process {pid}: spliffctl processes lists those that speak TLS")
    output = Output()
    if form == "json":
        from spliffctl.render.json import item_line

        output.write("".join(item_line("process", one) + "\n" for one in found))
    else:
        output.write("\n".join(text(one) for one in found))
    return 0


def text(one: pb.ProcessCoverage) -> str:
    """The answer, some lines."""
    from spliffctl.commands.processes import files, missed, name
    from spliffctl.render.quote import quote

    lines = [f"{name(one)}: {_answer(one)}"]
    if one.detail:
        lines.append(f"Why: {quote(one.detail)} [{quote(one.reason)}].")
    if one.reason in REMEDIES:
        lines.append(f"What to do: {REMEDIES[one.reason]}")
    details = [*files(one), *missed(one)]
    return "\n".join([*lines, *(f"  {line}" for line in details)]) + "\n"


def _answer(one: pb.ProcessCoverage) -> str:
    seen, flows = one.captured_connections, one.tls_flows
    if one.covered == "covered":
        return f"its TLS is seen decrypted, {seen} of {flows} connections."
    if one.covered == "partly":
        return f"its TLS is seen decrypted in part, {seen} of {flows} connections."
    if one.covered == "not":
        return "its TLS is not seen decrypted."
    if one.reason:
        return "it is not looked at."
    if any(file.state == "attached" for file in one.files):
        return "it has not spoken TLS yet; its library is probed, so it will be seen."
    return "it has not spoken TLS yet."
