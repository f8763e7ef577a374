"""Feeds a file format with the stream: joins bodies, counts, writes a batch at a time.

Takes ``WatchResponse`` messages as the printer of text does (items.py); a format gets finished exchanges with
their whole bodies, so what is under way is not asked for and would be left out. Kinds of items that a later
daemon may know are left out too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from spliffctl.items import Totals, unmask
from spliffctl.parts import PartStore

if TYPE_CHECKING:
    from spliffctl.export.form import Form
    from spliffd.pb import spliff_pb2 as pb

MAX_WAITING_BYTES = 256 << 20
"""Body parts that may wait for their exchange: while it is written, a body is in memory some four times
(joined, decoded, as text, encoded), and an export is to run for days on a small machine."""


class Target(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes) -> None:
        """Writes all of it."""


class ExportPrinter:
    """Writes items until ``count`` exchanges were written (0: for ever)."""

    def __init__(self, target: Target, form: Form, *, body_limit: int = 0, count: int = 0) -> None:
        self.totals = Totals()
        self._target = target
        self._form = form
        self._count = count
        self._store = PartStore(limit=body_limit, capacity=MAX_WAITING_BYTES)

    def show(self, batch: pb.WatchResponse) -> bool:
        """Writes a batch; returns whether enough exchanges were written."""
        pieces = []
        done = False
        for item in batch.items:
            match item.WhichOneof("kind"):
                case "exchange":
                    pieces.append(self._exchange(item.exchange))
                    if self.totals.exchanges == self._count:
                        done = True
                        break
                case "message":
                    pieces.append(self._form.message(item.message))
                case "chunk":
                    pieces.append(self._form.chunk(item.chunk))
                case "handshake":
                    pieces.append(self._form.handshake(item.handshake))
                case "loss":
                    pieces.append(self._lose(item.loss))
                case "body_part":
                    self._store.add(item.body_part)
                case "discard":
                    self._store.discard(list(item.discard.part_keys))
                case "started":
                    self._store.clear()
        parts, size = self._store.take_loss()
        if parts:
            from spliffd.pb import spliff_pb2

            reason = "body_memory_full_256_MiB"
            pieces.append(self._lose(spliff_pb2.Loss(stage="client", reason=reason, count=parts, bytes=size)))
        if data := b"".join(pieces):
            self._target.write(data)
        return done

    def _exchange(self, exchange: pb.Exchange) -> bytes:
        self.totals.exchanges += 1
        if exchange.revealed:
            unmask(exchange)
        return self._form.exchange(exchange, self._store.take(exchange))

    def _lose(self, loss: pb.Loss) -> bytes:
        self.totals.lost += loss.count
        return self._form.loss(loss)
