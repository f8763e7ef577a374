"""Words of the expression language, with the column of each.

Takes the text; returns tokens, the last of kind "end". Numbers may carry a unit: durations become
nanoseconds (``100ms``, ``1.5s``, ``2m``), sizes bytes (``64K``, ``1MiB``, powers of 1024). Strings stand in
single or double quotes, ``r'...'`` without escapes. Raises ``ExpressionError``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_DURATIONS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_WORDS = re.compile(
    r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?) (?P<unit>[A-Za-z]*)
    | (?P<raw>[rR](?:'[^']*'|"[^"]*"))
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<mark>&&|\|\||==|!=|<=|>=|[<>!().,\[\]])
    )""",
    re.VERBOSE | re.DOTALL,
)
_SIZE_UNIT = re.compile(r"([KkMG])(?:i?B)?|B")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "0": "\0"}

LARGEST = (1 << 64) - 1
"""No field of the contract holds more."""


class ExpressionError(ValueError):
    """The expression cannot be used; ``column`` is where, counted from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


class Token(NamedTuple):
    """``kind``: int, duration, size, string, name, mark or end."""

    kind: str
    value: str | int
    column: int


def tokens(text: str) -> list[Token]:
    """All tokens of ``text``."""
    found: list[Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _WORDS.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise ExpressionError(_what_is_wrong(text[at:]), at + 1)
        kind = match.lastgroup or ""
        if kind == "unit":
            kind = "number"
        found.append(_token(kind, match, match.start(kind) + 1))
        at = match.end()
    found.append(Token("end", "", end + 1))
    return found


def _what_is_wrong(rest: str) -> str:
    character = rest[0]
    if character in "'\"":
        return "the string does not end"
    if character == "=":
        return "write == to compare"
    if character in "&|":
        return f"write {character * 2}"
    return f"{character!r} means nothing here"


def _token(kind: str, match: re.Match[str], column: int) -> Token:
    text = match[kind]
    if kind == "number":
        return _number(text, match["unit"], column)
    if kind == "raw":
        return Token("string", text[2:-1], column)
    if kind == "string":
        return Token("string", _ESCAPE.sub(lambda found: _unescaped(found, column), text[1:-1]), column)
    return Token(kind, text, column)


def _number(digits: str, unit: str, column: int) -> Token:
    if len(digits) > 24:
        raise ExpressionError("the number is too large", column)
    size = _SIZE_UNIT.fullmatch(unit)
    if unit in _DURATIONS:
        kind, factor = "duration", _DURATIONS[unit]
    elif size is not None:
        kind, factor = "size", _SIZES[(size[1] or "").upper()]
    elif not unit:
        kind, factor = "int", 1
    else:
        raise ExpressionError(
            f"{unit!r} is no unit: durations are ns, us, ms, s, m, h; sizes are B, K, M, G", column
        )
    whole, _, fraction = digits.partition(".")
    if fraction and factor == 1:
        raise ExpressionError("there are no fractions without a unit such as 1.5s", column)
    value = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    if value > LARGEST:
        raise ExpressionError("the number is too large", column)
    return Token(kind, value, column)


def _unescaped(found: re.Match[str], column: int) -> str:
    code = found[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    if code not in _ESCAPES:
        raise ExpressionError(
            f"\\{code} is not known in a string; write \\\\ for one backslash, or r'...'",
            column + 1 + found.start(),
        )
    return _ESCAPES[code]
