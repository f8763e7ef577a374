"""History for one watcher: from where it left off, or from when it asks, up to the present without a seam.

Takes history and a watcher's wishes; gives whole ``WatchResponse`` messages as bytes, a slice of history at
a time, so that neither the event loop nor the watcher's reading is ever waited for by anybody else. When it
ends, the last record that there is has been given, and nothing else has happened since: whoever flips the
watcher to live before the next await has no seam. Each gap is told as a ``Loss``, each new epoch by another
``Started``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from spliffd.api import wire
from spliffd.api.history import History, Record, delivery_of
from spliffd.api.subscribers import entry_of, told
from spliffd.api.wishes import Wishes
from spliffd.pb import spliff_pb2 as pb

SLICE = 64
"""Records that are looked at before everybody else has a turn: half a millisecond."""


OWNER_PAUSE = 0.004
"""Seconds between slices for those who may know of own processes only: looking through everybody's history
for them must not take the processor from the others."""


class Archive(Protocol):
    """The file behind history, for readers; empty where there is none."""

    async def first_position(self) -> int:
        """The oldest position; 0 when there is none."""

    async def read(self, position: int, most: int) -> list[Record]:
        """Records from ``position`` on, before memory; waits for what is being written."""

    async def behind(self, epoch: int, number: int) -> int:
        """Position behind that exchange, or where it would be; 0 when it was before all that there is."""

    async def since(self, time_ns: int) -> int:
        """Position of the first record of that time or later."""


class Replay:
    """One run through history. ``archive`` is the file behind it, if any."""

    def __init__(self, history: History, wishes: Wishes, archive: Archive | None) -> None:
        assert wishes.past is not None
        self._history = history
        self._wishes = wishes
        self._past = wishes.past
        self._archive = archive
        self._epoch = history.epoch
        self._last_time_ns = 0
        self._joined = False
        """Whether an exchange behind the one that the watcher had last was met."""
        self._entries: list[bytes] = []

    async def responses(self) -> AsyncIterator[bytes]:
        """Everything up to the present."""
        position = await self._begin()
        history = self._history
        while True:
            records = await self._read(position)
            for record in records:
                if not record.loss:  # of a loss the place is that of the last thing that was lost
                    self._gap(record.position - position, record.time_ns)
                position = record.position + 1
                self._add(record)
            if not records and position < history.first_position:
                self._gap(history.first_position - position, 0)
                position = history.first_position
            elif not records and self._epoch != history.epoch:
                self._enter(history.epoch, history.epoch, 1)
            if self._entries:
                response = b"".join(self._entries)
                self._entries.clear()
                yield response
            elif position >= history.next_position:
                return
            else:
                await self._turn()
                continue
            if self._wishes.owner is not None:
                await self._turn()

    async def find(self, number: int) -> Record | None:
        """The exchange with this number, of the wished epoch."""
        position = await self._begin()
        owner = self._wishes.owner
        while records := await self._read(position):
            for record in records:
                if record.loss or (owner is not None and record.uid != owner):
                    continue
                told_number = record.number if owner is None else record.own
                if record.epoch != self._epoch or told_number > number:
                    return None
                if told_number == number:
                    return record
            position = records[-1].position + 1
            await self._turn()
        return None

    # ---- where to begin ------------------------------------------------------------------------

    async def _begin(self) -> int:
        """The position to begin with; the first Started is among the entries."""
        past, history = self._past, self._history
        if past.after_id is not None:
            self._epoch = past.after_epoch or history.epoch
            position = await self._resumed(past.after_id)
            self._started(past.after_id + 1)
            return position
        position = history.first_position
        if past.since_ns:
            position = history.since(past.since_ns)
        if self._archive is not None and position <= history.first_position:
            position = await self._archive.since(past.since_ns) or position
        if past.last:
            position = await self._last(position, past.last)
        elif not past.since_ns:
            position = history.next_position
        first = await self._read(position)
        if first:
            self._epoch = first[0].epoch
        self._started(first[0].number if first and self._wishes.owner is None else 1)
        return position

    async def _resumed(self, after: int) -> int:
        history, owner = self._history, self._wishes.owner
        if owner is None and self._epoch == history.epoch:
            position = history.at_or_behind(after)
            held = history.read(position, 1)
            if held and held[0].number == after and not held[0].loss:
                return position + 1
            if position > history.first_position or self._archive is None:
                return position
        if self._archive is None:
            return history.first_position
        if owner is not None:
            return await self._archive.first_position() or history.first_position
        behind = await self._archive.behind(self._epoch, after)
        return behind or await self._archive.first_position() or history.first_position

    async def _last(self, lowest: int, count: int) -> int:
        """Position of the record from which on ``count`` exchanges match."""
        position = self._history.next_position
        while position > lowest and count:
            begin = max(lowest, position - SLICE)
            for record in reversed(await self._read(begin, position - begin)):
                if count and self._matches(record):
                    count -= 1
                    position = record.position
            if count:
                position = begin
            await self._turn()
        return position

    async def _turn(self) -> None:
        """Lets everybody else have a turn."""
        await asyncio.sleep(0 if self._wishes.owner is None else OWNER_PAUSE)

    # ---- records -------------------------------------------------------------------------------

    async def _read(self, position: int, most: int = SLICE) -> list[Record]:
        if position >= self._history.first_position or self._archive is None:
            return self._history.read(position, most)
        return await self._archive.read(position, most)

    def _matches(self, record: Record) -> bool:
        """Whether the watcher would get this record, if it is an exchange."""
        wishes = self._wishes
        if record.loss or (wishes.owner is not None and record.uid != wishes.owner):
            return False
        return wishes.filter is None or wishes.filter.wants(delivery_of(record))

    def _add(self, record: Record) -> None:
        owner, past = self._wishes.owner, self._past
        if record.epoch != self._epoch:
            self._enter(record.epoch, record.time_ns, record.number if owner is None else 1)
        if record.loss:
            self._lose(pb.Loss.FromString(record.message))
        elif owner is None or record.uid == owner:
            number = record.number if owner is None else record.own
            seen = past.after_id if record.epoch == (past.after_epoch or self._history.epoch) else None
            if seen is not None and number <= seen:
                return
            if seen is not None and not self._joined:
                self._joined = True
                # Numbers of one epoch have no holes but those of what gave way.
                self._gap(number - seen - 1, record.time_ns)
            delivery = delivery_of(record, owner=owner)
            if self._wishes.filter is None or self._wishes.filter.wants(delivery):
                self._entries.append(entry_of(delivery, self._wishes))
        self._last_time_ns = record.time_ns

    def _enter(self, epoch: int, now_ns: int, number: int) -> None:
        """The ids start anew: what nobody wrote down before that is a loss."""
        since = max(self._last_time_ns, self._epoch)
        self._lose(
            pb.Loss(
                stage="api", reason="restart", count=1, first_time_ns=min(since, now_ns), last_time_ns=now_ns
            )
        )
        self._epoch = epoch
        self._started(number)

    def _started(self, number: int) -> None:
        started = pb.Started(next_id=number, epoch=self._epoch)
        self._entries.append(wire.entry("started", started.SerializeToString()))

    def _gap(self, count: int, until_ns: int) -> None:
        """Records between two that were read are gone."""
        if count > 0:
            self._lose(
                pb.Loss(
                    stage="history",
                    reason="evicted",
                    count=count,
                    first_time_ns=self._last_time_ns,
                    last_time_ns=until_ns,
                )
            )

    def _lose(self, loss: pb.Loss) -> None:
        if self._wishes.owner is not None:
            loss = told(loss)
        self._entries.append(wire.entry("loss", loss.SerializeToString()))
