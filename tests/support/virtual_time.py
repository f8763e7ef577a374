"""An event loop whose time passes only while everybody waits: intervals are tested exactly, on any machine.

Takes a coroutine, returns its result. Nothing that waits for a thread, a process or another machine belongs
here: it would be passed over.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Impatient(selectors.DefaultSelector):
    """Instead of waiting, tells ``passed`` how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nobody will ever wake this loop"
            self.passed += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.passed


def run(story: Coroutine[Any, Any, T]) -> T:
    """Runs ``story`` in a loop of its own that starts at 0.0 seconds."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(story)
