"""When what the api asked to be flushed has been sent: its records are parsed, and none of them waits.

Takes the number of each Flush and the place up to which records were there when it came; says which numbers
can be answered. An exchange among those records may wait for its flow, a handshake for its facts: the answer
waits until nothing does, or as long as either may (on a busy host others keep coming).
Does no I/O and reads no clock: the caller gives ktime. Answers in the order of the questions.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from spliffd.correlation.handshakes import WAIT_NS
from spliffd.correlation.retry import DELAYS_NS

PATIENCE_NS: Final = max(WAIT_NS, DELAYS_NS[-1]) + 20_000_000
"""After the last record was parsed: as long as anything of it may wait, and some turns of the loop."""

Place = tuple[int, int]
"""How many rings were read to their end before this one, and a position in it."""


class Flush:
    """A question: its number, where it ends, and when (ktime) everything before that was parsed, else 0."""

    __slots__ = ("number", "parsed_ns", "place")

    def __init__(self, number: int, place: Place) -> None:
        self.number = number
        self.place = place
        self.parsed_ns = 0


class Flushes:
    """The questions that are not answered yet."""

    def __init__(self) -> None:
        self._asked: deque[Flush] = deque()

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, number: int, place: Place) -> None:
        """Everything before ``place`` shall have been sent."""
        self._asked.append(Flush(number, place))

    def forget(self) -> None:
        """Whoever asked is gone."""
        self._asked.clear()

    def answer(self, place: Place, now: int, *, waiting: bool) -> int:
        """The highest number that can be answered, 0 for none.

        Everything before ``place`` is parsed; ``waiting`` says whether anything waits at all.
        """
        found = 0
        for flush in self._asked:
            if place < flush.place:
                break
            flush.parsed_ns = flush.parsed_ns or now
        while self._asked:
            first = self._asked[0]
            if not first.parsed_ns or (waiting and now < first.parsed_ns + PATIENCE_NS):
                break
            found = self._asked.popleft().number
        return found
