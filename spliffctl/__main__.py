"""spliffctl: the command line. Finds the command, runs it, turns problems into one line and a code.

Takes argv, returns the exit code. Commands are imported when they are needed, and each imports gRPC only when
it runs, so that ``--help`` and completion answer at once. Never prints a traceback for what an operator
can mend.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from spliffctl.client import DEFAULT_SOCKET
from spliffctl.errors import EXIT_INTERRUPTED, ClientError
from spliffctl.output import OutputClosedError

PROGRAM = "spliffctl"

COMMANDS = {
    "watch": "Show what this host says over TLS, as it happens.",
    "top": "Show it full-screen: live list, details, statistics.",
    "list": "List what the daemon remembers, one line for each exchange.",
    "show": "Show one exchange of history: headers, bodies, timing, connection, correlation.",
    "flows": "List the TCP flows that are open, and the interfaces that see their packets.",
    "processes": "List the processes that speak TLS, and whether it is seen decrypted.",
    "why": "Say whether a process's TLS is seen decrypted, why not, and what to do.",
    "interfaces": "List the network interfaces and their packet hooks.",
    "libraries": "List the TLS libraries found and where their probes sit.",
    "stats": "Print the daemon's statistics.",
    "status": "Show what runs, what it captures, and how well it is.",
    "token": "Print a token that proves who you are, for other gRPC clients.",
    "debug": "Switch the daemon's debug log, for root and the reveal group.",
    "completion": "Print the shell's completion script.",
}
"""Commands with their summaries, so that --help need not import them; a test compares."""


class LazyGroup(click.Group):
    """A group whose commands are modules of ``spliffctl.commands``, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people need them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None when there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"spliffctl.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} {version('spliff')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  spliffctl watch                         everything, until Ctrl-C
  spliffctl watch --unit nginx.service    one service
  spliffctl watch -b -- curl https://…    one command, with bodies
  spliffctl status --wait 10              wait until the daemon is ready

Exit status: 0 done, 2 usage, 69 the daemon cannot be reached, 74 a file cannot be
written, 77 not permitted, 130 interrupted; of `watch -- COMMAND` that of the command.""",
)
@click.option(
    "--socket",
    default=DEFAULT_SOCKET,
    envvar="SPLIFF_SOCKET",
    metavar="PATH",
    show_default=True,
    show_envvar=True,
    help="The daemon's socket.",
)
@click.option("--tls", metavar="HOST:PORT", help="A daemon on another host ([tls] there), not a socket.")
@click.option("--tls-ca", metavar="FILE", help="Authorities of the daemon's certificate, PEM.")
@click.option("--tls-cert", metavar="FILE", help="Your certificate, PEM: the daemon knows you by its names.")
@click.option("--tls-key", metavar="FILE", help="Its private key, PEM.")
@click.option("--tls-name", metavar="NAME", default="", help="Name in the daemon's certificate, if not HOST.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def cli(
    ctx: click.Context,
    socket: str,
    tls: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_name: str,
) -> None:
    """Show what this Linux host says over TLS: decrypted, tied to process and packets.

    spliffd captures; spliffctl asks it and needs no privileges but the group of its socket.
    """
    from spliffctl.client import Remote, socket_path

    ctx.obj = socket_path(socket)
    if tls or tls_ca or tls_cert or tls_key or tls_name:
        if not (tls and tls_ca and tls_cert and tls_key):
            raise click.UsageError(
                "a remote daemon takes --tls, --tls-ca, --tls-cert and --tls-key together."
            )
        ctx.obj = Remote(tls, tls_ca, tls_cert, tls_key, tls_name)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # Python's word for it, whatever its type says: descriptor 1 was closed (>&-), and the next file or
    # socket to be opened would get that number and our output.
    if getattr(sys, "stdout", None) is None:
        print(f"{PROGRAM}: standard output is closed", file=sys.stderr)
        return ClientError.exit_code
    try:
        result: Any = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ClientError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except OutputClosedError:
        return 0
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
