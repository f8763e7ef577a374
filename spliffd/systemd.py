"""What spliffd tells systemd: ready, status, reloading, stopping, alive (sd_notify(3)).

Takes calls from the supervisor, sends one datagram each to ``$NOTIFY_SOCKET``, returns nothing. Without
that variable (started by hand, in a test) every call does nothing. A datagram that cannot be delivered is
dropped, as sd_notify does: the service manager then acts on its own time-outs.

Never blocks longer than ``SEND_SECONDS``, never restarts anything, never decides whether the daemon is
healthy: the caller does, and calls ``watchdog`` only while every stage makes progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import sdnotify

MAX_STATUS = 512
"""Characters of STATUS= that are kept: `systemctl status` shows it as one line, nobody reads more."""

SEND_SECONDS = 1.0
"""Longest wait for room in systemd's queue (a busy PID 1): far below any WatchdogSec, and enough that a
READY=1 is not thrown away for a moment's crowd."""

WATCHDOG_SHARE = 0.5
"""Signs of life are sent at half of WatchdogSec, as sd_watchdog_enabled(3) recommends."""


class Notifier:
    """The sending side of sd_notify; one per process, made by the supervisor.

    ``environ`` is ``os.environ`` outside tests; ``clock_ns`` is CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock_ns = clock_ns
        # The library opens a socket before it looks at the variable, and reads os.environ itself.
        self._library = sdnotify.SystemdNotifier() if environ.get("NOTIFY_SOCKET") else None
        if self._library is not None and self._library.socket is not None:
            self._library.socket.settimeout(SEND_SECONDS)

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete: `systemctl start` returns now."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """One line of health for `systemctl status`."""
        self._send("", text)

    def reloading(self, status: str = "reloading") -> None:
        """A reload has begun; ``ready`` ends it.

        MONOTONIC_USEC is what Type=notify-reload (systemd 253) demands beside RELOADING=1; older
        versions ignore it.
        """
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock_ns() // 1000}", status)

    def stopping(self, status: str = "draining") -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1", status)

    def watchdog(self) -> None:
        """A sign of life; due every ``watchdog_interval`` seconds."""
        self._send("WATCHDOG=1", "")

    def _send(self, state: str, status: str) -> None:
        if self._library is None:
            return
        if status:
            # A newline would begin another assignment.
            line = " ".join(status.split())[:MAX_STATUS]
            state = f"{state}\nSTATUS={line}".lstrip("\n")
        # The library encodes as Latin-1 and drops what does not fit; systemd expects UTF-8. This
        # detour makes its bytes ours.
        self._library.notify(state.encode("utf-8", "replace").decode("latin-1"))


def watchdog_interval(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds between two signs of life, or None when systemd expects none.

    Reads WATCHDOG_USEC and WATCHDOG_PID as sd_watchdog_enabled(3) does: a WATCHDOG_PID that names
    another process (an inherited environment) means that this one is not watched.
    """
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    owner = environ.get("WATCHDOG_PID")
    if owner is not None and owner != str(os.getpid() if pid is None else pid):
        return None
    return int(microseconds) / 1e6 * WATCHDOG_SHARE
