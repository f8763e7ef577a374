"""Interface names by index, for those who know indices only: the workers and the list of flows.

Takes what comes, is renamed and goes; publishes the whole table a moment after a change, so that two hundred
changes make one message. Keeps the names of interfaces that are gone until their index is used again, or
until there are too many of them: their last exchanges may still be on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from spliffd import ipc

MAX_GONE = 1024
"""Names kept of interfaces that are gone: those of a burst of containers."""

TELL_SECONDS = 0.005
"""How long a change waits for more of them; a first exchange takes longer than that to be finished."""


class Names:
    """The names, and whoever is to be told."""

    def __init__(self, publish: Callable[[ipc.Interfaces], None]) -> None:
        self._publish = publish
        self._here: dict[int, str] = {}
        self._gone: dict[int, str] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._closed = False

    def message(self) -> ipc.Interfaces:
        """All of them."""
        return ipc.Interfaces(self._gone | self._here)

    def set(self, index: int, name: str) -> None:
        """An interface has this name from now on."""
        if self._here.get(index) == name:
            return
        self._here[index] = name
        self._gone.pop(index, None)
        if self._telling is None and not self._closed:
            self._telling = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)

    def remove(self, index: int) -> None:
        """It is gone. Nobody is told: what they know stays right."""
        name = self._here.pop(index, None)
        if name is None:
            return
        self._gone[index] = name
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def close(self) -> None:
        """Tells nobody any more."""
        self._closed = True
        if self._telling is not None:
            self._telling.cancel()

    def _tell(self) -> None:
        self._telling = None
        self._publish(self.message())
