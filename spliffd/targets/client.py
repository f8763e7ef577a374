"""The supervisor's side of the inspector: asks about a file, believes only so much, waits only so long.

Takes an open fd and returns an ``Inspection``. Starts the inspector when it is needed, gives up on it
after ``ANSWER_SECONDS``, kills and counts it, and tries once more; the outcome is remembered by the
file's identity, so a file that hangs the inspector does it once. One request at a time.
Never parses a file, never imports what does; never raises for what a file or the inspector does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import OrderedDict, deque
from pathlib import Path

import msgspec

import spliffd
from spliffd.targets.sites import (
    MAX_ANSWER,
    READY,
    Inspection,
    Request,
    check,
    decode_inspection,
    encode_request,
)

ANSWER_SECONDS = 5.0
"""A file of 100 MB takes 0.2 s; a file on a dead network file system takes for ever."""

START_SECONDS = 15.0
"""Python and capstone take 0.15 s to start, more on a host that has just booted."""

ATTEMPTS = 2
"""A host under load may be late once; a file that does it twice is refused."""

CACHE_FILES = 4096
"""Identities remembered, about 2 KiB each; a host has some hundred libraries and large programs."""

FAILURES_SHOWN = 16
"""The latest failures kept in words; all of them are counted."""


class _NotStartedError(OSError):
    """The inspector does not come up: no fault of the file's, so not remembered as one."""


class Inspector:
    """Asks the inspector process, which runs as ``uid``:``gid``. Use from one event loop; ``close`` it.

    The counters are for the statistics: ``requests`` asked of the process, ``cache_hits``, ``starts``,
    ``timeouts``, ``crashes``; ``failures`` has the latest in words.
    """

    def __init__(
        self, uid: int, gid: int, *, answer_seconds: float = ANSWER_SECONDS, cache_files: int = CACHE_FILES
    ) -> None:
        self._uid, self._gid = uid, gid
        self._answer_seconds = answer_seconds
        self._cache_files = cache_files
        self._cache: OrderedDict[tuple[int, ...], Inspection] = OrderedDict()
        self._lock = asyncio.Lock()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1  # valid while there is a process
        self.requests = self.cache_hits = self.starts = self.timeouts = self.crashes = 0
        self.failures: deque[str] = deque(maxlen=FAILURES_SHOWN)

    @property
    def pid(self) -> int:
        """The inspector's process id, 0 while there is none."""
        return self._process.pid if self._process else 0

    async def inspect(self, fd: int, path: str, relocate: bool) -> Inspection:
        """What is in the file open as ``fd``; ``path`` only names it in ``failures``.

        The fd stays the caller's. An inspector that fails gives an Inspection "refused" that says so.
        """
        status = os.fstat(fd)
        key = (
            status.st_dev,
            status.st_ino,
            status.st_mtime_ns,
            status.st_ctime_ns,  # its owner can set the modification time back, not this one
            status.st_size,
            relocate,
        )
        async with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self.cache_hits += 1
                self._cache.move_to_end(key)
                return known
            try:
                answer = await self._ask_patiently(fd, path, relocate, status.st_size)
            except _NotStartedError as error:
                self._failed(path, f"the inspector does not start: {error}")
                return Inspection("refused", reason=self.failures[-1], cause="unreadable")
            except BaseException:
                # Cancelled: an answer still to come must not be taken for the next one.
                self._stop()
                raise
            self._cache[key] = answer
            if len(self._cache) > self._cache_files:
                self._cache.popitem(last=False)
            return answer

    async def _ask_patiently(self, fd: int, path: str, relocate: bool, size: int) -> Inspection:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                answer = await self._ask(fd, relocate)
            except _NotStartedError:
                raise
            except TimeoutError:
                self.timeouts += 1
                reason = f"the inspector gave no answer within {self._answer_seconds:g} s"
            except (OSError, msgspec.DecodeError) as error:
                self.crashes += 1
                reason = f"the inspector failed: {error}"
            else:
                problem = check(answer, size)
                if not problem:
                    return answer
                self.crashes += 1
                reason = f"the inspector's answer makes no sense: {problem}"
            self._failed(path, reason)
        return Inspection("refused", reason=reason, cause="unreadable")

    def _failed(self, path: str, reason: str) -> None:
        self._stop()
        self.failures.append(f"{path}: {reason}")

    async def _ask(self, fd: int, relocate: bool) -> Inspection:
        self.requests += 1
        request = encode_request(Request(relocate))
        link = self._link or await self._start()
        try:
            socket.send_fds(link, [request], [fd])
        except (BrokenPipeError, ConnectionResetError):
            # It had just left for want of work: no failure.
            self._stop()
            link = await self._start()
            socket.send_fds(link, [request], [fd])
        async with asyncio.timeout(self._answer_seconds):
            data = await asyncio.get_running_loop().sock_recv(link, MAX_ANSWER)
        if not data:
            raise ConnectionError("it ended while it was asked")
        return decode_inspection(data)

    async def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link = ours
        self.starts += 1
        with theirs:
            ours.setblocking(False)
            arguments = [str(theirs.fileno()), str(self._uid), str(self._gid)]
            try:
                # Its imports happen as root: only from this package and the interpreter's own places.
                process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec, 2 ms; the pidfd reports its end
                    [sys.executable, "-P", "-s", "-m", "spliffd.targets.inspector", *arguments],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env={
                        "PATH": "/usr/bin:/bin",
                        "PYTHONPATH": str(Path(spliffd.__file__).parent.parent),
                        "PYTHONDONTWRITEBYTECODE": "1",
                    },
                )
            except OSError as error:
                raise _NotStartedError(str(error)) from None
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._ended)
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await loop.sock_recv(ours, len(READY))
        except (TimeoutError, OSError):
            raise _NotStartedError(f"not ready within {START_SECONDS:g} s") from None
        if hello != READY:
            raise _NotStartedError("it ended; its own message is in the journal")
        return ours

    def _ended(self) -> None:
        """The process is gone: takes its exit status, so that no zombie stays."""
        if self._process:
            self._process.wait()
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._process = None
        if not self._lock.locked() and self._link:
            # Nobody waits for an answer on it (who does, reads the end of file there).
            self._link.close()
            self._link = None

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            self._ended()
        if self._link:
            self._link.close()
            self._link = None

    async def close(self) -> None:
        """Ends the inspector."""
        async with self._lock:
            self._stop()
