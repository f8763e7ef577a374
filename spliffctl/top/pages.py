"""The pages behind the list: everything about one exchange, and the daemon's statistics.

Takes what to show, draws it, closes with Escape or q. Text is drawn without markup, so nothing of the wire is
read as such. Asks the daemon for nothing: the statistics page is given its numbers by the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from spliffctl.top import detail
from spliffctl.top.statistics import Rates, bars

if TYPE_CHECKING:
    from spliffctl.top.history import Row
    from spliffctl.units import Clock

NAME, VALUE = 22, 12
"""Columns of the statistics page."""

CLOSE = [Binding("escape,q", "app.pop_screen", "Back")]


class Page(Screen[None]):
    """A page that scrolls with the keys of a pager."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *CLOSE,
        Binding("j,down", "scroll(1)", "Down", show=False),
        Binding("k,up", "scroll(-1)", "Up", show=False),
    ]
    AUTO_FOCUS = "VerticalScroll"

    def action_scroll(self, by: int) -> None:
        """A line up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


class DetailPage(Page):
    """One exchange."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "app.copy_curl", "Copy as curl"),
        Binding("w", "app.write_curl", "Write curl to file"),
    ]

    def __init__(self, row: Row, clock: Clock) -> None:
        super().__init__()
        self.row = row
        self._clock = clock

    def compose(self) -> ComposeResult:
        """The lines, headings in bold."""
        text = Text()
        for line in detail.lines(self.row, self._clock):
            text.append(line + "\n", "" if line.startswith(" ") else "bold")
        yield VerticalScroll(Static(text, id="detail"))
        yield Footer()


class StatisticsPage(Page):
    """Rates with their last two minutes, and the statistics block below."""

    def compose(self) -> ComposeResult:
        """One text; it is small, so it is drawn anew once a second."""
        yield VerticalScroll(Static("asking the daemon …", markup=False, id="numbers"))
        yield Footer()

    def say(self, text: str) -> None:
        """Why there are no numbers."""
        self.query_one("#numbers", Static).update(text)

    def show(self, rates: Rates, block: str) -> None:
        """Draws new numbers: name, value and bars for each series, then the daemon's own block."""
        room = self.size.width - NAME - VALUE - 4
        lines = []
        for name, series in rates.shares.items():
            value = "-" if series.latest is None else f"{series.latest:.2f} %"
            lines.append(f"{name:<{NAME}}{value:>{VALUE}}  {bars([*series.points], room, 100.0)}")
        for name, series in rates.rates.items():
            value = "-" if series.latest is None else f"{series.latest:,.0f}"
            lines.append(f"{name:<{NAME}}{value:>{VALUE}}  {bars([*series.points], room)}")
        self.query_one("#numbers", Static).update("\n".join([*lines, "", block]))
