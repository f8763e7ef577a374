"""Regular expressions as trees.

Takes a pattern; returns what it means as a tree of sets of characters, sequences, choices and repetitions.
Knows the syntax that RE2 and Python's re share; what it does not know is refused with its column, never
read as something else. Raises ``RegexError``. Source: github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

from typing import NamedTuple, Union

MAX_PATTERN = 512
"""Characters of a pattern."""

MAX_DEPTH = 16
"""Groups inside groups."""

MAX_REPEAT = 64
"""Largest number in braces: repetitions are written out."""

_LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]
"""Code points, both ends included."""


class RegexError(ValueError):
    """The pattern cannot be used; ``column`` is where, counted from 0."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


class Set(NamedTuple):
    """One character of these."""

    ranges: Ranges


class Anchor(NamedTuple):
    """The begin or the end of the text."""

    begin: bool


class Sequence(NamedTuple):
    """One after the other."""

    parts: tuple[Tree, ...]


class Choice(NamedTuple):
    """One of these."""

    parts: tuple[Tree, ...]


class Repeat(NamedTuple):
    """From ``least`` to ``most`` times; None is for ever."""

    part: Tree
    least: int
    most: int | None


Tree = Union[Set, Anchor, Sequence, Choice, Repeat]  # noqa: UP007 - a recursive alias needs the runtime form

_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 10), (12, 13), (32, 32))
_CLASSES: dict[str, Ranges] = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11}
_ANY: Ranges = ((0, 9), (11, _LAST))
_MARKS = "\\.+*?()|[]{}^$"


def holds(ranges: Ranges, code: int) -> bool:
    """Whether ``code`` is in ``ranges``."""
    return any(low <= code <= high for low, high in ranges)


def parse(pattern: str) -> Tree:
    """The tree of ``pattern``; raises RegexError."""
    if len(pattern) > MAX_PATTERN:
        raise RegexError(f"a pattern of {len(pattern)} characters; at most {MAX_PATTERN}", 0)
    return _Parser(pattern).whole()


def _inverted(ranges: Ranges) -> Ranges:
    found = []
    at = 0
    for low, high in sorted(ranges):
        if low > at:
            found.append((at, low - 1))
        at = max(at, high + 1)
    if at <= _LAST:
        found.append((at, _LAST))
    return tuple(found)


def _folded(ranges: Ranges) -> Ranges:
    """With the other case of ASCII letters."""
    more = list(ranges)
    for low, high in ranges:
        for first, last, shift in ((65, 90, 32), (97, 122, -32)):
            if low <= last and high >= first:
                more.append((max(low, first) + shift, min(high, last) + shift))
    return tuple(more)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._fold = False
        self._depth = 0

    def whole(self) -> Tree:
        if self._text.startswith("(?i)"):
            self._fold, self._at = True, 4
        tree = self._choice()
        if self._at < len(self._text):
            raise RegexError("a ) without its (", self._at)
        return tree

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _choice(self) -> Tree:
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Tree:
        parts: list[Tree] = []
        while (character := self._peek()) and character not in "|)":
            parts.append(self._repeated(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self, part: Tree) -> Tree:
        start = self._at
        bounds = self._repetition()
        if bounds is None:
            return part
        if isinstance(part, Anchor):
            raise RegexError("nothing to repeat", start)
        if self._peek() and self._peek() in "*+?{":
            raise RegexError("one repetition behind another: use (...) between them", self._at)
        return Repeat(part, *bounds)

    def _repetition(self) -> tuple[int, int | None] | None:
        start = self._at
        character = self._peek()
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if character in simple:
            self._at += 1
            return simple[character]
        if character != "{":
            return None
        end = self._text.find("}", start)
        first, comma, last = self._text[start + 1 : max(end, start + 1)].partition(",")
        if end < 0 or not _is_number(first) or not (not last or _is_number(last)):
            raise RegexError("write {3}, {3,} or {3,5}, or \\{ for the character", start)
        self._at = end + 1
        least = int(first)
        most = None if comma and not last else int(last or first)
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise RegexError(f"repetitions go from 0 to {MAX_REPEAT}, the smaller number first", start)
        return least, most

    def _atom(self) -> Tree:
        start = self._at
        character = self._text[start]
        self._at += 1
        if character == "(":
            return self._group(start)
        if character == "[":
            return self._set(start)
        if character in "^$":
            return Anchor(begin=character == "^")
        if character == ".":
            return Set(_ANY)
        if character == "\\":
            return self._one(self._escape(start))
        if character in "*+?{":
            raise RegexError("nothing to repeat", start)
        return self._one(((ord(character), ord(character)),))

    def _one(self, ranges: Ranges) -> Set:
        return Set(_folded(ranges) if self._fold else ranges)

    def _group(self, start: int) -> Tree:
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?":
            raise RegexError("of groups with ? there is only (?:...), and (?i) in front of all", start)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RegexError(f"more than {MAX_DEPTH} groups inside each other", start)
        tree = self._choice()
        self._depth -= 1
        if self._peek() != ")":
            raise RegexError("a ( without its )", start)
        self._at += 1
        return tree

    def _escape(self, start: int) -> Ranges:
        """What stands behind a backslash."""
        character = self._peek()
        self._at += 1
        if character.lower() in _CLASSES and character:
            ranges = _CLASSES[character.lower()]
            return _inverted(ranges) if character.isupper() else ranges
        if character in _CONTROLS:
            return ((_CONTROLS[character], _CONTROLS[character]),)
        if character == "x":
            digits = self._text[self._at : self._at + 2]
            if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self._at += 2
                return ((int(digits, 16), int(digits, 16)),)
        elif character and not character.isalnum():
            return ((ord(character), ord(character)),)
        raise RegexError(
            f"\\{character} is not known; there are \\d \\w \\s \\n \\t \\xHH and \\ before marks", start
        )

    def _set(self, start: int) -> Tree:
        inverted = self._peek() == "^"
        if inverted:
            self._at += 1
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            at = self._at
            low = self._member(start)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member(start)
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                    raise RegexError("a range in [...] goes from a character to a later one", at)
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        self._at += 1
        found = _folded(tuple(ranges)) if self._fold else tuple(ranges)
        return Set(_inverted(found) if inverted else found)

    def _member(self, start: int) -> Ranges:
        character = self._peek()
        if not character:
            raise RegexError("a [ without its ]", start)
        at = self._at
        self._at += 1
        if character == "\\":
            return self._escape(at)
        if character == "[" and self._peek() in (":", ".", "="):
            raise RegexError("classes such as [:alpha:] are not known: use a-zA-Z", at)
        return ((ord(character), ord(character)),)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
