"""The file of ``watch -w``: whole at any time, there under its name only when it is complete.

Takes bytes batch by batch, writes them to a temporary file beside the target, and renames it when the watch
ends or the file is full (``--rotate``). Behind each batch stands the format's tail, which the next batch
overwrites: a crash leaves a whole file too, under its temporary name. When the disk is full, what was written
before is completed, kept under its name, and the watch ends. Files are readable by their owner only, for
they hold what was encrypted. A target that is no regular file (a FIFO, /dev/stdout) is written directly.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from spliffctl import units
from spliffctl.errors import FileError
from spliffctl.render.quote import quote

MIN_ROTATE_BYTES = 4096
"""Smaller files would be mostly heads and tails."""

MIN_ROTATE_S = 1.0
"""More files a second serve nobody."""

_SIZE = re.compile(r"\d+\s*[KMG](?:i?B)?")


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is full: after so many bytes, or so many seconds (the other is 0)."""

    bytes: int = 0
    seconds: float = 0.0


def parse_rotation(text: str) -> Rotation:
    """``100M`` (a size, in capitals) or ``10m`` (a time). Raises ValueError with a sentence."""
    if _SIZE.fullmatch(text.strip()):
        size = units.parse_size(text)
        if size < MIN_ROTATE_BYTES:
            raise ValueError(f"{text!r} is too small: at least 4K")
        return Rotation(bytes=size)
    if text.strip().isdigit():
        raise ValueError(f"{text!r} has no unit: write {text}M (size), or {text}m (time)")
    try:
        seconds = units.parse_duration(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a size (64K, 100M, 1G) nor a time (30s, 10m, 1h)") from None
    if seconds < MIN_ROTATE_S:
        raise ValueError(f"{text!r} is too short: at least 1s")
    return Rotation(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a format puts around its items; each is asked for when it is needed."""

    head: Callable[[], bytes] = bytes
    end: Callable[[], bytes] = bytes
    tail: Callable[[], bytes] = bytes


class ExportFile:
    """One file, or with ``rotation`` a series of them: ``capture-20261122T151159-0001.har``."""

    def __init__(self, path: str, layout: Layout, rotation: Rotation | None = None) -> None:
        self.names: list[str] = []
        """The latest completed files, newest last."""
        self.count = 0
        """How many files were completed."""
        self._layout = layout
        self._rotation = rotation or Rotation()
        # A link is followed: the file that it names is replaced, not the link.
        self._path = os.path.realpath(path)
        self._shown = path
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        stem, suffix = os.path.splitext(self._path)
        self._series = (f"{stem}-{stamp}-{number:04}{suffix}" for number in itertools.count(1))
        self._fd = -1
        self._temporary = ""
        self._at = self._empty = 0
        self._timer: asyncio.TimerHandle | None = None
        self._error: FileError | None = None
        self._unheard: FileError | None = None
        """An error that came when nobody could be told."""
        self._direct = self._is_special()
        if self._direct and rotation:
            raise FileError(f"--rotate needs regular files, and {quote(path)} is none")
        self._begin()

    def write(self, data: bytes | str) -> None:
        """Appends a batch. Raises FileError when that is impossible; then the file was completed."""
        if self._error:
            raise self._error
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        if self._rotation.seconds and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._rotation.seconds, self._time_is_up)
        self._put(data)
        if self._rotation.bytes and self._at >= self._rotation.bytes:
            self._next()

    def finish(self) -> None:
        """Completes the file, unless a write failed: then that was done, and told."""
        if self._unheard:
            raise self._unheard
        if self._fd < 0:
            return
        rest = self._layout.end()
        if self.count and self._at == self._empty and not rest:
            # The last of a series, begun and not used.
            os.unlink(self._temporary)
            self._close()
        else:
            self._complete(rest)

    def _is_special(self) -> bool:
        try:
            return not stat.S_ISREG(os.stat(self._path).st_mode)
        except OSError:
            return False

    def _begin(self) -> None:
        try:
            if self._direct:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            else:
                folder, name = os.path.split(self._path)
                self._fd, self._temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
        except OSError as error:
            raise FileError(f"cannot write {quote(self._shown)}: {error.strerror}") from error
        self._at = 0
        self._put(self._layout.head())
        self._empty = self._at

    def _next(self) -> None:
        """Completes the file and begins another, before any item is rendered for it: formats keep state."""
        self._complete(self._layout.end())
        self._begin()

    def _put(self, data: bytes) -> None:
        """Writes at the end of the items, and the tail behind; all of it or nothing."""
        tail = b"" if self._direct else self._layout.tail()
        try:
            if self._direct:
                _write_all(self._fd, data, None)
            else:
                _write_all(self._fd, data + tail, self._at)
        except OSError as error:
            self._give_up(error, tail)
        self._at += len(data)

    def _give_up(self, error: OSError, tail: bytes) -> None:
        """Completes what was there before, and raises."""
        problem = f"cannot write {quote(self._shown)}: {error.strerror}"
        kept = ""
        if not self._direct and self._at:
            try:
                # Where the tail stood before there is room for it: it was written there.
                os.ftruncate(self._fd, self._at + len(tail))
                _write_all(self._fd, tail, self._at)
                os.ftruncate(self._fd, self._at + len(tail))
                kept = f"; what came before is in {quote(self._publish())}"
            except OSError:
                kept = f"; what came before is in {quote(self._temporary)}"
        self._error = FileError(problem + kept)
        self._close()
        raise self._error from error

    def _time_is_up(self) -> None:
        self._timer = None
        # Out of a timer nothing can be raised: the next write does, or the end.
        try:
            self._next()
        except FileError as error:
            self._error = self._unheard = error

    def _complete(self, rest: bytes) -> None:
        self._put(rest)
        tail = self._layout.tail()
        try:
            if self._direct:
                _write_all(self._fd, tail, None)
            else:
                # A tail may have become shorter than the one before.
                os.ftruncate(self._fd, self._at + len(tail))
                os.fsync(self._fd)
                self._publish()
        except OSError as error:
            self._error = FileError(
                f"cannot complete {quote(self._shown)}: {error.strerror}; "
                f"its content is in {quote(self._temporary)}"
            )
            self._close()
            raise self._error from error
        self._close()

    def _publish(self) -> str:
        """Gives the file its name; one of a series never replaces another."""
        if self._rotation == Rotation():
            name = self._path
            os.rename(self._temporary, name)
        else:
            for name in self._series:
                try:
                    os.link(self._temporary, name)
                except FileExistsError:
                    continue
                os.unlink(self._temporary)
                break
        self.names = [*self.names[-1:], name]
        self.count += 1
        return name

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _write_all(fd: int, data: bytes, at: int | None) -> None:
    """Writes at an offset, or where the file stands (pipes)."""
    rest = memoryview(data)
    while rest:
        done = os.write(fd, rest) if at is None else os.pwrite(fd, rest, at)
        rest = rest[done:]
        if at is not None:
            at += done
