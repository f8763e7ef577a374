"""Regular expressions that cannot be slow: a pattern becomes a finite automaton, once, or is refused.

Takes a pattern in the syntax that RE2 and Python share (no back references, no look-around, no lazy or
possessive marks: none of them means anything for "does it match?"); returns ``search(text) -> bool``. The
automaton is deterministic and complete before the first text is seen: matching looks at each character once,
whatever pattern and text, tries nothing twice and grows nothing. The price is paid here: patterns whose
automaton is large are refused. ``^`` and ``$`` are begin and end of the whole text, ``.`` is anything but a
newline, the classes of digits, words and spaces are ASCII. Raises ``RegexError``; does no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from spliffd.api.expression import regex_syntax as syntax
from spliffd.api.expression.regex_syntax import RegexError

MAX_NODES = 600
"""Nodes of the nondeterministic automaton: counted repetitions are written out, and this bounds them."""

MAX_STATES = 512
"""States of the deterministic one: a few dozen are usual, and each is a row of some 20 numbers."""

MAX_CELLS = 65536
"""Numbers in its table, states x classes of characters: 0.5 MiB."""

MAX_STEPS = 100_000
"""Steps that making it may take: some 20 ms, once for a watch; patterns that people write take a tenth."""

MAX_TEXT = 16384
"""Characters of a text that are looked at, 1 ms: paths and headers are shorter, and who sends more decides
nothing for others."""

_MATCH, _SPLIT, _CHARACTER, _BEGIN, _END = range(5)

DEAD = 0
"""The state that nothing leaves: the text cannot match any more."""

_TOO_COMPLEX = "the pattern is too complex to be matched in one pass: repeat less, or narrower sets"

__all__ = ["MAX_TEXT", "RegexError", "compile_regex"]


class _Program:
    """The nondeterministic automaton (Thompson's construction): nodes in parallel lists."""

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self.sets: list[syntax.Ranges] = []

    def add(self, kind: int, first: int, second: int = -1, ranges: syntax.Ranges = ()) -> int:
        if len(self.kinds) >= MAX_NODES:
            raise RegexError("the pattern is too long once its repetitions are written out", 0)
        self.kinds.append(kind)
        self.first.append(first)
        self.second.append(second)
        self.sets.append(ranges)
        return len(self.kinds) - 1

    def emit(self, tree: syntax.Tree, following: int) -> int:
        """Adds the nodes of ``tree``, which go on to ``following``; returns the one to begin with."""
        if isinstance(tree, syntax.Set):
            return self.add(_CHARACTER, following, -1, tree.ranges)
        if isinstance(tree, syntax.Anchor):
            return self.add(_BEGIN if tree.begin else _END, following)
        if isinstance(tree, syntax.Sequence):
            for part in reversed(tree.parts):
                following = self.emit(part, following)
            return following
        if isinstance(tree, syntax.Choice):
            entry = self.emit(tree.parts[-1], following)
            for part in reversed(tree.parts[:-1]):
                entry = self.add(_SPLIT, self.emit(part, following), entry)
            return entry
        return self._repeat(tree, following)

    def _repeat(self, tree: syntax.Repeat, following: int) -> int:
        if tree.most is None:
            loop = self.add(_SPLIT, -1, following)
            self.first[loop] = self.emit(tree.part, loop)
            following = loop
        else:
            end = following
            for _ in range(tree.most - tree.least):
                following = self.add(_SPLIT, self.emit(tree.part, following), end)
        for _ in range(tree.least):
            following = self.emit(tree.part, following)
        return following


def compile_regex(pattern: str) -> Callable[[str], bool]:
    """A function that says whether ``pattern`` is found anywhere in a text; raises RegexError."""
    program = _Program()
    match = program.add(_MATCH, -1)
    start = program.emit(syntax.parse(pattern), match)
    return _deterministic(program, start)


def _deterministic(program: _Program, start: int) -> Callable[[str], bool]:
    bounds = _bounds(program.sets)
    width = len(bounds)
    steps = 0

    def closure(nodes: Iterable[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        nonlocal steps
        found: set[int] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            steps += 1
            if node in found:
                continue
            found.add(node)
            kind = program.kinds[node]
            if kind == _SPLIT:
                waiting += (program.first[node], program.second[node])
            elif (kind == _BEGIN and begin) or (kind == _END and end):
                waiting.append(program.first[node])
        return frozenset(found)

    # A search may begin at any character: the start is a part of every state, without ^ behind the first.
    anew = closure([start])
    first = closure([start], begin=True)
    numbers: dict[frozenset[int], int] = {frozenset(): DEAD}
    rows: list[list[int]] = [[DEAD] * width]
    accepts: list[bool] = [False]
    accepts_at_end: list[bool] = [False]
    waiting: list[frozenset[int]] = []

    def number_of(state: frozenset[int]) -> int:
        found = numbers.get(state)
        if found is None:
            if len(numbers) >= min(MAX_STATES, MAX_CELLS // width):
                raise RegexError(_TOO_COMPLEX, 0)
            found = numbers[state] = len(rows)
            rows.append([])
            accepts.append(any(program.kinds[node] == _MATCH for node in state))
            at_end = closure(state, end=True)
            accepts_at_end.append(any(program.kinds[node] == _MATCH for node in at_end))
            waiting.append(state)
        return found

    begin = number_of(first)
    while waiting:
        state = waiting.pop()
        number = numbers[state]
        row = [DEAD] * width
        if accepts[number]:
            row = [number] * width
        else:
            characters = [node for node in state if program.kinds[node] == _CHARACTER]
            for column, low in enumerate(bounds):
                steps += len(characters)
                if steps > MAX_STEPS:
                    raise RegexError(_TOO_COMPLEX, 0)
                reached = {program.first[n] for n in characters if syntax.holds(program.sets[n], low)}
                row[column] = number_of(closure(reached) | anew)
        rows[number] = row
    return _matcher(bounds, rows, accepts, accepts_at_end, begin)


def _bounds(sets: list[syntax.Ranges]) -> list[int]:
    """Where classes of characters begin that no set of the pattern tells apart."""
    found = {0}
    for ranges in sets:
        for low, high in ranges:
            found.update((low, high + 1))
    return sorted(found)


def _matcher(
    bounds: list[int], rows: list[list[int]], accepts: list[bool], accepts_at_end: list[bool], begin: int
) -> Callable[[str], bool]:
    classes = {chr(code): bisect_right(bounds, code) - 1 for code in range(128)}
    class_of = classes.get

    def search(text: str) -> bool:
        state = begin
        for character in text if len(text) <= MAX_TEXT else text[:MAX_TEXT]:
            if accepts[state]:
                return True
            column = class_of(character)
            if column is None:
                column = bisect_right(bounds, ord(character)) - 1
            state = rows[state][column]
        return accepts_at_end[state]

    return search
