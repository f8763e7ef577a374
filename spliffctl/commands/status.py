"""``spliffctl status``: what runs, what it captures, which kernel features it found, how well it is.

Takes the daemon's answer to GetInfo, prints it. ``--wait`` asks the health service until it says SERVING,
which is what scripts need behind ``systemctl start``. Exit 0 when the daemon answers, whatever its health.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from spliffctl import filters, options, units
from spliffctl.errors import ClientError, NotPermittedError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from spliffctl.render.colour import Palette
    from spliffd.pb import spliff_pb2 as pb

RETRY_S = 0.1
"""Between two tries of --wait: a daemon needs about a second to start."""

PERMISSION_SETTLES_S = 1.0
"""A starting daemon makes its socket first and gives it to its group then; later a refusal is meant."""


class Seconds(filters.Checked):
    """A duration, as ``watch --for`` takes it."""

    def check(self, text: str) -> float:
        """Seconds."""
        return units.parse_duration(text)


@click.command(
    "status",
    epilog="""\b
Examples:
  spliffctl status
  sudo systemctl start spliffd && spliffctl status --wait 10
  spliffctl status -o json | jq -r .health""",
)
@click.option(
    "--wait", "seconds", type=Seconds("SECONDS"), help="Wait up to this long until the daemon is ready."
)
@options.form("one object")
@options.utc
@click.pass_obj
def command(path: str, seconds: float | None, form: str, utc: bool) -> int:
    """Show what runs, what it captures, and how well it is."""
    from spliffctl import client
    from spliffctl.output import Output
    from spliffctl.render.colour import palette
    from spliffd.pb import spliff_pb2

    if seconds is not None:
        _wait_until_serving(path, seconds)
    question = spliff_pb2.GetInfoRequest()
    answer = client.call(path, lambda stub: stub.GetInfo(question, timeout=client.CALL_TIMEOUT_S))
    output = Output()
    if form == "json":
        from spliffctl.render.json import to_json

        output.write(to_json(answer) + "\n")
    else:
        output.write(
            "".join(line + "\n" for line in _lines(answer, palette("auto", output.fd), units.Clock(utc=utc)))
        )
    return 0


def _wait_until_serving(path: str, seconds: float) -> None:
    """Returns once the daemon serves; raises its last problem when the time is up."""
    from spliffctl.client import serving

    begin = time.monotonic()
    while True:
        try:
            serving(path)
        except RefusedError:
            raise
        except NotPermittedError:
            if time.monotonic() - begin > min(seconds, PERMISSION_SETTLES_S):
                raise
        except ClientError as error:
            if time.monotonic() - begin >= seconds:
                raise UnavailableError(f"not ready after {seconds:g} s: {error}") from None
        else:
            return
        time.sleep(RETRY_S)


def _lines(info: pb.GetInfoResponse, palette: Palette, clock: units.Clock) -> list[str]:
    from spliffctl.render.quote import quote
    from spliffctl.render.table import table

    started = clock.date_and_time(info.start_time_ns) if info.start_time_ns else "?"
    facts = [
        ("spliffd", info.version),
        ("host", info.hostname),
        ("kernel", info.kernel),
        ("started", started),
        ("health", info.health),
        ("scope", "; ".join(info.scope)),
        ("processes", ", ".join(f"{name} ({pid})" for name, pid in sorted(info.processes.items()))),
    ]
    result = [f"{palette.faint}{name:<10}{palette.reset} {quote(value) or '?'}" for name, value in facts]
    if info.features:
        rows = [(feature.name, feature.state, feature.detail) for feature in info.features]
        result += ["", *table(("FEATURE", "STATE", "DETAIL"), rows, palette)]
    return result
