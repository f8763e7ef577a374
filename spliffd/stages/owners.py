"""Enters into the table of flows which process holds each socket, when a worker asks.

Takes questions of workers; runs the iterator over all descriptors of the host (bpf/flows.bpf.c,
``seed_sockets``), which takes a microsecond for each, and answers. Questions that come meanwhile share an
answer, and between two runs there is a pause, so that this never costs more than a twentieth of a core.
Nobody asks while every TLS connection has its socket named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from spliffd import ipc
from spliffd.journal import logger
from spliffd.stages.children import Child

log = logger("owners")

LEAST_PAUSE_SECONDS = 0.005
PAUSE_FACTOR = 20


class Owners:
    """``enter`` runs the iterator once; raises OSError where there is none."""

    def __init__(self, enter: Callable[[], object]) -> None:
        self._enter = enter
        self._asking: list[Child] = []
        self._not_before = 0.0

    def asked(self, child: Child) -> None:
        """A worker wants them entered; it is told when they are."""
        if child in self._asking:
            return
        self._asking.append(child)
        if len(self._asking) == 1:
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, self._not_before - time.monotonic()), self._run)

    def _run(self) -> None:
        spent = time.thread_time()  # a busy host makes no run dearer
        try:
            self._enter()
        except OSError as error:
            log.debug("owners of sockets are not known", error=str(error))
        pause = max(LEAST_PAUSE_SECONDS, PAUSE_FACTOR * (time.thread_time() - spent))
        self._not_before = time.monotonic() + pause
        asking, self._asking = self._asking, []
        for child in asking:
            child.send(ipc.OwnersEntered())
