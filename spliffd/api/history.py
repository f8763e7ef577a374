"""What was seen lately, for watchers that come later: exchanges and losses, in the order of delivery.

Takes deliveries as they are numbered; gives records by position. Bounded in bytes and number: the oldest
give way. Keeps the public piece of a frame only, so that what is revealed to one watcher is never kept, and
bodies (masked) up to a limit. A position counts exchanges and losses alike and, with a file behind it
(``store``), goes on across restarts; ids start anew with each epoch. Reading costs nobody anything but the
reader, who asks for a few records at a time. Reads no clock; does no I/O but through the store, which never
makes it wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from spliffd import ipc
from spliffd.api.delivery import Delivery
from spliffd.config import History as Settings
from spliffd.pb import spliff_pb2 as pb

RECORD_OVERHEAD = 500
"""Memory of a record beyond its bytes: a tuple, its numbers, three bytes objects, its place in the
dictionary."""


class Record(NamedTuple):
    """An exchange, or a loss (``loss``), whose ``number`` is that of the exchange before it."""

    position: int
    epoch: int
    number: int
    own: int
    """Its number among the exchanges of its user."""
    uid: int
    time_ns: int
    """When it was delivered."""
    loss: bool
    message: bytes
    """The public piece of an Exchange, without id and bodies; or a Loss."""
    request_body: bytes
    response_body: bytes
    summary: bytes
    """An encoded ipc.Summary; empty for a loss."""


_Row = tuple[int, int, int, int, int, int, bool, bytes, bytes, bytes, bytes]
"""The fields of a Record, which costs more to make and is wanted for few of them."""


class Store(Protocol):
    """A file behind the memory."""

    def offer(self, records: list[Record]) -> None:
        """Takes records to be written; never waits."""


class History:
    """``settings`` bound it; ``epoch`` is that of the ids; ``position`` the first one to be given."""

    def __init__(self, settings: Settings, epoch: int, position: int = 1, store: Store | None = None) -> None:
        self.enabled = settings.memory_mib > 0
        self.body_limit = settings.body_limit if self.enabled else 0
        self.epoch = epoch
        self.next_position = position
        self._room = settings.memory_mib << 20
        self._most = settings.exchanges
        self._store = store
        self._rows: dict[int, _Row] = {}
        self._first = position
        self._held = 0
        self._number = 0
        self._waiting: list[Record] = []

    @property
    def first_position(self) -> int:
        """The oldest one in memory; ``next_position`` when there is none."""
        return self._first

    def add(self, delivery: Delivery, number: int, own: int, now_ns: int) -> None:
        """Keeps a delivered exchange."""
        if not self.enabled:
            return
        frame, limit = delivery.frame, self.body_limit
        # What came ahead in parts is not here: then the rest of the body is no beginning of it.
        request = frame.request_body[:limit] if limit and not frame.request_offset else b""
        response = frame.response_body[:limit] if limit and not frame.response_offset else b""
        self._number = number
        public, summary, uid = frame.public, frame.summary, frame.uid
        self._keep(
            (
                self.next_position,
                self.epoch,
                number,
                own,
                uid,
                now_ns,
                False,
                public,
                request,
                response,
                summary,
            ),
            len(public) + len(request) + len(response) + len(summary),
        )

    def add_loss(self, loss: pb.Loss) -> None:
        """Keeps a loss that concerns every watcher; joins it with the one before it, if that is alike."""
        if not self.enabled:
            return
        position = self.next_position
        row = self._rows.get(position - 1)
        before = None if row is None else Record._make(row)
        if before is not None and before.loss and self._store is None:
            known = pb.Loss.FromString(before.message)
            if (known.stage, known.reason) == (loss.stage, loss.reason):
                known.count += loss.count
                known.bytes += loss.bytes
                known.first_time_ns = min(known.first_time_ns, loss.first_time_ns)
                known.last_time_ns = max(known.last_time_ns, loss.last_time_ns)
                message = known.SerializeToString()
                self._held += len(message) - len(before.message)
                self._rows[position - 1] = (*before[:7], message, b"", b"", b"")
                return
        message = loss.SerializeToString()
        time_ns = loss.last_time_ns
        self._keep(
            (position, self.epoch, self._number, 0, -1, time_ns, True, message, b"", b"", b""), len(message)
        )

    def flush(self) -> None:
        """Hands what came since to the store."""
        if self._waiting and self._store is not None:
            waiting, self._waiting = self._waiting, []
            self._store.offer(waiting)

    def read(self, position: int, most: int) -> list[Record]:
        """Up to ``most`` records from ``position`` on, as far as memory holds them."""
        rows = self._rows
        end = min(position + most, self.next_position)
        return [Record._make(rows[at]) for at in range(max(position, self._first), end)]

    def at_or_behind(self, number: int) -> int:
        """Position of the first record in memory whose exchange has this number or a higher one."""
        return self._bisect(lambda record: record.number < number)

    def since(self, time_ns: int) -> int:
        """Position of the first record in memory that was delivered at that time or later."""
        return self._bisect(lambda record: record.time_ns < time_ns)

    def _bisect(self, is_before: Callable[[Record], bool]) -> int:
        low, high = self._first, self.next_position
        while low < high:
            middle = (low + high) // 2
            if is_before(Record._make(self._rows[middle])):
                low = middle + 1
            else:
                high = middle
        return low

    def _keep(self, row: _Row, size: int) -> None:
        rows = self._rows
        rows[self.next_position] = row
        self.next_position += 1
        self._held += size + RECORD_OVERHEAD
        if self._store is not None:
            self._waiting.append(Record._make(row))
        while self._held > self._room or len(rows) > self._most:
            oldest = rows.pop(self._first)
            self._held -= len(oldest[7]) + len(oldest[8]) + len(oldest[9]) + len(oldest[10]) + RECORD_OVERHEAD
            self._first += 1


def size_of(record: Record) -> int:
    """Bytes of memory, about."""
    bodies = len(record.request_body) + len(record.response_body)
    return len(record.message) + len(record.summary) + bodies + RECORD_OVERHEAD


def delivery_of(record: Record, *, owner: int | None = None) -> Delivery:
    """The record as it was delivered first, for whoever asks now; to its ``owner`` by its own number."""
    message = pb.Exchange.FromString(record.message)
    frame = ipc.Frame(
        ipc.EXCHANGE,
        # Not 0: the sizes of the bodies are those that the message tells, not what is kept of them.
        message.part_key or 1,
        record.summary,
        record.message,
        request_body=record.request_body,
        response_body=record.response_body,
        uid=record.uid,
    )
    return Delivery(frame, record.number if owner is None else record.own)
