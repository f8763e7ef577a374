"""History on disk: a thread that writes to a SQLite file, and the way to read what lies behind memory.

Takes records from the event loop, which never waits: they go into a bounded queue, and what finds it full is
dropped, counted and told as a loss. The thread writes them in batches (WAL, so that a killed process loses
the last fifth of a second at most), removes the oldest beyond size and age, and sets a file that is damaged
aside as ``FILE.corrupt-TIME``, to go on with a new one. Reading happens in threads of their own, a few
records at a time. Without a usable file the daemon goes on as if there were none, and says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable

from spliffd.api.history import Record, size_of
from spliffd.config import History as Settings
from spliffd.counters import Region
from spliffd.pb import spliff_pb2 as pb

log = logging.getLogger("spliffd.api")

QUEUE_BYTES = 8 << 20
"""What waits to be written: a second of full load. A disk that is slower than that loses records, not
captures."""

BATCH_SECONDS = 0.2
"""Between two commits: what a process that is killed loses of history at most."""

WAIT_SECONDS = 5.0
WAIT_STEPS = 100
"""How long a reader waits for records that are being written, and how often it looks."""

RETRY_SECONDS = 30.0
"""After a file could not be opened or written: how long until the next attempt."""

ROW_OVERHEAD = 100
"""Bytes in the file beyond what a row's blobs take: its numbers, and the page's."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, epoch INTEGER, number INTEGER, own INTEGER, uid INTEGER, time_ns INTEGER,
    loss INTEGER, message BLOB, request_body BLOB, response_body BLOB, summary BLOB, size INTEGER
)
"""
_VERSION = 2
"""PRAGMA user_version of files of this form; others are set aside."""


class DiskArchive:
    """The file at ``settings.path``; ``region`` counts what is dropped."""

    def __init__(self, settings: Settings, region: Region) -> None:
        self._path = settings.path
        self._room = settings.file_mib << 20
        self._age_ns = settings.hours * 3600 * 10**9
        self._region = region
        self._waiting: deque[Record] = deque()
        self._waiting_bytes = 0
        self._dropped: list[Record] = []
        self._changed = threading.Condition()
        self._committed = 0
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._retry = 0.0
        self._held = 0
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def open(self) -> int:
        """Opens the file, before anything is served; the position behind the last record in it."""
        self._try_open()
        self._thread.start()
        return self._committed + 1

    # ---- from the event loop -------------------------------------------------------------------

    def offer(self, records: list[Record]) -> None:
        """Takes records to be written; never waits for the disk."""
        with self._changed:
            for record in records:
                if self._waiting_bytes + size_of(record) > QUEUE_BYTES:
                    self._dropped.append(record)
                    self._region.add("history_dropped")
                else:
                    self._waiting_bytes += size_of(record)
                    self._waiting.append(record)
            self._changed.notify()

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(WAIT_SECONDS)

    async def first_position(self) -> int:
        """The oldest position; 0 when there is none."""
        await self._written()
        return await self._number("SELECT min(position) FROM records")

    async def read(self, position: int, most: int) -> list[Record]:
        """Records from ``position`` on, before memory; waits for what is being written."""
        await self._written(position)
        rows = await asyncio.to_thread(
            self._select,
            "SELECT * FROM records WHERE position >= ? ORDER BY position LIMIT ?",
            (position, most),
        )
        return [_record(row) for row in rows]

    async def behind(self, epoch: int, number: int) -> int:
        """Position behind that exchange, or where it would be; 0 when it was before all that there is."""
        await self._written()
        # Rows are in the order of epochs, and of numbers within each: what is not behind is a prefix.
        last = await self._bisect(lambda found, at, _: (found, at) <= (epoch, number))
        return last + 1 if last else 0

    async def since(self, time_ns: int) -> int:
        """Position of the first record of that time or later; 0 when there is none."""
        await self._written()
        last = await self._bisect(lambda _epoch, _number, found: found < time_ns)
        return await self._number("SELECT min(position) FROM records WHERE position > ?", (last,))

    async def _written(self, position: int = 0) -> None:
        """Waits until this record is in the file, or (0) what waits to be written now."""
        with self._changed:
            wanted = position or (self._waiting[-1].position if self._waiting else 0)
        for _ in range(WAIT_STEPS):
            if self._committed >= wanted or not self._writes():
                return
            await asyncio.sleep(WAIT_SECONDS / WAIT_STEPS)

    async def _bisect(self, holds: Callable[[int, int, int], bool]) -> int:
        """The last position whose row (epoch, number, time) ``holds``, as of a prefix; 0 for none."""
        low = await self._number("SELECT min(position) FROM records")
        high = await self._number("SELECT max(position) FROM records")
        found = 0
        while low and low <= high:
            middle = (low + high) // 2
            rows = await asyncio.to_thread(
                self._select,
                "SELECT position, epoch, number, time_ns FROM records "
                "WHERE position <= ? ORDER BY position DESC LIMIT 1",
                (middle,),
            )
            if not rows:
                break
            position, *facts = rows[0]
            if holds(*facts):
                found, low = position, middle + 1
            else:
                high = position - 1
        return found

    async def _number(self, query: str, values: tuple[int, ...] = ()) -> int:
        rows = await asyncio.to_thread(self._select, query, values)
        return rows[0][0] or 0 if rows else 0

    def _select(self, query: str, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        with self._reading:
            try:
                if self._reader is None:
                    self._reader = sqlite3.connect(self._path, check_same_thread=False)
                return self._reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                log.error("history cannot be read from %s: %s", self._path, error)
                self._close_reader()
                return []

    def _close_reader(self) -> None:
        if self._reader is not None:
            with contextlib.suppress(sqlite3.Error):
                self._reader.close()
            self._reader = None

    def _writes(self) -> bool:
        return bool(self._waiting) and self._connection is not None

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._dropped or self._closing):
                    self._changed.wait()
                if not self._closing:
                    self._changed.wait(BATCH_SECONDS)
                batch, dropped = list(self._waiting), self._dropped
                self._dropped = []
                closing = self._closing
            if self._connection is None and time.monotonic() >= self._retry:
                self._try_open()
            if self._connection is not None and (batch or dropped):
                self._write([*batch, *([_loss_of(dropped)] if dropped else [])])
            with self._changed:
                for record in batch:
                    self._waiting.popleft()
                    self._waiting_bytes -= size_of(record)
                if self._connection is None:
                    self._region.add("history_dropped", len(batch))
            if closing:
                self._close()
                return

    def _write(self, records: list[Record]) -> None:
        connection = self._connection
        assert connection is not None
        try:
            with connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", map(_row, records)
                )
                self._held += sum(map(_cost, records))
                self._forget(connection, records[-1].time_ns)
            self._committed = max(self._committed, *(record.position for record in records))
        except sqlite3.DatabaseError as error:
            self._failed(error)

    def _forget(self, connection: sqlite3.Connection, now_ns: int) -> None:
        """Removes the oldest rows beyond the limits."""
        rows = connection.execute("SELECT position, time_ns, size FROM records ORDER BY position")
        last = 0
        for position, time_ns, size in rows:
            if self._held <= self._room and time_ns >= now_ns - self._age_ns:
                break
            last, self._held = position, self._held - size
        rows.close()
        if last:
            connection.execute("DELETE FROM records WHERE position <= ?", (last,))

    def _try_open(self) -> None:
        """Opens the file; sets it aside when it is damaged, and makes another."""
        self._retry = time.monotonic() + RETRY_SECONDS
        for _ in range(2):
            try:
                self._connection = self._opened()
                return
            except sqlite3.DatabaseError as error:
                if not self._failed(error):
                    return

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=WAIT_SECONDS, check_same_thread=False)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != _VERSION and tables:
                raise sqlite3.DatabaseError(f"it is of version {version}, not {_VERSION}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_VERSION}")
            wrong = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if wrong != "ok":
                raise sqlite3.DatabaseError(wrong)
            last, held = connection.execute("SELECT max(position), sum(size) FROM records").fetchone()
        except BaseException:
            connection.close()
            raise
        self._committed = max(self._committed, last or 0)
        self._held = held or 0
        return connection

    def _failed(self, error: sqlite3.DatabaseError) -> bool:
        """Closes the file; sets it aside when it is damaged rather than out of reach. Says what happened."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if isinstance(error, sqlite3.OperationalError):
            log.error(
                "history cannot be written to %s: %s; it is kept in memory only (see [history] path)",
                self._path,
                error,
            )
            return False
        aside = f"{self._path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"
        log.error("history in %s is damaged (%s): it is set aside as %s", self._path, error, aside)
        with self._reading:
            self._close_reader()
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.rename(self._path + suffix, aside + suffix)
        self._held, self._retry = 0, 0.0
        return True

    def _close(self) -> None:
        with self._reading:
            self._close_reader()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _row(record: Record) -> tuple[int | bytes, ...]:
    # SQLite's numbers are signed; every one here is far below 2^63.
    return (*record, _cost(record))


def _record(row: tuple[int | bytes, ...]) -> Record:
    found = Record._make(row[:11])
    return found._replace(loss=bool(found.loss))


def _cost(record: Record) -> int:
    blobs = (record.message, record.summary, record.request_body, record.response_body)
    return sum(map(len, blobs)) + ROW_OVERHEAD


def _loss_of(dropped: list[Record]) -> Record:
    """What stands in the file for records that found the queue full, at the place of the last of them."""
    last = dropped[-1]
    loss = pb.Loss(
        stage="history",
        reason="queue_full",
        count=sum(not record.loss for record in dropped),
        first_time_ns=dropped[0].time_ns,
        last_time_ns=last.time_ns,
    )
    return last._replace(
        loss=True, message=loss.SerializeToString(), request_body=b"", response_body=b"", summary=b"", uid=-1
    )
