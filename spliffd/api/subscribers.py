"""One watcher: its bounded queue, what is shed from it, and when it is written.

Takes deliveries, returns whole ``WatchResponse`` messages as bytes. The bound covers what waits and
what is being written, so a client that never reads costs its bound and not a byte more, and never slows
anybody else. Near the bound bodies are shed, at the bound items are dropped; each loss is told in the
next message. Writes at once after a pause, else when much waits or at most every ``FLUSH_INTERVAL``, while
many items come every ``BUSY_INTERVAL``.

No timer runs while nothing happens. Knows nothing of gRPC: the service awaits ``next`` and writes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from spliffd import ipc
from spliffd.api import wire
from spliffd.api.chosen import Chosen
from spliffd.api.delivery import Delivery
from spliffd.api.wishes import Wishes
from spliffd.counters import Region
from spliffd.entries import Entries
from spliffd.pb import spliff_pb2 as pb

FLUSH_INTERVAL = 0.005
"""Seconds between two writes under load: the cost of a write is shared by what came meanwhile, and
latency stays at human speed. After a longer pause the first item goes at once."""

BUSY_INTERVAL: Final = 0.010
BUSY_ITEMS: Final = 64
"""The same behind a message of as many items, from 13,000/s on until fewer than 6,400 come: a write wakes
three threads here and the watcher, whatever is in it."""

FLUSH_ITEMS: Final = 1024
FLUSH_BYTES: Final = 1 << 20
"""What is worth a write before the interval is over; half of the queue is, too."""

MESSAGE_BYTES = 5 << 19
"""A message is this long and one item (a datagram's 1 MiB) more at most: gRPC clients accept 4 MiB. The event
loop writes one of them in a turn, so under load they must hold what comes in a turn, and more."""

ITEM_OVERHEAD: Final = 64
"""Memory of an entry beyond its bytes: object header and place in the queue."""

BODY_SHARE: Final = 0.75
"""Part of the queue that may be filled with entries that carry bodies; the rest is for the others,
so that bodies go first."""

MAX_PARTS = 4096
"""Unfinished exchanges of which parts were sent; beyond it the oldest is discarded, and told."""

MARKS_BYTES: Final = 4096
"""Room beyond the bound, so that a Flushed finds some in a queue that is full: some 60 of them."""

MAX_LOSS_KINDS = 64
"""Distinct (stage, reason) that wait to be told: more than all stages have together."""


def entry_of(delivery: Delivery, wishes: Wishes) -> bytes:
    """An exchange as ``wishes`` want it, of which nothing was sent ahead and nothing is secret."""
    entry = delivery.with_bodies(wishes.body_limit, 0).entry if wishes.bodies else delivery.plain
    return entry if wishes.mask is None else delivery.masked(entry, wishes.mask)


def told(loss: pb.Loss) -> pb.Loss:
    """A loss as somebody may know of it who may know of their own processes only: that, and when."""
    return pb.Loss(
        stage="daemon",
        reason="shared",
        first_time_ns=loss.first_time_ns,
        last_time_ns=loss.last_time_ns,
    )


class Subscriber:
    """A watcher's queue. ``region`` is the api's region of the shared counters.

    While ``beforehand``, exchanges and the losses of other stages are not queued: they come from history, or
    from before the watch.
    """

    def __init__(self, wishes: Wishes, region: Region) -> None:
        self.wishes = wishes
        self._words = region.words
        self._filtered_slot = region.index("items_filtered")
        self._region = region
        self._queue: deque[bytes | bytearray] = deque()
        """Entries, one by one, and such that came together (bytearray)."""
        self._together: deque[int] = deque()
        """How many there are in each of those that came together."""
        self._items = 0
        self._room = wishes.queue_bytes
        self._body_room = int(wishes.queue_bytes * BODY_SHARE)
        self._held = 0
        self._writing = 0
        self._losses: dict[tuple[str, str], list[int]] = {}
        """Count, bytes, first and last time by stage and reason."""
        self._parts: dict[int, int] = {}
        self._refused_descendants = 0
        self._waiter: asyncio.Future[None] | None = None
        self._wake_at = 1
        self._last_write = float("-inf")
        self._busy = False
        """Whether the last message held many items."""
        self._flush_bytes = min(FLUSH_BYTES, wishes.queue_bytes // 2)
        self._closing = False
        self._owner = -1 if wishes.owner is None else wishes.owner
        self._as_they_are = (
            wishes.mask is None
            and wishes.owner is None
            and (wishes.filter is None or wishes.filter.expression is None)
        )
        """Whether an exchange that every watcher gets alike is wanted whole or not, by its summary."""
        self._chosen = Chosen(wishes.filter) if wishes.filter is not None else None
        self.beforehand = wishes.past is not None

    @property
    def held_bytes(self) -> int:
        """What waits and what is being written, overhead included."""
        return self._held

    # ---- in ------------------------------------------------------------------------------------

    def offer(self, delivery: Delivery) -> None:
        """Queues what this watcher wants of ``delivery``; tells what it loses."""
        if self._owner >= 0:
            # Before anything else is asked: a filter learns nothing of what others do.
            if delivery.frame.uid != self._owner:
                return
            delivery = delivery.own
        kind = delivery.kind
        wishes = self.wishes
        chosen = wishes.filter
        if kind == ipc.EXCHANGE and self.beforehand:
            key = delivery.frame.part_key
            if key and self._parts.pop(key, -1) >= 0:
                self._discard(key)
        elif kind == ipc.EXCHANGE:
            key = delivery.frame.part_key
            sent = self._parts.pop(key, -1) if key and self._parts else -1
            if chosen is not None and not chosen.wants(delivery):
                self._words[self._filtered_slot] += 1
                if sent >= 0:
                    self._discard(key)
            elif not self._queue_item(delivery, max(0, sent)) and sent >= 0:
                self._discard(key)
        elif kind == ipc.BODY_PART:
            self._offer_part(delivery)
        elif kind == ipc.HANDSHAKE:
            if wishes.handshakes and (chosen is None or chosen.wants(delivery)):
                self._queue_item(delivery, 0)
            else:
                self._words[self._filtered_slot] += 1
        elif (wishes.progress if kind == ipc.PROGRESS else wishes.messages) and (
            chosen is None or chosen.wants(delivery)
        ):
            self._queue_item(delivery, 0)
        else:
            self._words[self._filtered_slot] += 1
        if chosen is not None and chosen.descendants is not None:
            self._tell_refused(chosen.descendants.refused)

    def take(self, entries: Entries) -> bool:
        """Queues what this watcher wants of exchanges that came together; tells what it loses.

        False: they must be offered one by one, for it does not want them as they are.
        """
        if not self._as_they_are:
            return False
        if self.beforehand:
            return True
        if self._chosen is None:
            self._take(entries, 0, len(entries))
            return True
        kept = 0
        for start, end in self._chosen.runs(entries):
            self._take(entries, start, end)
            kept += end - start
        self._words[self._filtered_slot] += len(entries) - kept
        wanted = self.wishes.filter
        if wanted is not None and wanted.descendants is not None:
            self._tell_refused(wanted.descendants.refused)
        return True

    def _take(self, entries: Entries, start: int, end: int) -> None:
        data = entries.slice(start, end)
        held = self._held + len(data) + ITEM_OVERHEAD
        if held > self._room:
            for index in range(start, end):
                entry = entries.entry(index)
                if not self._push(entry, self._room):
                    self._drop("queue_full", "subscriber_lost_items", len(entry))
            return
        self._held = held
        self._queue.append(data)
        self._together.append(end - start)
        self._items += end - start
        if self._waiter is not None and self._is_worth_waking():
            self._wake()

    def lose(self, loss: pb.Loss) -> None:
        """Notes a loss of another stage, to be told with the next message."""
        if self.beforehand:
            return
        if self._owner >= 0:
            loss = told(loss)
        self._note((loss.stage, loss.reason), loss.count, loss.bytes, loss.first_time_ns, loss.last_time_ns)

    def _note(self, key: tuple[str, str], count: int, size: int, first_ns: int, last_ns: int) -> None:
        # Losses of one stage and reason are told as one, so that a flood of them stays small.
        if key not in self._losses and len(self._losses) >= MAX_LOSS_KINDS:
            key = ("api", "other")
        known = self._losses.get(key)
        if known is None:
            self._losses[key] = [count, size, first_ns, last_ns]
        else:
            known[0] += count
            known[1] += size
            known[2] = min(known[2], first_ns)
            known[3] = max(known[3], last_ns)
        if self._wake_at == 1:
            self._wake()

    def mark(self) -> bool:
        """Queues a Flushed behind what waits; False when too many wait to be written."""
        return self._push(wire.entry("flushed"), self._room + MARKS_BYTES)

    def close(self) -> None:
        """Lets ``next`` return what waits and then None."""
        self._closing = True
        self._wake()

    def _queue_item(self, delivery: Delivery, sent: int) -> bool:
        wishes = self.wishes
        reveal = wishes.reveal
        if not (wishes.bodies and (delivery.has_body(reveal=reveal) or sent or delivery.frame.part_key)):
            entry = delivery.bare(reveal=True) if reveal else delivery.plain
            if wishes.mask is not None and delivery.kind == ipc.EXCHANGE:
                entry = delivery.masked(entry, wishes.mask)
            if self._push(entry, self._room):
                return True
            self._drop("queue_full", "subscriber_lost_items", len(entry))
            return False
        entry, body = delivery.with_bodies(wishes.body_limit, sent, reveal=reveal)
        mask = wishes.mask if delivery.kind == ipc.EXCHANGE else None
        if mask is not None:
            entry = delivery.masked(entry, mask)
        if self._push(entry, self._body_room if body else self._room):
            return True
        shed = delivery.without_bodies(sent, reveal=reveal) if body else b""
        if body and self._push(shed if mask is None else delivery.masked(shed, mask), self._room):
            self._drop("body_shed", "subscriber_lost_bodies", body)
            return True
        self._drop("queue_full", "subscriber_lost_items", len(entry))
        return False

    def _offer_part(self, delivery: Delivery) -> None:
        wishes = self.wishes
        if not wishes.bodies:
            self._words[self._filtered_slot] += 1
            return
        if wishes.filter is not None and not wishes.filter.wants(delivery):
            self._words[self._filtered_slot] += 1
            return
        entry, body = delivery.with_bodies(wishes.body_limit, 0, reveal=wishes.reveal)
        if not body:
            return  # beyond the watcher's limit: its exchange will say what was not sent
        if not self._push(entry, self._body_room):
            self._drop("body_shed", "subscriber_lost_bodies", body)
            return
        key = delivery.frame.part_key
        parts = self._parts
        parts[key] = parts.pop(key, 0) + body
        if len(parts) > MAX_PARTS:
            oldest = next(iter(parts))
            self._drop("body_shed", "subscriber_lost_bodies", parts.pop(oldest))
            self._discard(oldest)

    def _push(self, entry: bytes, room: int) -> bool:
        held = self._held + len(entry) + ITEM_OVERHEAD
        if held > room:
            return False
        self._held = held
        self._queue.append(entry)
        self._items += 1
        if self._waiter is not None and self._is_worth_waking():
            self._wake()
        return True

    def _discard(self, part_key: int) -> None:
        # Must follow the parts in the queue, and must not be lost: it goes beyond the bound, which
        # MAX_PARTS entries of some 80 bytes can do.
        self._push(wire.entry("discard", pb.Discard(part_keys=[part_key]).SerializeToString()), 1 << 62)

    def _drop(self, reason: str, counter: str, size: int) -> None:
        now = time.time_ns()
        self._region.add(counter)
        self._region.add("subscriber_lost_bytes", size)
        self._note(("subscriber", reason), 1, size, now, now)

    def _tell_refused(self, refused: int) -> None:
        if refused > self._refused_descendants:
            now = time.time_ns()
            count = refused - self._refused_descendants
            self._note(("subscriber", "descendants_full"), count, 0, now, now)
            self._refused_descendants = refused

    # ---- out -----------------------------------------------------------------------------------

    async def next(self) -> bytes | None:
        """The next message to write, when it is time; None after ``close`` and an empty queue.

        The bytes count as held until ``written`` is called.
        """
        loop = asyncio.get_running_loop()
        while not self._queue and not self._losses:
            if self._closing:
                return None
            await self._wait(1, None)
        due = self._last_write + (BUSY_INTERVAL if self._busy else FLUSH_INTERVAL)
        if loop.time() < due and not self._closing:
            self._wake_at = FLUSH_ITEMS
            if not self._is_worth_waking():
                await self._wait(FLUSH_ITEMS, due)
        return self._message()

    def written(self) -> None:
        """The message that ``next`` returned has left."""
        self._held -= self._writing
        self._writing = 0
        self._last_write = asyncio.get_running_loop().time()

    def count_rest(self) -> None:
        """The stream ends with something in the queue: counts it as lost."""
        self._region.add("subscriber_lost_items", self._items)
        self._region.add("subscriber_lost_bytes", sum(map(len, self._queue)))

    def _message(self) -> bytes:
        told: list[bytes | bytearray] = [_loss_entry(*key, *facts) for key, facts in self._losses.items()]
        self._losses.clear()
        queue, together = self._queue, self._together
        before = self._items
        if self._held <= MESSAGE_BYTES:
            pieces = list(queue)
            queue.clear()
            together.clear()
            self._items = 0
            self._writing = self._held
        else:
            pieces = []
            size = 0
            while queue and size < MESSAGE_BYTES:
                piece = queue.popleft()
                pieces.append(piece)
                self._items -= together.popleft() if isinstance(piece, bytearray) else 1
                size += len(piece) + ITEM_OVERHEAD
            self._writing = size
        self._busy = before - self._items >= BUSY_ITEMS
        self._region.add("items_delivered", before - self._items)
        self._region.add("batches_sent")
        return b"".join(told + pieces)

    def _is_worth_waking(self) -> bool:
        return self._items >= self._wake_at or self._held - self._writing >= self._flush_bytes

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, items: int, due: float | None) -> None:
        """Sleeps until ``items`` wait, or much does, or the time has come, or close."""
        loop = asyncio.get_running_loop()
        self._wake_at = items
        self._waiter = loop.create_future()
        timer = loop.call_at(due, self._wake) if due is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _loss_entry(stage: str, reason: str, count: int, size: int, first_ns: int, last_ns: int) -> bytes:
    loss = pb.Loss(
        stage=stage, reason=reason, count=count, bytes=size, first_time_ns=first_ns, last_time_ns=last_ns
    )
    return wire.entry("loss", loss.SerializeToString())
