"""The api's two kinds of sockets to the rest of the daemon, without a thread and without waiting.

Takes connected ``SOCK_SEQPACKET`` sockets and an event loop; calls back with what arrived. Sending
never blocks: what the kernel does not take waits here, bounded, until it does. Reading is fair: a
bounded number of datagrams for each wake-up, then everybody else has a turn. What cannot be decoded is
told to the owner, never raised: the other end parses hostile bytes.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from spliffd import ipc

MAX_READS = 4
"""Datagrams for each wake-up: 1,024 exchanges, 3 ms, before the streams are written again."""

MAX_WAITING = 256
"""Messages that wait for a peer that does not read. A peer that far behind is hung; the supervisor's
watchdog deals with it, and what it does not get is refused here instead of kept."""

MAX_FDS = 4
"""File descriptors taken from one message; one is used."""


class Outbox:
    """Sends datagrams in order; keeps what does not fit until the socket takes it."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self.closed = False

    def send(self, datagram: bytes) -> bool:
        """Sends or keeps ``datagram``; False if the peer is gone or too far behind."""
        if self.closed or len(self._waiting) >= MAX_WAITING:
            return False
        if not self._waiting and self._try(datagram):
            return not self.closed
        if not self._waiting:
            self._loop.add_writer(self._sock, self._flush)
        self._waiting.append(datagram)
        return True

    def close(self) -> None:
        """Forgets what waits; the socket stays the owner's."""
        self.closed = True
        self._waiting.clear()
        self._loop.remove_writer(self._sock)

    def _try(self, datagram: bytes) -> bool:
        try:
            self._sock.send(datagram)
        except BlockingIOError:
            return False
        except OSError:
            # The peer is gone; reading finds that out as well, and acts on it.
            self.close()
        return True

    def _flush(self) -> None:
        while self._waiting and self._try(self._waiting[0]):
            if self._waiting:
                self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._sock)


class DataLink:
    """The link to one worker: batches in, demands out.

    ``on_batch(batch)`` gets each batch, to be used at once (its memory is used again), ``on_bad(size)`` each
    datagram that is none, ``on_change()`` is called after each acknowledgement and when the worker has closed
    its end. A worker acknowledges a ``Demand`` by an empty batch, a ``Flush`` by its number, behind all that
    it sent before.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_batch: Callable[[ipc.Batch], None],
        on_bad: Callable[[int], None],
        on_change: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(sock, self._loop)
        self._on_batch = on_batch
        self._on_bad = on_bad
        self._on_change = on_change
        # One byte more than allowed, so that a datagram that is too long shows.
        self._buffer = memoryview(bytearray(ipc.MAX_DATAGRAM + 1))
        self.open = True
        self._unseen = 0
        self._flushes = 0
        self.flushed = 0
        """The highest number of ``flush`` that is acknowledged."""
        self._loop.add_reader(sock, self._read)

    @property
    def acknowledged(self) -> bool:
        """Whether the worker has seen every demand sent to it."""
        return self.open and not self._unseen

    def demand(self, wanted: ipc.Demand) -> None:
        """Tells the worker what is wanted from now on."""
        if self._outbox.send(ipc.encode(wanted)):
            self._unseen += 1

    def flush(self) -> int:
        """Asks the worker to send everything captured so far; ``flushed`` reaches this number when it has."""
        self._flushes += 1
        self._outbox.send(ipc.encode(ipc.Flush(self._flushes)))
        return self._flushes

    def drain(self) -> None:
        """Reads what the worker has sent so far."""
        while self.open and self._read_one():
            pass

    def close(self) -> None:
        """Stops reading and closes the socket."""
        if self.open:
            self.open = False
            self._outbox.close()
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _read(self) -> None:
        for _ in range(MAX_READS):
            if not self.open or not self._read_one():
                return

    def _read_one(self) -> bool:
        try:
            size = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self.close()
            self._on_change()
            return False
        if size > ipc.MAX_DATAGRAM:
            self._on_bad(size)
            return True
        try:
            batch = ipc.decode_batch(self._buffer[:size])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._on_bad(size)
            return True
        first = batch[0] if batch else None
        if isinstance(first, ipc.Frame) and first.kind == ipc.FLUSHED:
            self.flushed = max(self.flushed, first.part_key)
            self._on_change()
        elif batch:
            self._on_batch(batch)
        else:
            self._unseen = max(0, self._unseen - 1)
            self._on_change()
        return True


class ControlLink:
    """The link to the supervisor: ``on_message(message, fds)`` for each message, ``on_end()`` at its end.

    The fds are the callee's to close. A message that cannot be decoded goes to ``on_bad(size)``.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[ipc.ToChild, list[int]], None],
        on_bad: Callable[[int], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(sock, self._loop)
        self._on_message = on_message
        self._on_bad = on_bad
        self._on_end = on_end
        self._loop.add_reader(sock, self._read)

    def send(self, message: ipc.FromChild) -> bool:
        """Sends ``message``; False if the supervisor is gone or too far behind."""
        return self._outbox.send(ipc.encode(message))

    def close(self) -> None:
        """Stops reading and closes the socket."""
        self._outbox.close()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        try:
            data, fds, flags = _receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        if not data:
            _close_all(fds)
            self._loop.remove_reader(self._sock)
            self._on_end()
            return
        try:
            message = ipc.decode_to_child(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = None
        if message is None or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close_all(fds)
            self._on_bad(len(data))
            return
        self._on_message(message, fds)


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    # Not socket.recv_fds: it hides the flags and cannot ask for close-on-exec.
    room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(ipc.MAX_DATAGRAM, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds), flags


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
