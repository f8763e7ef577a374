"""The manual pages, made from what --help says: `manual.py FOLDER EPOCH` writes man1/ and man8/ there.

Takes the commands of spliffctl as click knows them and the text of `spliffd --help`; writes roff (man(7)).
Run by build.sh with the package's own interpreter. What help prints as it stands (epilogs) stays so.
"""

from __future__ import annotations

import gzip
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import click

from spliffctl.__main__ import COMMANDS, cli
from spliffd.__main__ import parser

SEE_ALSO = "spliffctl(1), spliffd(8)"


def roff(text: str) -> str:
    """Text as roff: no character of it is a request or an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in escaped.split("\n"))


def page(name: str, section: int, summary: str, body: str, date: str) -> str:
    """A page: its head, what it is called, and its sections."""
    head = f'.TH "{name.upper()}" "{section}" "{date}" "spliff {version("spliff")}" "spliff"'
    return f"{head}\n.SH NAME\n{roff(name)} \\- {roff(summary)}\n{body}.SH SEE ALSO\n{roff(SEE_ALSO)}\n"


def verbatim(text: str) -> str:
    """Lines as they stand."""
    return f".nf\n{roff(text)}\n.fi\n"


def of_command(command: click.Command, context: click.Context) -> str:
    """Synopsis, description, options and the epilog's paragraphs of a command."""
    pieces = " ".join(command.collect_usage_pieces(context))
    body = f".SH SYNOPSIS\n.B {roff(context.command_path)}\n{roff(pieces)}\n"
    body += f".SH DESCRIPTION\n{roff(' '.join((command.help or '').split()))}\n"
    every = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    records = [record for record in every if record]
    if records:
        options = "".join(
            f".TP\n.B {roff(names)}\n{roff(text) or chr(92) + '&'}\n" for names, text in records
        )
        body += f".SH OPTIONS\n{options}"
    if isinstance(command, click.Group):
        verbs = "".join(f".TP\n.B {roff(name)}\n{roff(text)}\n" for name, text in COMMANDS.items())
        body += f".SH COMMANDS\n{verbs}"
    if command.epilog:
        paragraphs = command.epilog.replace("\b\n", "").strip("\n")
        body += f".SH NOTES\n{verbatim(paragraphs)}"
    return body


def pages(date: str) -> dict[str, str]:
    """Every page by its path below share/man."""
    context = click.Context(cli, info_name="spliffctl")
    summary = "shows what this host says over TLS"
    result = {"man1/spliffctl.1": page("spliffctl", 1, summary, of_command(cli, context), date)}
    for name, about in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        title = f"spliffctl-{name}"
        about = about[:1].lower() + about[1:].rstrip(".")  # noqa: PLW2901 - as manuals write it
        result[f"man1/{title}.1"] = page(title, 1, about, of_command(command, inner), date)
    summary = "captures what programs say over TLS, for spliffctl"
    result["man8/spliffd.8"] = page(
        "spliffd", 8, summary, f".SH DESCRIPTION\n{verbatim(daemon_help())}", date
    )
    return result


def daemon_help() -> str:
    """What `spliffd --help` prints on a terminal of 80 columns."""
    os.environ["COLUMNS"] = "80"
    return parser().format_help().rstrip()


def write(folder: str, epoch: int) -> None:
    """Writes the pages, compressed as Debian wants them."""
    date = datetime.fromtimestamp(epoch, UTC).date().isoformat()
    for path, text in pages(date).items():
        target = os.path.join(folder, path + ".gz")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
