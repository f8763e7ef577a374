"""How a worker waits: for messages alone, for much in the ring as well, or for any record.

Takes the sockets and rings to wait for; returns which of the sockets have something to read. Wakes nobody and
arms nothing: which record wakes a worker is what the eBPF programs are told beside (``Loop``).
"""

from __future__ import annotations

import select
import socket

Ready = list[tuple[int, int]]
"""Descriptors and events, as of poll(2)."""


class Waits:
    """Waits for ``control``, for a link while there is one, and for the ring that is read."""

    def __init__(self, control: socket.socket, ring_fd: int) -> None:
        self._control = select.poll()
        self._control.register(control, select.POLLIN)
        self._messages = select.poll()
        self._any = select.poll()
        self._much = select.epoll()
        self.add(control)
        self.ring(ring_fd)

    def ring(self, fd: int, before: int | None = None) -> None:
        """Another ring is read from here on, in place of ``before``."""
        if before is not None:
            self._any.unregister(before)
            self._much.unregister(before)
        self._any.register(fd, select.POLLIN)
        # Edges: it is to tell of wake-ups that were asked for, not of records that came without one.
        self._much.register(fd, select.EPOLLIN | select.EPOLLET)

    def add(self, link: socket.socket) -> None:
        """Waits for ``link`` as well."""
        for poller in (self._messages, self._any, self._much):
            poller.register(link, select.POLLIN)

    def remove(self, link: socket.socket) -> None:
        """No longer."""
        for poller in (self._messages, self._any, self._much):
            poller.unregister(link)

    def for_control(self, milliseconds: float) -> Ready:
        """Until the supervisor says something."""
        return self._control.poll(milliseconds)

    def for_messages(self, milliseconds: float | None) -> Ready:
        """Until a message comes."""
        return self._messages.poll(milliseconds)

    def for_much(self, milliseconds: float | None) -> Ready:
        """Until a message comes, or a record that wakes."""
        return self._much.poll(None if milliseconds is None else milliseconds / 1000)

    def for_any(self, milliseconds: float | None) -> Ready:
        """The same, or at once if a record waits already."""
        return self._any.poll(milliseconds)
