"""The full-screen application: list, filter line, detail and statistics pages, and the keys between them.

Takes the daemon's socket and the first filter, runs until q. The stream fills a bounded history in this
process's event loop; the screen is drawn REDRAWS times a second from what is there then, so the cost of
drawing does not depend on how much arrives. Works on 80x24, without a mouse, over ssh.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input, Static

from spliffctl import units
from spliffctl.render.quote import lines, quote
from spliffctl.top import curl, filtering
from spliffctl.top.feed import CONNECTED, Feed
from spliffctl.top.history import BODY_LIMIT, History
from spliffctl.top.listing import ExchangeList
from spliffctl.top.pages import DetailPage, StatisticsPage
from spliffctl.top.statistics import Rates

REDRAWS = 5
"""A second: as fast as anybody reads, and little for a slow line to carry."""

STATISTICS_S = 1.0
"""Between two questions for the statistics, while they are looked at."""


class TopApp(App[int]):
    """spliffctl top."""

    TITLE = "spliff"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #status { height: auto; max-height: 4; background: $panel; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    ExchangeList { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter"),
        Binding("p,space", "pause", "Pause"),
        Binding("f,end,G", "follow", "Follow"),
        Binding("c", "copy_curl", "Copy as curl"),
        Binding("w", "write_curl", "Write curl", show=False),
        Binding("s", "statistics", "Statistics"),
        Binding("q,ctrl+c", "quit", "Quit"),
    ]

    def __init__(self, path: str, line: str, *, utc: bool = False) -> None:
        super().__init__()
        self.history = History()
        self._clock = units.Clock(utc=utc)
        self._feed = Feed(path, self.history, self._tell)
        self._filter = filtering.parse(line)
        self._line = line
        self._notice = ""
        self._told = ""
        self._list = ExchangeList(self.history, self._clock)
        self._status = Static(id="status", markup=False)

    def compose(self) -> ComposeResult:
        """List, filter line, one line of status, keys."""
        # Made here: with a text in it, it needs an application that runs.
        hint = "--host 'api.*' --status 5xx, or duration_ns > 1s"
        self._input = Input(self._line, id="filter", placeholder=hint)
        yield self._list
        yield self._input
        yield self._status
        yield Footer()

    def on_mount(self) -> None:
        """Begins to watch."""
        self._list.focus()
        self._watch()
        self.set_interval(1 / REDRAWS, self._tick)

    # ---- the stream ---------------------------------------------------------------------------

    def _watch(self) -> None:
        from spliffd.pb import spliff_pb2

        request = spliff_pb2.WatchRequest(filter=self._filter, bodies=True, body_limit=BODY_LIMIT)
        self.run_worker(self._feed.run(request), group="watch", exclusive=True)

    def _tick(self) -> None:
        self._list.tick()
        self._tell()

    def _tell(self) -> None:
        """The line of status, when it changes."""
        listing = self._list
        view = "following" if listing.following else f"paused, {listing.newer:,} newer"
        facts = [units.count(self.history.total, "exchange"), view]
        if self.history.lost:
            facts.append(f"{self.history.lost:,} lost")
        if self._line:
            facts.append(f"filter: {self._line}")
        if self._feed.state != CONNECTED:
            facts.insert(0, self._feed.state)
        if self._notice:
            facts.insert(0, self._notice)
        told = quote(" | ".join(facts))
        # The stream may end after the screen did.
        if told != self._told and self.is_running:
            self._told = told
            self._status.update(told)

    # ---- keys ---------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Opens the filter line."""
        self._input.display = True
        self._input.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Watches with another filter."""
        try:
            self._filter = filtering.parse(event.value)
        except ValueError as error:
            self._say(str(error))
            return
        self._line = event.value.strip()
        self.history.clear()
        self._list.forget()
        self._say("")
        self._close_filter()
        self._watch()

    def on_key(self, event: object) -> None:
        """Escape leaves the filter line as it was."""
        if getattr(event, "key", "") == "escape" and self._input.has_focus:
            self._input.value = self._line
            self._say("")
            self._close_filter()

    def _close_filter(self) -> None:
        self._input.display = False
        self._list.focus()

    def action_pause(self) -> None:
        """Stands still, or goes on."""
        listing = self._list
        if listing.following:
            listing.pause()
            listing.refresh()
        else:
            listing.follow()
        self._tell()

    def action_follow(self) -> None:
        """To the newest."""
        self._list.follow()
        self._tell()

    def on_exchange_list_opened(self, event: ExchangeList.Opened) -> None:
        """Everything about one exchange."""
        self.push_screen(DetailPage(event.row, self._clock))

    def _curl(self) -> tuple[int, str] | None:
        """Id and command of what is looked at."""
        screen = self.screen
        row = screen.row if isinstance(screen, DetailPage) else self._list.row()
        return (row.exchange.id, curl.command(row.exchange, row.bodies[0])) if row else None

    def action_copy_curl(self) -> None:
        """To the terminal's clipboard (OSC 52), which works over ssh where the terminal allows it."""
        found = self._curl()
        if found:
            self.copy_to_clipboard(found[1])
            self._say(f"exchange {found[0]} copied as curl (w writes it to a file)")

    def action_write_curl(self) -> None:
        """To a file in the current folder."""
        found = self._curl()
        if not found:
            return
        name = f"exchange-{found[0]}.sh"
        try:
            # Readable by its owner only: requests hold what was encrypted.
            with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(found[1])
        except OSError as error:
            self._say(f"cannot write {name}: {error.strerror}")
        else:
            self._say(f"written to {name}")

    def action_statistics(self) -> None:
        """The daemon's numbers, as they change."""
        page = StatisticsPage()
        self.push_screen(page)
        self.run_worker(self._ask(page), group="statistics", exclusive=True)

    async def _ask(self, page: StatisticsPage) -> None:
        """Asks while the page is open."""
        rates = Rates()
        while page in self.screen_stack:
            answer = await self._feed.statistics()
            if page not in self.screen_stack:
                return
            if isinstance(answer, str):
                page.say(answer)
            else:
                rates.add(answer.values, time.monotonic())
                page.show(rates, "\n".join(lines(answer.text)))
            await asyncio.sleep(STATISTICS_S)

    def _say(self, text: str) -> None:
        """Shows a notice in the line of status until the next one."""
        self._notice = text
        if not isinstance(self.screen, DetailPage) or not text:
            self._tell()
        else:
            self.notify(text, markup=False)


def run(path: str, line: str, *, utc: bool) -> int:
    """Runs the view; returns the exit code."""
    app = TopApp(path, line, utc=utc)
    app.run()
    return app.return_code or 0
