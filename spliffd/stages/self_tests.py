"""Relocated probes prove themselves on the first calls that come; what does not is taken back.

Takes a number for each file whose probes were moved to cheaper instructions; says from the kernel's counts
(bpf/placement.bpf.c) whether they see the same calls, with the same arguments, as probes at the functions'
first instructions. Compares registers only, of calls that programs make anyway: nothing is called, no code of
the file is run, no memory is read. Attaches nothing: ``libraries`` does.
"""

from __future__ import annotations

from enum import Enum

from spliffd.kernel.maps import SELF_TEST_WORDS, SELF_TESTS, Maps

ENOUGH = 16
"""Comparisons that settle it: a wrong place sees other calls, and not with the same arguments so often."""

MISSED = 4 * ENOUGH
"""Calls that began at a first instruction while fewer than ``ENOUGH`` were seen at the relocated place: it is
not passed. Some may end early (a negative length), or have been under way while probes were attached."""

TOLERATED = 8
"""One comparison of so many may differ: a call that ended early leaves its witness to the next one."""

_OPEN, _SEEN, _AGREED, _DISAGREED = range(4)


class Verdict(Enum):
    """What is known of a file's relocated probes."""

    OPEN = "not enough calls yet"
    PASSED = "passed"
    FAILED = "failed"


class SelfTests:
    """The kernel's table of tests; numbers are never used twice."""

    def __init__(self, maps: Maps) -> None:
        self._words = maps.self_tests
        self._next = 1

    def begin(self) -> int:
        """The number of a new test, 0 when there are no more: then the proof alone has to do."""
        number = self._next
        if number >= SELF_TESTS:
            return 0
        self._next += 1
        self._words[number * SELF_TEST_WORDS + _OPEN] = 1
        return number

    def verdict(self, number: int) -> Verdict:
        """What the calls so far say."""
        at = number * SELF_TEST_WORDS
        agreed, disagreed = self._words[at + _AGREED], self._words[at + _DISAGREED]
        if agreed + disagreed >= ENOUGH:
            return Verdict.FAILED if disagreed * TOLERATED > agreed + disagreed else Verdict.PASSED
        return Verdict.FAILED if self._words[at + _SEEN] >= MISSED else Verdict.OPEN

    def told(self, number: int) -> str:
        """The counts, for people."""
        at = number * SELF_TEST_WORDS
        seen, agreed, disagreed = (self._words[at + i] for i in (_SEEN, _AGREED, _DISAGREED))
        return f"of {seen} calls {agreed} were seen alike and {disagreed} differently"

    def end(self, number: int) -> None:
        """No call is compared any more."""
        self._words[number * SELF_TEST_WORDS + _OPEN] = 0
