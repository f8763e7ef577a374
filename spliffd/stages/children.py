"""The processes without privileges: started, asked for signs of life, restarted.

Takes a command and the fds it needs; gives a ``Child`` with a control link. A child that dies is started
anew with a growing delay; one that stops answering is killed first. Everything a child holds
(counters, ring, maps) belongs to the supervisor, so nothing but what it had in its hands is lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from spliffd import ipc
from spliffd.journal import logger
from spliffd.stages.priority import set_priority

log = logger("children")

RESTART_SECONDS = (0.05, 0.2, 1.0, 5.0)
"""Delay before the n-th restart in a row; a child that lives for a minute starts the row anew."""

STABLE_SECONDS = 60.0

SILENT_SECONDS = 15.0
"""A child that has not answered for so long is hung: three times what a drain may take. It is killed, and
back, within the unit's WatchdogSec=30, so that systemd need not end the whole daemon for it."""

_DATAGRAM = 1 << 20


OnMessage = Callable[["Child", ipc.FromChild], None]


KEPT = ("JOURNAL_STREAM", "LANG", "TZ", "SPLIFF_FAULT_FLOW_DELAY_MS")
"""Variables that children see. The last one is for tests (spliffd/worker/faults.py); a service sets none."""


def environment() -> dict[str, str]:
    """What children see of the environment: where our package lies, and where the journal is."""
    keep = {key: os.environ[key] for key in KEPT if key in os.environ}
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        # gRPC's threads would each get an arena of their own, and keep what a burst once needed: 14 MiB.
        "MALLOC_ARENA_MAX": "1",
        # Batches and messages (200 KiB) come and go 200 times a second: mapped anew each time, as glibc does
        # from 128 KiB on, their pages would cost the api a tenth of its time. What is larger, or free at the
        # end, goes.
        "MALLOC_MMAP_THRESHOLD_": "524288",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        **keep,
    }


class Child:
    """One child process and its control link, over all its lives.

    ``command`` makes the arguments behind ``python -m`` from the control link's fd, ``fds`` are the other
    fds it inherits. ``started`` runs whenever a new process has said Ready.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], list[str]],
        fds: Callable[[], list[int]],
        on_message: OnMessage,
        started: Callable[[Child], None],
        restarted: Callable[[], None],
        nice: int = 0,
    ) -> None:
        self.name = name
        self._command = command
        self._fds = fds
        self._on_message = on_message
        self._started = started
        self._restarted = restarted
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._failures = 0
        self._since = 0.0
        self._heard = 0.0
        self._asked = 0.0
        self._unanswered = 0.0
        self._stopping = False
        self.ready = asyncio.Event()
        self.failure: ipc.Failed | None = None
        self.gone = asyncio.Event()

    @property
    def pid(self) -> int:
        """Process id, 0 while there is none."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Starts the process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _DATAGRAM)
        self.ready.clear()
        self.gone.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", *self._command(theirs.fileno())],
            pass_fds=[theirs.fileno(), *self._fds()],
            env=environment(),
            stdin=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C is for the supervisor. No session of its own: with autogroup scheduling (sched(7)) each
            # child would be a scheduling group, and kernel 6.18 lets such a small one wait for up to a second
            # behind programs that take all they get.
            process_group=0,
        )
        theirs.close()
        if self._nice:
            set_priority(self._process.pid, self._nice)
        self._link = ours
        self._since = self._heard = self._asked = self._unanswered = time.monotonic()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    def send(self, message: ipc.ToChild, fds: list[int] | None = None) -> None:
        """Sends a control message; a child that cannot take it is found out by its silence."""
        if self._link is None:
            return
        try:
            socket.send_fds(self._link, [ipc.encode(message)], fds or [])
        except OSError as error:
            log.debug("control message not sent", child=self.name, error=str(error))

    def _read(self) -> None:
        link = self._link
        while link is not None and link is self._link:
            try:
                data = link.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended()
                return
            self._heard = time.monotonic()
            try:
                message = ipc.decode_from_child(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                # It parses hostile bytes and has no privileges: it is not believed, but replaced.
                log.error("child sent what is no message, killing it", child=self.name, size=len(data))
                if self._process is not None:
                    self._process.kill()
                self._ended()
                return
            if isinstance(message, ipc.Ready):
                self.ready.set()
                self._started(self)
            elif isinstance(message, ipc.Failed):
                self.failure = message
            else:
                self._on_message(self, message)

    def _ended(self) -> None:
        """The link is closed: the process is over, or as good as over."""
        loop = asyncio.get_running_loop()
        if self._link is not None:
            loop.remove_reader(self._link.fileno())
            self._link.close()
            self._link = None
        process = self._process
        if process is None:
            return
        if process.poll() is None and not self._stopping:
            process.kill()
        code = process.wait()
        self._process = None
        self.gone.set()
        if self._stopping:
            return
        first = not self.ready.is_set()
        self.ready.clear()
        if first and self.failure is not None:
            self.ready.set()  # whoever waits for it finds the failure
            return
        if time.monotonic() - self._since > STABLE_SECONDS:
            self._failures = 0
        delay = RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS) - 1)]
        self._failures += 1
        self._restarted()
        log.warning("child ended, restarting", child=self.name, code=code, delay_seconds=delay)
        loop.call_later(delay, self._again)

    def _again(self) -> None:
        if not self._stopping:
            self.start()

    def ping(self, number: int) -> bool:
        """Asks for a sign of life; True when it has answered since it was asked last.

        A child that gave no answer for too long is killed, and so restarted. Its time runs from the first
        question without an answer: while the supervisor itself is busy (loading programs takes half a minute
        on a slow machine) nobody asks, and answers wait unread.
        """
        self._read()
        now = time.monotonic()
        alive = self._process is not None and self._heard >= self._asked
        if alive:
            self._unanswered = now
        silent = now - self._unanswered
        if self._process is not None and silent > SILENT_SECONDS:
            log.error("child does not answer, killing it", child=self.name, silent_seconds=round(silent))
            self._process.kill()
        self._asked = now
        self.send(ipc.Ping(number))
        return alive

    async def stop(self, seconds: float) -> None:
        """Asks it to finish; kills it when it does not within ``seconds``."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        self.send(ipc.Stop())
        await _within(self.gone.wait(), seconds)
        if self._process is not None:
            log.warning("child did not finish in time, killing it", child=self.name)
            os.kill(process.pid, signal.SIGKILL)
            await _within(self.gone.wait(), 2.0)


async def _within(wait: Awaitable[object], seconds: float) -> None:
    try:
        await asyncio.wait_for(asyncio.ensure_future(wait), seconds)
    except TimeoutError:
        return
