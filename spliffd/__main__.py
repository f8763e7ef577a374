"""The command line of spliffd: argv -> Config -> run, or one line that says why not.

Exit codes: 0 clean, 1 failed, 2 usage or configuration, 3 this host cannot run it, 4 already running.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from spliffd.lean import without

with without("ssl"):  # asyncio's TLS streams: 4.5 MiB of OpenSSL in root's process, where nothing speaks TLS
    import asyncio
from spliffd import __version__, config, journal
from spliffd.errors import SpliffError, UsageError

EXAMPLES = """\
examples:
  sudo spliffd                           the whole host, in the foreground
  sudo spliffd doctor                    what this host lacks, and the remedy
  sudo spliffd --scope-cgroup /sys/fs/cgroup/system.slice/nginx.service
  spliffd config show                    every setting with its default
  spliffctl watch --pid 1234             (another terminal) see what it says
"""


def parser() -> argparse.ArgumentParser:
    """The options of the contract."""
    parse = argparse.ArgumentParser(
        prog="spliffd",
        description="Shows what this host says over TLS: decrypted, tied to process and packets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parse.add_argument("--version", action="version", version=f"spliffd {__version__}")
    parse.add_argument("--config", metavar="FILE", help=f"configuration (default {config.DEFAULT_PATH})")
    parse.add_argument("--socket", metavar="PATH", help=f"gRPC socket (default {config.DEFAULT_SOCKET})")
    parse.add_argument("--metrics", metavar="ADDR:PORT|off", help="Prometheus endpoint")
    parse.add_argument("-d", "--debug", action="store_true", help="debug log")
    parse.add_argument(
        "--no-relocate",
        action="store_true",
        help="probe every function at its first instruction: dearer, and never wrong",
    )
    for name, what in (("cgroup", "DIR"), ("user", "USER"), ("path", "GLOB")):
        parse.add_argument(
            f"--scope-{name}", metavar=what, action="append", default=[], help=f"capture only this {name}"
        )
        parse.add_argument(
            f"--scope-exclude-{name}",
            metavar=what,
            action="append",
            default=[],
            help=f"never capture this {name}",
        )
    verbs = parse.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("doctor", help="check the host; exit 0 when spliffd can run, else 1")
    configs = verbs.add_parser("config", help="check or show the configuration")
    configs.add_argument("what", choices=("check", "show"))
    return parse


def settings(options: argparse.Namespace) -> config.Config:
    """File first, then the command line over it."""
    loaded = config.load(Path(options.config) if options.config else None)
    scope = loaded.scope
    if any(
        getattr(options, f"scope_{n}") or getattr(options, f"scope_exclude_{n}")
        for n in ("cgroup", "user", "path")
    ):
        # A scope on the command line replaces the file's: it never widens by accident.
        scope = config.Scope(
            options.scope_cgroup,
            options.scope_user,
            options.scope_path,
            options.scope_exclude_cgroup,
            options.scope_exclude_user,
            options.scope_exclude_path,
        )
    return config.check(
        msgspec.structs.replace(
            loaded,
            socket=options.socket or loaded.socket,
            debug=options.debug or loaded.debug,
            scope=scope,
            metrics=config.Metrics(options.metrics) if options.metrics else loaded.metrics,
            capture=msgspec.structs.replace(
                loaded.capture, relocate=loaded.capture.relocate and not options.no_relocate
            ),
        ),
        "command line",
    )


def run(arguments: list[str] | None = None) -> int:
    """Does what the arguments say; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.verb == "doctor":
        from spliffd import doctor
        from spliffd.kernel import features

        return doctor.main(extra=features.CHECKS)
    chosen = settings(options)
    if options.verb == "config":
        print(config.show(chosen) if options.what == "show" else "configuration is valid", end="")
        if options.what == "check":
            print()
        return 0
    journal.configure(debug=chosen.debug)
    from spliffd.supervisor import Supervisor

    return asyncio.run(Supervisor(chosen, options.config).run())


def main() -> None:
    """Entry point: turns every known problem into one line and its exit code."""
    try:
        code = run()
    except SpliffError as error:
        print(f"spliffd: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = UsageError.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
