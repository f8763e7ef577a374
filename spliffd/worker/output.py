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

from spliffd import ipc
from spliffd.counters import Region
from spliffd.pb import spliff_pb2

STALL_SECONDS = 1.0
"""How long the worker waits for a busy api before it drops: the ring holds about as much at full load."""

BATCH_BYTES = 512 << 10
"""A batch is sent before it exceeds this. One frame alone may: a body part is 384 KiB at most (what is held
and one record), twice that with its unmasked twin, and so below MAX_DATAGRAM."""

BATCH_FRAMES = 256
"""And when it has this many frames, so that the api can share out the work."""


class Output:
    """Outgoing side of the data link; ``link`` is None while there is no api."""

    def __init__(self, counters: Region) -> None:
        self.link: socket.socket | None = None
        self._counters = counters
        self._frames: list[ipc.Frame] = []
        self._bytes = 0
        self._losses: dict[tuple[str, str], list[int]] = {}

    def put(self, frame: ipc.Frame) -> None:
        """Adds a frame; sends when the batch is full."""
        size = (
            len(frame.public)
            + len(frame.request_body)
            + len(frame.response_body)
            + len(frame.secret)
            + len(frame.secret_request_body)
            + len(frame.secret_response_body)
            + 256
        )
        if self._frames and self._bytes + size > BATCH_BYTES:
            self.flush()
        self._frames.append(frame)
        self._bytes += size
        if self._bytes >= BATCH_BYTES or len(self._frames) >= BATCH_FRAMES:
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
        return bool(self._frames or self._losses)

    def flush(self) -> None:
        """Sends what there is."""
        if self._losses and self.link is not None:
            self._frames += [_loss_frame(*key, *entry) for key, entry in self._losses.items()]
            self._losses.clear()
        if not self._frames:
            return
        frames, self._frames = self._frames, []
        size, self._bytes = self._bytes, 0
        if self.link is None or not self._send(ipc.encode(frames)):
            self._drop(frames, size)

    def acknowledge(self) -> None:
        """Tells the api that its Demand is in force: an empty batch, behind everything before it."""
        self.flush()
        if self.link is not None:
            self._send(ipc.encode([]))

    def flushed(self, number: int) -> None:
        """Tells the api that everything that its Flush asked for has been sent."""
        self.flush()
        if self.link is not None:
            self._send(ipc.encode([ipc.Frame(ipc.FLUSHED, number, b"", b"")]))

    def _drop(self, frames: list[ipc.Frame], size: int) -> None:
        now = time.time_ns()
        self._counters.add("output_dropped_frames", len(frames))
        self._counters.add("output_dropped_bytes", size)
        self.lose("worker", "queue_full", len(frames), size, now, now)

    def _send(self, datagram: bytes) -> bool:
        link = self.link
        if link is None:
            return False
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
