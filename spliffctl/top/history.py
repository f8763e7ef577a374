"""What the full-screen view remembers: the latest exchanges, bounded in number and bytes.

Takes batches of the stream as they come, at any rate; costs one append for each exchange, because what is
looked at is rendered by the view, a few times a second, and nothing else is. Rows have absolute numbers, so a
cursor stays on its exchange while older ones are dropped. Does no I/O and reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spliffctl.items import unmask
from spliffctl.parts import Body, PartStore

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_ROWS = 10_000
"""Exchanges kept: more than anybody scrolls through, some 20 MB without bodies."""

SLACK = 1000
"""Rows that may be above MAX_ROWS before the oldest are dropped, so that lists are moved rarely."""

MAX_BODY_BYTES = 64 << 20
"""Bytes of bodies kept in all rows together."""

BODY_LIMIT = 16 << 10
"""What is asked of each body: the detail page is for reading, ``watch -w`` for keeping."""

MAX_WAITING_BYTES = 64 << 20
"""Body parts that wait for their exchange."""


@dataclass(frozen=True, slots=True)
class Row:
    """An exchange and what came of its bodies."""

    exchange: pb.Exchange
    bodies: tuple[Body, Body]
    bytes: int


@dataclass(frozen=True, slots=True)
class Window:
    """Rows ``first`` to ``first + len(rows)``, numbered from the beginning of the watch."""

    first: int
    rows: list[Row]

    @property
    def end(self) -> int:
        """The number behind the last row."""
        return self.first + len(self.rows)

    def row(self, number: int) -> Row | None:
        """The row of that number, while it is here."""
        index = number - self.first
        return self.rows[index] if 0 <= index < len(self.rows) else None


class History:
    """The latest exchanges, and counts of everything."""

    def __init__(self, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.lost = 0
        """What the daemon (or this client's store of parts) says was lost."""
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._first = 0
        self._rows: list[Row] = []
        self._bytes = 0
        self._store = PartStore(limit=BODY_LIMIT, capacity=MAX_WAITING_BYTES)

    @property
    def total(self) -> int:
        """How many exchanges came."""
        return self._first + len(self._rows)

    def live(self) -> Window:
        """What is here now; later exchanges appear in it, and dropped ones are wrong: use it at once."""
        return Window(self._first, self._rows)

    def frozen(self) -> Window:
        """What is here now, for keeps."""
        return Window(self._first, list(self._rows))

    def clear(self) -> None:
        """Forgets everything: another filter."""
        self.__init__(max_rows=self._max_rows, max_bytes=self._max_bytes)  # type: ignore[misc]

    def take(self, batch: pb.WatchResponse) -> None:
        """Keeps the exchanges of a batch; items of other kinds are not for a list of exchanges."""
        for item in batch.items:
            kind = item.WhichOneof("kind")
            if kind == "exchange":
                exchange = item.exchange
                if exchange.revealed:
                    unmask(exchange)
                bodies = self._store.take(exchange)
                size = sum(len(data) for body in bodies for _, data in body.segments)
                self._rows.append(Row(exchange, bodies, size))
                self._bytes += size
            elif kind == "body_part":
                self._store.add(item.body_part)
            elif kind == "discard":
                self._store.discard(list(item.discard.part_keys))
            elif kind == "loss":
                self.lost += item.loss.count
        self.lost += self._store.take_loss()[0]
        if len(self._rows) > self._max_rows + SLACK or self._bytes > self._max_bytes:
            self._drop()

    def _drop(self) -> None:
        count = max(0, len(self._rows) - self._max_rows)
        while self._bytes - sum(row.bytes for row in self._rows[:count]) > self._max_bytes:
            count += SLACK
        self._bytes -= sum(row.bytes for row in self._rows[:count])
        self._first += min(count, len(self._rows))
        del self._rows[:count]
