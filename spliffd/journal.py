"""The daemon's log: structlog events become journal entries, or lines on standard error.

``configure`` is called once in each process, ``logger(stage)`` gives a logger, ``set_debug`` switches debug
messages of every logger at run time. Under systemd (standard error is the journal's stream) an event goes to
journald as one native-protocol datagram whose fields can be filtered (``journalctl SPLIFF_STAGE=worker``);
otherwise it is one line of text. What journald does not take goes to standard error.

Never logs captured bytes: a value of type bytes is written as its length, an exception of a type that may
quote its input as its type only, and local variables never. Text from the wire does not belong into an event.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO, cast

from spliffd.errors import SpliffError
from spliffd.lean import without

with without("rich"):  # structlog would print tracebacks with it; 4.7 MiB in each process
    import structlog
from structlog.typing import EventDict, WrappedLogger

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "spliffd"

MAX_VALUE = 4096
"""Characters of one field that are kept. With MAX_FIELDS an entry stays below the 212,992 bytes that a
datagram may have by default (net.core.wmem_default); the cut is marked in the text."""

MAX_FIELDS = 40
"""Fields of one entry; our own events have fewer than ten. What is left out is counted in the entry."""

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""syslog(3) levels of our methods."""

_QUOTES_NOTHING = (OSError, SpliffError, MemoryError, TimeoutError)
"""Exceptions whose text is the kernel's or our own. Others (ValueError: invalid literal '…') may quote
what they were given, and that may have come from the wire."""

_debug = False


class StageLogger(structlog.BoundLoggerBase):
    """``debug``, ``info``, ``warning``, ``error``: an event in plain words and fields beside it.

    ``error(..., exc_info=True)`` inside an except block adds where it happened.
    """

    def debug(self, event: str, **fields: object) -> None:
        """Written only while debug messages are on; costs one look at a flag otherwise."""
        if _debug:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """Something an operator wants to find later."""
        self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Less is captured than asked for; the text says what to do."""
        self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Something does not work; the text says what to do."""
        self._proxy_to_logger("error", event, **fields)


def logger(stage: str) -> StageLogger:
    """The logger of ``stage``: a short lower-case word (supervisor, worker, api, interfaces ...)."""
    return cast(StageLogger, structlog.get_logger(stage=stage))


def set_debug(enabled: bool) -> None:
    """Switches debug messages on or off in this process."""
    global _debug
    _debug = enabled


def configure(
    debug: bool = False,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    journal_socket: str = JOURNAL_SOCKET,
) -> None:
    """Directs this process's log; call it once, before the first event."""
    set_debug(debug)
    stream = stream or sys.stderr
    sink: Callable[[str, EventDict], None] = TextSink(stream)
    if is_journal(stream, environ):
        sink = JournalSink(journal_socket, sink)
    structlog.configure(
        processors=[_safe, _Deliver(sink)],
        wrapper_class=StageLogger,
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is journald's: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdigit() and inode.isdigit()):
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


class _Deliver:
    """structlog's last processor: hands the event to the sink and ends the chain."""

    def __init__(self, sink: Callable[[str, EventDict], None]) -> None:
        self._sink = sink

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        self._sink(method, event)
        raise structlog.DropEvent


def _safe(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Makes every value text of bounded length that holds no captured bytes."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exception()
    # structlog puts the event's own words last; they and the stage are what must not be left out.
    ordered = {"event": event.get("event", ""), "stage": event.get("stage", "-"), **event}
    safe = {name: _text(value) for name, value in list(ordered.items())[:MAX_FIELDS]}
    if len(ordered) > MAX_FIELDS:
        safe["fields_left_out"] = str(len(ordered) - MAX_FIELDS)
    if isinstance(error, BaseException):
        safe["error"] = _text(error)
        safe["where"] = _where(error.__traceback__)
    return safe


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, BaseException):
        told = isinstance(value, _QUOTES_NOTHING) and str(value)
        text = f"{type(value).__name__}: {told}" if told else type(value).__name__
    elif isinstance(value, str | int | float | None):
        text = str(value)
    else:
        # repr() of a container could show the bytes inside it.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}… ({len(text)} characters)"


def _where(trace: TracebackType | None) -> str:
    """File, line and function of each frame: no source line, no value."""
    frames = traceback.extract_tb(trace)
    return " > ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames)[-MAX_VALUE:]


class TextSink:
    """One line an event: time, level, stage, event, fields. Control characters are written as escapes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock

    def __call__(self, method: str, event: EventDict) -> None:
        """Writes one event; a stream that is gone is not an error."""
        fields = dict(event)
        now = self._clock()
        stamp = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"
        words = [stamp, f"{method:<7}", f"{fields.pop('stage')}:", str(fields.pop("event"))]
        words += [f"{name}={_quoted(str(value))}" for name, value in fields.items()]
        line = " ".join(words)
        try:
            self._stream.write(_printable(line) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Standard error is gone (terminal closed): the daemon goes on, there is nobody to tell.
            return


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or " " in value else value


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class JournalSink:
    """journald's native protocol: one datagram an entry, ``fallback`` for what it does not take."""

    def __init__(self, path: str, fallback: Callable[[str, EventDict], None]) -> None:
        self._path = path
        self._fallback = fallback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A full journal queue must not stop capture: what does not fit goes to standard error.
        self._socket.setblocking(False)

    def __call__(self, method: str, event: EventDict) -> None:
        """Sends one event."""
        try:
            self._socket.sendto(entry(method, event), self._path)
        except OSError:
            self._fallback(method, event)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


def entry(method: str, event: EventDict) -> bytes:
    r"""Serialises an event: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, and SPLIFF_<NAME> for each field.

    Format: https://systemd.io/JOURNAL_NATIVE_PROTOCOL ("NAME=value\n", or for values with a newline
    "NAME\n", 64-bit little-endian length, value, "\n").
    """
    fields = dict(event)
    named = {
        "MESSAGE": str(fields.pop("event")),
        "PRIORITY": str(_PRIORITY[method]),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    named |= {"SPLIFF_" + name.upper(): str(value) for name, value in fields.items()}
    out = bytearray()
    for name, value in named.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            out += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)
