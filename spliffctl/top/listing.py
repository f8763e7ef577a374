"""The list of exchanges as a widget: draws the lines that are on the screen and no others.

Takes a History, shows its end while it follows, or a frozen copy while somebody looks at it. Redrawn a few
times a second whatever arrives; nothing is done when nothing came. The cursor and the first line are absolute
numbers of rows, so dropping old rows moves neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from spliffctl.top import lines

if TYPE_CHECKING:
    from spliffctl.top.history import History, Row, Window
    from spliffctl.units import Clock

STYLES = {
    "plain": Style(),
    "faint": Style(dim=True),
    "method": Style(bold=True),
    "good": Style(color="green"),
    "moved": Style(color="cyan"),
    "client-error": Style(color="yellow"),
    "server-error": Style(color="red"),
    "warning": Style(color="yellow"),
}
CURSOR = Style(reverse=True)
WHEEL = 3
"""Lines that a turn of the mouse's wheel moves."""


class ExchangeList(Widget, can_focus=True):
    """Rows, with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000000)", "Oldest", show=False),
        Binding("enter", "open", "Detail"),
    ]

    class Opened(Message):
        """A row was chosen."""

        def __init__(self, row: Row) -> None:
            super().__init__()
            self.row = row

    def __init__(self, history: History, clock: Clock) -> None:
        super().__init__()
        self.cursor = 0
        """Number of the row under the cursor."""
        self._history = history
        self._clock = clock
        self._frozen: Window | None = None
        self._top = 0
        self._drawn = -1

    @property
    def following(self) -> bool:
        """Whether the newest is shown; else the view stands still and what arrives is only kept."""
        return self._frozen is None

    @property
    def newer(self) -> int:
        """How many arrived since the view stands still."""
        return self._history.total - self._frozen.end if self._frozen else 0

    @property
    def window(self) -> Window:
        """What is shown."""
        return self._frozen or self._history.live()

    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.window.row(self.cursor)

    def tick(self) -> None:
        """Shows what came since the last time."""
        if self.following and self._history.total != self._drawn:
            self._drawn = self._history.total
            self.cursor = max(0, self._drawn - 1)
            self._scroll()
            self.refresh()

    def follow(self) -> None:
        """Goes to the newest, and stays there."""
        self._frozen = None
        self._drawn = -1
        self.tick()
        self.refresh()

    def pause(self) -> None:
        """Stands still."""
        if self.following:
            self.tick()
            self._frozen = self._history.frozen()

    def forget(self) -> None:
        """The history was cleared."""
        self.cursor = self._top = 0
        self.follow()

    def action_move(self, by: int) -> None:
        """Moves the cursor; a step down from the last row follows again."""
        if by > 0 and (self.following or self.cursor + by > self.window.end - 1):
            self.follow()
            return
        self.pause()
        window = self.window
        self.cursor = max(window.first, min(self.cursor + by, window.end - 1))
        self._scroll()
        self.refresh()

    def action_page(self, pages: int) -> None:
        """Moves by what is on the screen."""
        self.action_move(pages * max(1, self._height - 1))

    def action_open(self) -> None:
        """Shows everything about the row under the cursor."""
        row = self.row()
        if row:
            self.pause()
            self.post_message(self.Opened(row))

    def on_click(self, event: events.Click) -> None:
        """The cursor goes where the mouse is; a second click opens."""
        number = self._top + event.y - 1
        if event.y and self.window.row(number):
            chosen = number == self.cursor
            self.action_move(number - self.cursor) if number != self.cursor else self.pause()
            if chosen:
                self.action_open()

    def on_mouse_scroll_up(self) -> None:
        """Older ones."""
        self.action_move(-WHEEL)

    def on_mouse_scroll_down(self) -> None:
        """Newer ones."""
        self.action_move(WHEEL)

    def on_resize(self) -> None:
        """Keeps the cursor on the screen."""
        self._scroll()

    @property
    def _height(self) -> int:
        """Rows that fit below the heading."""
        return max(1, self.size.height - 1)

    def _scroll(self) -> None:
        window = self.window
        lowest = self.cursor - self._height + 1
        self._top = max(window.first, lowest, min(self._top, self.cursor))

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.size.width
        base = self.rich_style
        if y == 0:
            return self._strip([(lines.heading(width), "faint")], width, base)
        number = self._top + y - 1
        row = self.window.row(number)
        if row is None:
            return Strip.blank(width, base)
        style = base + CURSOR if number == self.cursor and not self.following else base
        return self._strip(lines.row(row.exchange, width, self._clock), width, style)

    def _strip(self, pieces: lines.Pieces, width: int, base: Style) -> Strip:
        segments = [Segment(text, base + STYLES[style]) for text, style in pieces]
        return Strip(segments).adjust_cell_length(width, base)
