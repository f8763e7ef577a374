"""When new processes are looked at, for what they map: some times after their exec, or after they map a file.

Takes process ids with start times; keeps what was seen (``Memory``) and gives it to ``found``. Where every
mapping is told (``kernel.mappings``) looks only serve the ledger, which asks what ended processes had mapped.

Reads /proc in a thread of its own: a process that is busy with its memory keeps who reads its maps waiting,
for as long as it does not get a processor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from spliffd.stages.mapped import Memory
from spliffd.targets import discovery

LOOK_AFTER_SECONDS = (0.002, 0.01, 0.05, 0.25, 1.0, 5.0)
"""When a new process is looked at: the dynamic loader is done within 2 ms on an idle host, long before
the first handshake; the later looks are for a busy host, and for interpreters that load TLS as a module."""

AFTER_MAPPING_SECONDS = 0.002
"""When a process that maps a file for the first time is looked at; the loader has just begun with it then."""

LOOKS_AFTER_MAPPING = (2, 4)
"""Which looks follow, as after an exec."""

PAUSE_FACTOR = 20
"""Between two looks at whoever maps files, so many times as long as a look takes: a twentieth of a core."""

LOOKS_BESIDE_MAPPINGS = (1, 3)
"""Which looks remain where every mapping is told."""

_Due = dict[tuple[int, int], None]
_Seen = tuple[list[tuple[discovery.Look, int]], float]
_Found = Callable[[list[discovery.Look]], None]


class Looks:
    """Use from one event loop; ``found`` is called in it."""

    def __init__(self, memory: Memory, found: _Found, *, look: Callable[[_Due], _Seen] | None = None) -> None:
        self._memory = memory
        self._found = found
        self._look_at = look or _look_at
        self._thread = ThreadPoolExecutor(1, "look")
        self._due: list[_Due] = [{} for _ in LOOK_AFTER_SECONDS]
        self._mapping: _Due = {}
        self._not_before = 0.0

    def started(self, pid: int, start_ns: int, *, mappings_told: bool) -> None:
        """A process has exec'd: look at it soon, together with others that start about now."""
        for number in LOOKS_BESIDE_MAPPINGS if mappings_told else range(len(LOOK_AFTER_SECONDS)):
            self._schedule(number, pid, start_ns)

    def mapped(self, pid: int, start_ns: int) -> None:
        """A process maps a file that nobody has mapped before."""
        if not self._mapping:
            delay = max(AFTER_MAPPING_SECONDS, self._not_before - time.monotonic())
            asyncio.get_running_loop().call_later(delay, self._look_at_mapping)
        self._mapping[pid, start_ns] = None

    def close(self) -> None:
        """Looks at nobody any more."""
        self._thread.shutdown(cancel_futures=True)

    def _schedule(self, number: int, pid: int, start_ns: int) -> None:
        due = self._due[number]
        if not due:
            asyncio.get_running_loop().call_later(LOOK_AFTER_SECONDS[number], self._look, number)
        due[pid, start_ns] = None

    def _look(self, number: int) -> None:
        due, self._due[number] = self._due[number], {}
        self._soon(due, self._seen)

    def _look_at_mapping(self) -> None:
        due, self._mapping = self._mapping, {}
        self._soon(due, self._seen_mapping)
        for pid, start_ns in due:
            for number in LOOKS_AFTER_MAPPING:
                self._schedule(number, pid, start_ns)

    def _soon(self, due: _Due, then: Callable[[asyncio.Future[_Seen]], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            loop.run_in_executor(self._thread, self._look_at, due).add_done_callback(then)
        except RuntimeError:
            return  # closed

    def _seen_mapping(self, done: asyncio.Future[_Seen]) -> None:
        if not done.cancelled():
            self._not_before = time.monotonic() + PAUSE_FACTOR * done.result()[1]
        self._seen(done)

    def _seen(self, done: asyncio.Future[_Seen]) -> None:
        if done.cancelled():
            return
        seen, _ = done.result()
        for look, start_ns in seen:
            self._memory.keep(look, start_ns)
        self._found([look for look, _ in seen])


def _look_at(due: _Due) -> _Seen:
    """What these processes map, and the seconds of a processor that it took to see that."""
    began = time.thread_time()
    looks = [(look, start_ns) for pid, start_ns in due if (look := discovery.look(pid)) is not None]
    return looks, time.thread_time() - began
