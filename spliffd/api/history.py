"""What was seen lately, for watchers that come later: exchanges and losses, in the order of delivery.

Takes exchanges as they are numbered; gives records by position. What came together is kept together, as it
came: to put them away costs next to nothing, and the few that are asked for are made records then. Bounded in
bytes and number: the oldest give way. Keeps the public piece of a frame only, so that what is revealed to one
watcher is never kept, and bodies (masked) up to a limit. A position counts exchanges and losses alike and,
with a file behind it (``store``), goes on across restarts; ids start anew with each epoch. Reading costs
nobody anything but the reader, who asks for a few records at a time. Reads no clock; does no I/O but through
the store, which never makes it wait.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from spliffd import ipc
from spliffd.api.delivery import Delivery
from spliffd.config import History as Settings
from spliffd.entries import Entries
from spliffd.pb import spliff_pb2 as pb

RECORD_OVERHEAD: Final = 500
"""Memory of a record beyond its bytes: a frame, its numbers, two bytes objects and what the allocator wastes
between them."""

NUMBERS_OVERHEAD: Final = 64
"""Memory of one of many that came together, beyond its bytes: where it ends, and whose it is."""

GONE: Final = 1024
"""Places of blocks that gave way before their list is cut: seldom, for it costs a copy of the rest."""


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


class _Block:
    """Exchanges delivered at once, or one loss; ``position`` and ``number`` are those of the first."""

    __slots__ = ("count", "entries", "frames", "number", "owns", "position", "size", "time_ns")

    def __init__(
        self,
        position: int,
        number: int,
        time_ns: int,
        frames: list[ipc.Frame],
        owns: list[int] | None,
        size: int,
        entries: Entries | None = None,
    ) -> None:
        self.position = position
        self.number = number
        self.time_ns = time_ns
        self.frames = frames
        self.entries = entries
        """In place of frames, where all came together."""
        self.count = len(frames) if entries is None else len(entries)
        self.owns = owns
        self.size = size

    def frame(self, index: int) -> ipc.Frame:
        """One of them."""
        return self.frames[index] if self.entries is None else self.entries.frame(index)


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
        self._blocks: list[_Block] = []
        self._gone = 0
        self._first = position
        self._held = 0
        self._number = 0
        self._waiting: list[Record] = []

    @property
    def first_position(self) -> int:
        """The oldest one in memory; ``next_position`` when there is none."""
        return self._first

    def add(self, frame: ipc.Frame, number: int, own: int, now_ns: int) -> None:
        """Keeps a delivered exchange; ``own`` is its number among those of its user."""
        if not self.enabled:
            return
        kept = self._trimmed(frame)
        bodies = len(kept.request_body) + len(kept.response_body)
        size = len(kept.public) + len(kept.summary) + bodies + RECORD_OVERHEAD
        self._number = number
        self._append(_Block(self.next_position, number, now_ns, [kept], [own], size))

    def add_entries(self, entries: Entries, owns: list[int] | None, now_ns: int) -> None:
        """Keeps exchanges that came together; ``owns`` are their numbers among those of their users."""
        if not self.enabled:
            return
        count = len(entries)
        size = len(entries.data) + entries.summary_bytes + count * NUMBERS_OVERHEAD + RECORD_OVERHEAD
        self._number = entries.first + count - 1
        self._append(_Block(self.next_position, entries.first, now_ns, [], owns, size, entries))

    def _trimmed(self, frame: ipc.Frame) -> ipc.Frame:
        """Of the frame what may be kept."""
        limit = self.body_limit  # what came ahead in parts is not here: then the rest is no body's beginning
        return ipc.Frame(
            frame.kind,
            frame.part_key,
            frame.summary,
            frame.public,
            request_body=frame.request_body[:limit] if limit and not frame.request_offset else b"",
            response_body=frame.response_body[:limit] if limit and not frame.response_offset else b"",
            uid=frame.uid,
        )

    def add_loss(self, loss: pb.Loss) -> None:
        """Keeps a loss that concerns every watcher; joins it with the one before it, if that is alike."""
        if not self.enabled:
            return
        last = self._blocks[-1] if self._gone < len(self._blocks) else None
        if (
            last is not None
            and last.entries is None
            and last.frames[0].kind == ipc.LOSS
            and self._store is None
        ):
            known = pb.Loss.FromString(last.frames[0].public)
            if (known.stage, known.reason) == (loss.stage, loss.reason):
                known.count += loss.count
                known.bytes += loss.bytes
                known.first_time_ns = min(known.first_time_ns, loss.first_time_ns)
                known.last_time_ns = max(known.last_time_ns, loss.last_time_ns)
                frame = _loss_frame(known)
                grown = len(frame.public) - len(last.frames[0].public)
                last.frames = [frame]
                last.size += grown
                self._held += grown
                return
        frame = _loss_frame(loss)
        size = len(frame.public) + RECORD_OVERHEAD
        self._append(_Block(self.next_position, self._number, loss.last_time_ns, [frame], None, size))

    def flush(self) -> None:
        """Hands what came since to the store."""
        if self._waiting and self._store is not None:
            waiting, self._waiting = self._waiting, []
            self._store.offer(waiting)

    def read(self, position: int, most: int) -> list[Record]:
        """Up to ``most`` records from ``position`` on, as far as memory holds them."""
        end = min(position + most, self.next_position)
        at = max(position, self._first)
        found: list[Record] = []
        while at < end:
            block = self._block(at)
            here = min(end, block.position + block.count)
            found += [self._record(block, one) for one in range(at - block.position, here - block.position)]
            at = here
        return found

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
            block = self._block(middle)
            if is_before(self._record(block, middle - block.position)):
                low = middle + 1
            else:
                high = middle
        return low

    def _block(self, position: int) -> _Block:
        """The one that holds a position in memory."""
        at = bisect_right(self._blocks, position, lo=self._gone, key=lambda block: block.position)
        return self._blocks[at - 1]

    def _record(self, block: _Block, index: int) -> Record:
        frame = block.frame(index)
        loss = frame.kind == ipc.LOSS
        return Record(
            block.position + index,
            self.epoch,
            block.number + index,
            0 if block.owns is None else block.owns[index],
            frame.uid,
            block.time_ns,
            loss,
            frame.public,
            frame.request_body,
            frame.response_body,
            frame.summary,
        )

    def _append(self, block: _Block) -> None:
        blocks = self._blocks
        blocks.append(block)
        self.next_position += block.count
        self._held += block.size
        if self._store is not None:
            self._waiting += [self._record(block, index) for index in range(block.count)]
        while self._held > self._room or self.next_position - self._first > self._most:
            oldest = blocks[self._gone]
            end = oldest.position + oldest.count
            if self._held <= self._room and self.next_position - end < self._most:
                self._first = self.next_position - self._most  # the rest of this block stays
                break
            self._first = end
            self._held -= oldest.size
            oldest.frames, oldest.entries = [], None
            self._gone += 1
            if self._gone >= GONE:
                del blocks[: self._gone]
                self._gone = 0


def _loss_frame(loss: pb.Loss) -> ipc.Frame:
    return ipc.Frame(ipc.LOSS, 0, b"", loss.SerializeToString())


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
