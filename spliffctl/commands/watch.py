"""``spliffctl watch``: shows exchanges as they happen.

Takes the options, builds the request and the printer, runs the stream and turns its end into an exit code.
Options that only shape text are refused beside other formats instead of being ignored.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from spliffctl import filters, history, options, units
from spliffctl.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ClientError, RefusedError

if TYPE_CHECKING:
    from spliffctl.child import Child
    from spliffctl.export.file import Rotation
    from spliffctl.items import Printer
    from spliffctl.stream import End, Watch

FORMS = ["text", "json", "har", "pcapng", "mitmproxy"]

LARGEST_QUEUE = (1 << 64) - 1
"""A watcher of bodies asks for all the room that the daemon's configuration allows: a download outruns any
reader for as long as it lasts, and the default would hold 12 MiB of it."""

AFTER_INTERRUPT_S = 2.0
"""How long an interrupted command may take to end by itself before it gets SIGTERM."""


class Duration(filters.Checked):
    """``30s``, ``5m``, ``1h`` or seconds."""

    def check(self, text: str) -> float:
        """Seconds."""
        return units.parse_duration(text)


class Size(filters.Checked):
    """``4096``, ``64K``, ``1M``."""

    def check(self, text: str) -> int:
        """Bytes."""
        return units.parse_size(text)


class Rotate(filters.Checked):
    """``100M`` or ``10m``."""

    def check(self, text: str) -> Rotation:
        """When a file is full."""
        from spliffctl.export.file import parse_rotation

        return parse_rotation(text)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that make up the filter."""
    function = click.option(
        "--filter", "expression", metavar="EXPR", help="Expression over the fields of an exchange; see below."
    )(function)
    for option, field, kind, description in reversed(filters.OPTIONS):
        function = click.option(option, field, type=kind, multiple=True, help=description)(function)
    return function


@click.command(
    "watch",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Filters of one kind are alternatives, different kinds must all hold:
  --host 'api.*' --host example.com --status 5xx
means (api.* or example.com) and 5xx. They are evaluated in the daemon.

\b
An expression names fields as -o json does; all must hold, options too:
  --filter 'response.status >= 500 || duration_ns > 250ms'
  --filter 'request.path.matches("^/v[12]/") && !(tls.version in ["TLSv1.3"])'
  --filter '"x-request-id" in request.headers && request.body_size > 1M'
There are == != < <= > >= in && || ! and brackets; x.startsWith(s)
.endsWith(s) .contains(s) .matches(regex) .glob(glob) .lowerAscii(), size(x),
has(field), request.headers["name"]; durations 100ms 1.5s 2m, sizes 64K 1M.

\b
Reading the lines:
  15:11:59.346 → GET https://…  h2 192.0.2.10:48372 → 192.0.2.9:443 curl (40)
  15:11:59.639 ← 200 https://…  h2 … curl (40) 294.3 ms  xdp:eth0

→ is a request, ← a response. The addresses are "opener → accepter" of the
connection: local → remote for a client; remote → local for a server, whose process
is marked "(812, server)". The last item is the evidence: hook and interface that
saw the packets, else how plaintext was tied to a socket (nested, fd, thread, timing, none).
[in progress] marks an exchange that goes on; events and lines of JSON in it are shown as
they come. [truncated, 120 bytes missing] marks what was not seen whole; "!! lost" what was lost.
Strings from the wire are quoted: no control character reaches the terminal.

A command is started once the watch is in place; with it and its descendants the
watch ends, and its exit status is returned. Where standard output holds JSON or a file
format, the command's goes to standard error. --count and --for end the watch, not the command.

Files (-w): har (HAR 1.2, for browsers' developer tools), pcapng (plaintext as TCP
packets; wireshark -d tcp.port==443,http shows HTTP/2 too), mitmproxy (mitmproxy -nr).
Whole also after Ctrl-C or on a full disk; readable by you only.

\b
Examples:
  spliffctl watch --pid 1234
  spliffctl watch --unit nginx.service --status 5xx -l
  spliffctl watch --host '*.example.com' --method POST -b --body-limit 4K
  spliffctl watch --since 10m --no-follow --status 5xx
  spliffctl watch --reconnect -o json --field id --field request.path
  spliffctl watch -o json --for 1m | jq .exchange.request.path
  spliffctl watch --for 1m -w capture.har
  spliffctl watch --unit api.service -w api.pcapng --rotate 100M
  spliffctl watch -b -- curl -s https://api.example.com/users""",
)
@filter_options
@click.option("-b", "--body", is_flag=True, help="Show bodies.")
@click.option(
    "--body-limit", type=Size("BYTES"), help="At most this much of each body (64K, 1M); implies -b."
)
@click.option("-x", "--hexdump", is_flag=True, help="Show bodies as hexdump; implies -b.")
@click.option(
    "--descriptor-set",
    "descriptor_sets",
    type=click.Path(dir_okay=False),
    multiple=True,
    help="Names for gRPC messages (protoc --include_imports --descriptor_set_out); implies -b.",
)
@click.option(
    "--proto-path",
    "proto_paths",
    type=click.Path(exists=True, file_okay=False),
    multiple=True,
    help="The same from a folder of .proto files, which protoc compiles.",
)
@click.option("-c", "--compact", is_flag=True, help="One line for each exchange.")
@click.option("-l", "--latency", is_flag=True, help="Time to the first byte and in total.")
@click.option("-H", "--handshakes", is_flag=True, help="Show TLS handshakes too.")
@click.option("-C", "--no-colour", "--no-color", is_flag=True, help="The same as --color never.")
@click.option(
    "--color",
    "--colour",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours; auto: on a terminal, unless NO_COLOR is set.",
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(FORMS),
    help="json: one object a line. The last three hold bodies, as with -b. Without -o the name of -w "
    "decides; else text.",
)
@click.option(
    "-w", "--write", "file", metavar="FILE", help="Write to FILE, which appears when it is complete."
)
@click.option(
    "--rotate",
    type=Rotate("SIZE|TIME"),
    help="Begin another file after 100M or 10m; files are named FILE-START-NUMBER.",
)
@options.utc
@click.option(
    "--since", type=history.SINCE, help="Begin with what is known since then: 5m, 2026-11-22T15:04."
)
@click.option("--last", type=history.LAST, help="Begin with the last N exchanges that match.")
@click.option("--no-follow", is_flag=True, help="End where the present begins; with --since or --last.")
@click.option(
    "--reconnect", is_flag=True, help="Wait for a daemon that restarts, and go on without a gap or a repeat."
)
@click.option(
    "--field", "fields", multiple=True, metavar="PATH", help="Only this field (request.path); -o json."
)
@click.option("--count", type=filters.Number("N", 1, 1 << 62), help="Stop after N exchanges.")
@click.option(
    "--for", "seconds", type=Duration("DURATION"), help="Stop after 30s, 5m, 1h; a number is seconds."
)
@click.option(
    "--reveal", is_flag=True, help="Secrets unmasked; only for the daemon's reveal_group, and audited."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.pass_obj
def command(
    path: str,
    /,
    body: bool,
    body_limit: int | None,
    hexdump: bool,
    descriptor_sets: tuple[str, ...],
    proto_paths: tuple[str, ...],
    compact: bool,
    latency: bool,
    expression: str | None,
    handshakes: bool,
    no_colour: bool,
    color: str,
    form: str | None,
    file: str | None,
    rotate: Rotation | None,
    utc: bool,
    since: Any,
    last: int | None,
    no_follow: bool,
    reconnect: bool,
    fields: tuple[str, ...],
    count: int | None,
    seconds: float | None,
    reveal: bool,
    command: tuple[str, ...],
    **selected: Any,
) -> int:
    """Show what this host says over TLS, as it happens."""
    from spliffctl.export import target as export

    form = form or export.form_of(file)
    named = bool(descriptor_sets or proto_paths)
    bodies = body or hexdump or named or body_limit is not None or form in export.FORMS
    export.refuse(form, file, rotate)
    _refuse_contradictions(
        form, command, selected, bodies=bodies, hexdump=hexdump, compact=compact, latency=latency, named=named
    )

    if no_follow and not (since or last):
        raise click.UsageError("--no-follow shows history only: say how much of it with --since or --last.")
    if fields and form != "json":
        raise click.UsageError("--field chooses what -o json prints; text has its own form.")

    from spliffctl import client, schema
    from spliffctl.output import Output

    # Before the fork, so that an absent daemon or folder is told without a process to clean up.
    client.way(path)
    known = schema.load(descriptor_sets, proto_paths)
    output = Output()
    target = export.Target(form, file, rotate, output)
    child = None
    if command:
        from spliffctl.child import Child

        child = Child(command, stdout_to_stderr=form != "text" and file is None)

    from spliffctl.render.colour import palette
    from spliffctl.render.text import TextOptions, TextRenderer
    from spliffctl.stream import Watch
    from spliffd.pb import spliff_pb2

    request = spliff_pb2.WatchRequest(
        filter=filters.build(
            {**selected, "expression": expression}, (os.getpid(), child.pid) if child else ()
        ),
        bodies=bodies,
        body_limit=body_limit or 0,
        handshakes=handshakes,
        messages=True,
        progress=form not in export.FORMS,
        queue_bytes=LARGEST_QUEUE if bodies else 0,
        reveal=reveal,
        since_time_ns=history.since_ns(since, time.time_ns()),
        last=last or 0,
        follow=False if no_follow else None,
        fields=fields,
    )
    renderer = None
    if form == "text":
        options = TextOptions(bodies, hexdump, compact, latency, utc, known)
        renderer = TextRenderer(options, palette("never" if no_colour or file else color, output.fd))
    printer = target.printer(renderer, bodies=bodies, body_limit=body_limit or 0, count=count or 0)
    watch = Watch(path, request, printer, output, seconds=seconds, proof=reveal, reconnect=reconnect)
    try:
        with target.finished(printer):
            return _run(watch, printer, child)
    except RefusedError as error:
        raise RefusedError(filters.pointed_at(str(error), expression)) from None


def _refuse_contradictions(
    form: str,
    command: tuple[str, ...],
    selected: dict[str, Any],
    *,
    bodies: bool,
    hexdump: bool,
    compact: bool,
    latency: bool,
    named: bool,
) -> None:
    """Usage errors for options that cannot both be meant."""
    options = (("-x", hexdump), ("-c", compact), ("-l", latency), ("a schema", named))
    shaping = [name for name, given in options if given]
    if form != "text" and shaping:
        raise click.UsageError(f"{shaping[0]} shapes text, so it has no meaning with -o {form}.")
    if compact and bodies:
        raise click.UsageError("-c is one line for each exchange, so it cannot show bodies.")
    if command and (selected["pids"] or selected["ppids"]):
        raise click.UsageError("a command is watched by its own pid: leave --pid and --ppid away.")


def _run(watch: Watch, printer: Printer, child: Child | None) -> int:
    """Runs the watch; whatever ends it, the command is waited for and not left behind."""
    import asyncio

    from spliffctl.output import OutputClosedError
    from spliffctl.stream import End

    try:
        end = asyncio.run(watch.run(child))
    except KeyboardInterrupt:
        end = End.INTERRUPTED
    except OutputClosedError:
        end = End.OUTPUT_CLOSED
    except ClientError as error:
        if child:
            # The reason first: the command may go on for long.
            print(f"spliffctl: {error}", file=sys.stderr)
            child.cancel()
            return error.exit_code
        raise
    return _exit_code(end, watch, printer, child)


def _exit_code(end: End, watch: Watch, printer: Printer, child: Child | None) -> int:
    from spliffctl.stream import End

    if end in (End.INTERRUPTED, End.TERMINATED):
        print(f"spliffctl: {printer.totals}", file=sys.stderr)
        if child:
            child.cancel_or_end_within(AFTER_INTERRUPT_S)
        return EXIT_INTERRUPTED if end == End.INTERRUPTED else EXIT_TERMINATED
    if child is None:
        return 0
    if watch.command_error:
        print(
            f"spliffctl: cannot execute the command: {watch.command_error.strerror} "
            "(what follows the options is a command to run; see spliffctl watch --help)",
            file=sys.stderr,
        )
    return child.wait()
