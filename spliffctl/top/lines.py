"""A row of the list as pieces of text with the name of their style, cut to the terminal's width.

Takes an exchange and a width, returns columns: time, method, status, duration, process, URL. Every string is
quoted; nothing of the wire reaches the terminal otherwise. Knows nothing of textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliffctl import units
from spliffctl.render import wire
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

Pieces = list[tuple[str, str]]
"""Text and the name of its style: faint, method, good, moved, client-error, server-error, warning, plain."""

_METHOD, _STATUS, _TOOK = 7, 6, 8

WIDE = 100
"""From this width on there is room for milliseconds and whole command names beside the URL."""


def _widths(width: int) -> tuple[int, int]:
    """Columns of time and process."""
    return (12, 15) if width >= WIDE else (8, 10)


def heading(width: int) -> str:
    """Names of the columns."""
    time, process = _widths(width)
    return f"{'TIME':<{time}} {'METHOD':<{_METHOD}} STATUS     TOOK  {'PROCESS':<{process}}  URL"


def row(exchange: pb.Exchange, width: int, clock: units.Clock) -> Pieces:
    """One line of the list."""
    status = exchange.response.status
    moment = exchange.start_time_ns or exchange.first_byte_time_ns or exchange.end_time_ns
    took = units.duration(exchange.duration_ns) if exchange.duration_ns else ""
    incomplete = exchange.completeness.state not in ("", "complete")
    time, process = _widths(width)
    pieces = [
        (clock.time_of_day(moment)[:time] + " ", "faint"),
        (_fit(exchange.request.method or "?", _METHOD) + " ", "method"),
        (_fit(str(status) if status else "-", _STATUS - 1), style_of(status)),
        ("! " if incomplete else "  ", "warning"),
        (took.rjust(_TOOK) + "  ", "plain"),
        (_fit(exchange.process.comm or "?", process) + "  ", "faint"),
    ]
    left = width - sum(len(text) for text, _ in pieces)
    return [*pieces, (quote(wire.url(exchange)).removeprefix("https://")[: max(0, left)], "plain")]


def style_of(status: int) -> str:
    """The name of the style of a response status."""
    if not status:
        return "warning"
    for last, name in ((299, "good"), (399, "moved"), (499, "client-error")):
        if status <= last:
            return name
    return "server-error"


def _fit(text: str, width: int) -> str:
    """Quoted, and exactly that wide."""
    shown = quote(text)
    return shown.ljust(width) if len(shown) <= width else shown[: width - 1] + "…"
