"""The api's side of the talk with the supervisor.

Takes the control link; answers pings from the main loop (so that a hung loop is noticed), connects new
workers' links, switches the log level, and passes on questions that only root can answer. ``stop`` is
set when the daemon is to end, and ``lost`` tells whether that is because the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from spliffd import ipc, resident
from spliffd.api.hub import Hub
from spliffd.api.links import ControlLink, DataLink

log = logging.getLogger("spliffd.api")

ANSWER_SECONDS = 5.0
"""A question is answered from memory; a supervisor that takes longer is stuck."""

MAX_QUESTIONS = 32
"""Questions at a time: people and scripts ask, not programs under load."""


class UnavailableError(Exception):
    """The supervisor did not answer; the text says what to do."""


class RefusedError(Exception):
    """The supervisor answered with an error, in one line."""


class SupervisorLink:
    """Talks to the supervisor over ``sock`` and feeds ``hub`` with links."""

    def __init__(self, sock: socket.socket, hub: Hub) -> None:
        self._hub = hub
        self._ebb = resident.Ebb()
        self._questions: dict[int, asyncio.Future[ipc.Answer]] = {}
        self._number = 0
        self.stop = asyncio.Event()
        self.lost = False
        self._link = ControlLink(sock, self._receive, self._bad, self._end)

    def ready(self) -> None:
        """Says that the api serves."""
        self._link.send(ipc.Ready())

    async def ask(self, name: str, payload: bytes, owner: int | None = None) -> bytes:
        """Passes on the RPC ``name``; raises UnavailableError or RefusedError.

        ``owner``: for somebody who may know of that user's processes only.
        """
        if len(self._questions) >= MAX_QUESTIONS:
            raise UnavailableError(f"{MAX_QUESTIONS} questions wait already; ask again in a moment")
        self._number += 1
        number = self._number
        answer: asyncio.Future[ipc.Answer] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            query = ipc.Query(number, name, payload, -1 if owner is None else owner)
            if not self._link.send(query):
                raise UnavailableError("the supervisor cannot be asked; see `journalctl -u spliffd`")
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await answer
        except TimeoutError:
            raise UnavailableError(
                f"the supervisor did not answer within {ANSWER_SECONDS:.0f} s; see `journalctl -u spliffd`"
            ) from None
        finally:
            del self._questions[number]
        if found.error:
            raise RefusedError(found.error)
        return found.payload

    def close(self) -> None:
        """Closes the link."""
        self._link.close()

    def _receive(self, message: ipc.ToChild, fds: list[int]) -> None:
        match message:
            case ipc.Ping(number=number):
                self._link.send(ipc.Pong(number=number))
            case ipc.Link(worker=worker):
                if fds:
                    self._connect(worker, fds.pop(0))
                else:
                    log.error("the supervisor announced worker %d without its socket", worker)
            case ipc.Stop():
                self.stop.set()
            case ipc.Debug(enabled=enabled):
                logging.getLogger("spliffd").setLevel(logging.DEBUG if enabled else logging.INFO)
            case ipc.Answer():
                self._answered(message, fds)
            case ipc.ProcessFacts() | ipc.Watched() | ipc.Interfaces() | ipc.Masking():
                log.error("the supervisor sent a %s: that is for workers", type(message).__name__)
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _answered(self, answer: ipc.Answer, fds: list[int]) -> None:
        question = self._questions.get(answer.number)
        if question is None or question.done():
            return
        try:
            answer.payload = ipc.unpacked(answer, fds)
        except (OSError, ValueError) as error:
            answer.error = f"its answer cannot be read: {error}"
        question.set_result(answer)

    def _connect(self, worker: int, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            log.error("the supervisor sent no socket for worker %d: %s", worker, error)
            with contextlib.suppress(OSError):
                os.close(fd)
            return
        log.debug("worker %d is connected", worker)
        self._hub.connect(worker, lambda hub: DataLink(sock, self._deliver, hub.bad_datagram, hub.notify))

    def _deliver(self, batch: ipc.Batch) -> None:
        self._ebb.came(self._hub.deliver(batch))

    def _bad(self, size: int) -> None:
        log.error("the supervisor sent %d bytes that cannot be read; is it another version?", size)

    def _end(self) -> None:
        self.lost = True
        self.stop.set()
