"""The worker's way to the api: frames become batches, batches become datagrams, losses are told.

Takes frames; sends them over the data link in batches below ``MAX_DATAGRAM``. When the api is busy the
worker waits for it (the ring, far larger than any queue here, takes what comes meanwhile); when the api
is stuck for ``STALL_SECONDS`` or gone, batches are dropped, counted, and told as Loss when it is back.

Reads no captured bytes beyond moving them; formats nothing but Loss messages.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from spliffd import ipc
from spliffd.counters import Region
from spliffd.entries import Writer
from spliffd.pb import spliff_pb2

STALL_SECONDS = 1.0
"""How long the worker waits for a busy api before it drops: the ring holds about as much at full load."""

BATCH_BYTES: Final = 512 << 10
"""A batch is sent before it exceeds this. One frame alone may: a body part is 384 KiB at most (what is held
and one record), twice that with its unmasked twin, and so below MAX_DATAGRAM."""

BATCH_FRAMES: Final = 256
"""And when it has this many frames, so that the api can share out the work, and a batch is no memory mapping
of its own (``spliffd.stages.children``, ``environment``)."""


class Output:
    """Outgoing side of the data link; ``link`` is None while there is no api."""

    def __init__(self, counters: Region) -> None:
        self.link: socket.socket | None = None
        self._counters = counters
        self._batch: ipc.Batch = []
        self._count = 0
        """Exchanges and others in the batch, those that are alike included."""
        self._alike = Writer()
        self._bytes = 0
        self._datagram = bytearray(BATCH_BYTES)
        """Where batches are encoded: memory that is at hand each time."""
        self._losses: dict[tuple[str, str], list[int]] = {}

    def put(self, frame: ipc.Frame) -> None:
        """Adds a frame; sends when the batch is full."""
        size = (
            len(frame.public)
            + len(frame.summary)
            + len(frame.request_body)
            + len(frame.response_body)
            + len(frame.secret)
            + len(frame.secret_request_body)
            + len(frame.secret_response_body)
            + 256
        )
        if self._count and self._bytes + size > BATCH_BYTES:
            self.flush()
        if len(self._alike):
            self._batch.append(self._alike.take())
        self._batch.append(frame)
        self._put(size)

    def put_alike(self, public: bytes, connection: bytes, rest: bytes, uid: int) -> None:
        """Adds an exchange that every watcher gets alike; arguments as of ``Writer.add``."""
        size = len(public) + len(connection) + len(rest) + 256
        if self._count and self._bytes + size > BATCH_BYTES:
            self.flush()
        self._alike.add(public, connection, rest, uid)
        self._put(size)

    def _put(self, size: int) -> None:
        self._bytes += size
        self._count += 1
        if self._bytes >= BATCH_BYTES or self._count >= BATCH_FRAMES:
            self.flush()

    def lose(self, stage: str, reason: str, count: int, size: int, first: int, last: int) -> None:
        """Notes a loss (times in ns since the epoch); it goes out with the next flush."""
        entry = self._losses.setdefault((stage, reason), [0, 0, first, last])
        entry[0] += count
        entry[1] += size
        entry[2] = min(entry[2], first)
        entry[3] = max(entry[3], last)

    def pending(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._count or self._losses)

    def flush(self) -> None:
        """Sends what there is."""
        if len(self._alike):
            self._batch.append(self._alike.take())
        if self._losses and self.link is not None:
            self._batch += [_loss_frame(*key, *entry) for key, entry in self._losses.items()]
            self._count += len(self._losses)
            self._losses.clear()
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        size, self._bytes = self._bytes, 0
        count, self._count = self._count, 0
        if self.link is None or not self._send(batch):
            self._drop(count, size)

    def acknowledge(self) -> None:
        """Tells the api that its Demand is in force: an empty batch, behind everything before it."""
        self.flush()
        if self.link is not None:
            self._send([])

    def flushed(self, number: int) -> None:
        """Tells the api that everything that its Flush asked for has been sent."""
        self.flush()
        if self.link is not None:
            self._send([ipc.Frame(ipc.FLUSHED, number, b"", b"")])

    def _drop(self, count: int, size: int) -> None:
        now = time.time_ns()
        self._counters.add("output_dropped_frames", count)
        self._counters.add("output_dropped_bytes", size)
        self.lose("worker", "queue_full", count, size, now, now)

    def _send(self, batch: ipc.Batch) -> bool:
        link = self.link
        if link is None:
            return False
        datagram = self._datagram
        ipc.encode_into(batch, datagram)
        try:
            link.send(datagram)
            return True
        except BlockingIOError:
            self._counters.add("output_stalls")
        except OSError:
            self.close()
            return False
        deadline = time.monotonic() + STALL_SECONDS
        poller = select.poll()
        poller.register(link, select.POLLOUT)
        while (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            try:
                link.send(datagram)
                return True
            except BlockingIOError:
                continue
            except OSError:
                self.close()
                return False
        return False

    def close(self) -> None:
        """Forgets the link; a new one comes from the supervisor."""
        if self.link is not None:
            self.link.close()
            self.link = None


def _loss_frame(stage: str, reason: str, count: int, size: int, first: int, last: int) -> ipc.Frame:
    loss = spliff_pb2.Loss(
        stage=stage, reason=reason, count=count, bytes=size, first_time_ns=first, last_time_ns=last
    )
    return ipc.Frame(kind=ipc.LOSS, part_key=0, summary=b"", public=loss.SerializeToString())
