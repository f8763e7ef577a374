"""Keeps the kernel ready to take probes at once, while files come that nobody has seen before.

Takes what attaches probes; changes one that no process passes again and again, for a while after ``expect``.
Before the kernel changes probes, it holds up forks (``dup_mmap_sem`` in kernel/events/uprobes.c), and before
that it waits until all processors have been elsewhere: 6 to 16 ms, as long as a short-lived program takes
from mapping its TLS library to its first request. For 5 to 16 ms after a change it need not wait again, and
takes the next one in 0.02 ms (kernel/rcu/sync.c). A change in time keeps it so.

Never touches a file of others: the probe is in a file that exists in memory only, and that nobody maps.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from spliffd.journal import logger
from spliffd.kernel.links import Attached, Probe

log = logger("standby")

TOUCH_SECONDS = 0.004
"""Between two changes, each 0.1 ms of a processor. At 6 ms a busy host waits now and then, at 10 ms every
fourth time; one at rest does not at 16 ms."""

KEEP_SECONDS = 0.5
"""After the last file that was new: they come in bursts, as when a container starts."""

CLOSERS = 16
"""Probes that go at a time; the kernel takes 50 ms for each, and a busy host longer."""


class Standby:
    """``attach`` puts probes into a file, as ``Kernel.attach_library``. Idle unless files are expected."""

    def __init__(self, attach: Callable[[str, str, list[Probe]], Attached]) -> None:
        self._attach = attach
        self._closers = ThreadPoolExecutor(CLOSERS, "standby")
        self._until = 0.0
        self._over = threading.Event()
        self._changing = threading.Lock()
        self._running: threading.Thread | None = None
        self._file = -1

    def expect(self) -> None:
        """A file has come; more may follow."""
        self._until = time.monotonic() + KEEP_SECONDS
        with self._changing:
            if self._running is None and not self._over.is_set():
                self._running = threading.Thread(target=self._run, name="standby", daemon=True)
                self._running.start()

    def _run(self) -> None:
        held: Attached | None = None
        while True:
            with self._changing:
                if self._over.is_set() or (held is None and time.monotonic() >= self._until):
                    self._running = None
                    break
            # To take a probe away is a change as well.
            if held is None:
                try:
                    held = self.touch()
                except OSError as error:
                    log.debug("no standby", error=str(error))
            else:
                self._closers.submit(held.close)
                held = None
            self._over.wait(TOUCH_SECONDS)
        if held is not None:
            held.close()

    def touch(self) -> Attached:
        """A probe where nobody is; raises OSError."""
        if self._file < 0:
            self._file = os.memfd_create("standby", os.MFD_CLOEXEC)
            os.truncate(self._file, os.sysconf("SC_PAGE_SIZE"))
        probe = Probe(0, "set_fd", "none", returns=False)
        return self._attach(f"/proc/self/fd/{self._file}", "openssl", [probe])

    def close(self) -> None:
        """Ends it."""
        self._over.set()
        with self._changing:
            running = self._running
        if running is not None:
            running.join()
        self._closers.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
