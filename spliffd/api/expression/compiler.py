"""Expressions as functions.

Takes the text of a filter, once, when a watch starts; gives an ``Expression`` with one function for each kind
of item. Types are checked here, with the column of what does not fit, so that nothing can fail later: the
functions never raise, and what they cost is bounded by the parts of the expression times the length of the
texts they look at (globs and regular expressions look at each character once).

Not every item has every field: a handshake has no request, and of a body's early part nobody knows the status
yet. What is asked of a field that an item cannot have counts as "may be", so that an item is refused only
where the expression is false whatever the unknown would be. Raises ``ExpressionError``.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from spliffd.api.expression.fields import SUMMARY, Field, Get, Subject, find, known_in
from spliffd.api.expression.lexer import ExpressionError
from spliffd.api.expression.parser import (
    Call,
    Compare,
    Header,
    Literal,
    Logic,
    Members,
    Node,
    Not,
    Path,
    parse,
)
from spliffd.api.expression.regex import MAX_TEXT, RegexError, compile_regex
from spliffd.pb import spliff_pb2 as pb

MAX_PATTERNS = 16
"""Globs and regular expressions of one expression: these look at every character of a text."""

MAX_GLOB = 256
"""Longest glob: a path with wildcards fits."""

Predicate = Callable[[Subject], bool]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_METHODS = ("startsWith", "endsWith", "contains", "matches", "glob", "lowerAscii")
_NUMBERS = ("int", "duration", "size")


class _Operand(NamedTuple):
    """A value with a type; ``duration``: a field that counts nanoseconds; ``constant``: no field."""

    type: str
    get: Get
    duration: bool = False
    constant: bool = False


class Expression:
    """A compiled expression: a function for whole exchanges, and one for each kind of item with less."""

    def __init__(self, text: str) -> None:
        tree = parse(text)
        patterns: dict[tuple[str, str], Callable[[str], bool]] = {}

        def compiled(known: Callable[[str], bool]) -> Predicate:
            return _Compiler(known, patterns).predicate(tree)

        of_handshake = known_in(pb.Handshake.DESCRIPTOR)
        self.match = compiled(lambda _: True)
        self.match_early = compiled(lambda path: path in SUMMARY and path != "response.status")
        self.match_part = compiled(lambda path: path in SUMMARY)
        self.match_handshake = compiled(lambda path: of_handshake(path) and path not in _OF_EXCHANGE)
        self.match_message = compiled(known_in(pb.Message.DESCRIPTOR))
        self.match_chunk = compiled(known_in(pb.Chunk.DESCRIPTOR))


_OF_EXCHANGE = frozenset(path for path in SUMMARY if path.startswith(("protocol", "request", "response")))
"""What a handshake's summary leaves empty."""


class _Compiler:
    """``known`` says which paths the items have; ``patterns`` keeps those of other kinds of items."""

    def __init__(
        self, known: Callable[[str], bool], patterns: dict[tuple[str, str], Callable[[str], bool]]
    ) -> None:
        self._known = known
        self._made = patterns
        self._patterns = 0
        self._unknown = False

    def predicate(self, node: Node) -> Predicate:
        found = self._truth(node, positive=True)
        if isinstance(found, bool):
            value = found
            return lambda _: value
        return found

    # ---- truth values --------------------------------------------------------------------------

    def _truth(self, node: Node, *, positive: bool) -> Predicate | bool:
        """A function, or what it always says. ``positive``: an even number of ! stands before it."""
        if isinstance(node, Logic):
            return self._logic(node, positive=positive)
        if isinstance(node, Not):
            part = self._truth(node.part, positive=not positive)
            if isinstance(part, bool):
                return not part
            inner = part
            return lambda s: not inner(s)
        self._unknown = False
        found = self._operand(node)
        if found.type != "bool":
            raise ExpressionError(f"this is {_named(found.type)}, not true or false: compare it", node.column)
        if self._unknown:
            self._unknown = False
            return positive
        return found.get

    def _logic(self, node: Logic, *, positive: bool) -> Predicate | bool:
        decides = node.operator == "||"
        parts: list[Predicate] = []
        constant = False
        for part in node.parts:
            found = self._truth(part, positive=positive)
            if not isinstance(found, bool):
                parts.append(found)
            elif found == decides:
                constant = True
        if constant:
            return decides
        if len(parts) < 2:
            return parts[0] if parts else not decides
        if len(parts) == 2:
            first, second = parts
            if decides:
                return lambda s: first(s) or second(s)
            return lambda s: first(s) and second(s)
        several = tuple(parts)

        def decide(subject: Subject) -> bool:
            for part in several:
                if part(subject) == decides:
                    return decides
            return not decides

        return decide

    # ---- values --------------------------------------------------------------------------------

    def _operand(self, node: Node) -> _Operand:
        if isinstance(node, Literal):
            value = node.value
            return _Operand(node.kind, lambda _: value, constant=True)
        if isinstance(node, Path):
            field = self._field(node)
            return _Operand(field.type, field.get, field.duration)
        if isinstance(node, Header):
            return self._header(node)
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, Compare):
            return self._in(node) if node.operator == "in" else self._compare(node)
        if isinstance(node, Members):
            raise ExpressionError("a list stands behind in only", node.column)
        # A truth value that is compared: it is known as a whole, or the whole comparison is not.
        unknown = self._unknown
        found = self._truth(node, positive=True)
        self._unknown |= unknown
        if isinstance(found, bool):
            value = found
            return _Operand("bool", lambda _: value)
        return _Operand("bool", found)

    def _field(self, path: Path) -> Field:
        field = find(path)
        if not self._known(field.path):
            self._unknown = True
        return field

    def _header(self, node: Header) -> _Operand:
        field = self._field(node.headers)
        if field.type != "headers":
            raise ExpressionError(f"{field.path} holds no headers", node.column)
        name = str(node.name.value).lower()
        headers = field.get

        def value(subject: Subject) -> str:
            for header in headers(subject):
                if header.name.lower() == name:
                    return str(header.value)
            return ""

        return _Operand("string", value)

    def _compare(self, node: Compare) -> _Operand:
        left, right = self._operand(node.left), self._operand(node.right)
        _fit(left, right, node.right.column)
        _fit(right, left, node.left.column)
        if left.type == "bool" and node.operator not in ("==", "!="):
            raise ExpressionError("true and false are compared by == and != only", node.column)
        compare = _OPERATORS[node.operator]
        get, other = left.get, right.get
        if right.constant and isinstance(node.right, Literal):
            value = node.right.value
            return _Operand("bool", lambda s: compare(get(s), value))
        return _Operand("bool", lambda s: compare(get(s), other(s)))

    def _in(self, node: Compare) -> _Operand:
        item = self._operand(node.left)
        get = item.get
        if isinstance(node.right, Members):
            for literal in node.right.literals:
                _fit(item, _Operand(literal.kind, get, constant=True), literal.column)
            values = frozenset(literal.value for literal in node.right.literals)
            return _Operand("bool", lambda s: get(s) in values)
        if not isinstance(node.right, Path):
            raise ExpressionError("in looks into a list or a field that is one", node.right.column)
        field = self._field(node.right)
        container = field.get
        if field.type == "headers" and item.type == "string":
            return _Operand("bool", lambda s: _has_header(container(s), get(s).lower()))
        if field.type == "list" and item.type == "int":
            return _Operand("bool", lambda s: get(s) in container(s))
        raise ExpressionError(
            f"{field.path} is {_named(field.type)}: {_named(item.type)} cannot be in it", node.right.column
        )

    # ---- functions -----------------------------------------------------------------------------

    def _call(self, node: Call) -> _Operand:
        name, given = node.function, node.arguments
        if name == "has":
            return self._has(node)
        if name == "size":
            return self._size(node)
        if name not in _METHODS:
            known = ", ".join((*(f"x.{method}()" for method in _METHODS), "size(x)", "has(x)"))
            raise ExpressionError(f"there is no function {name[:64]!r}; there are {known}", node.column)
        wanted = 1 if name == "lowerAscii" else 2
        if len(given) != wanted:
            raise ExpressionError(f"write x.{name}({'' if wanted == 1 else repr('text')})", node.column)
        operands = [self._operand(one) for one in given]
        for operand, one in zip(operands, given, strict=True):
            if operand.type != "string":
                raise ExpressionError(f"{name} is for strings; this is {_named(operand.type)}", one.column)
        get = operands[0].get
        if name == "lowerAscii":
            return _Operand("string", lambda s: get(s).lower())
        if name in ("matches", "glob"):
            match = self._pattern(name, given[1])
            return _Operand("bool", lambda s: match(get(s)))
        other = operands[1].get
        if name == "startsWith":
            return _Operand("bool", lambda s: get(s).startswith(other(s)))
        if name == "endsWith":
            return _Operand("bool", lambda s: get(s).endswith(other(s)))
        return _Operand("bool", lambda s: other(s) in get(s))

    def _pattern(self, name: str, node: Node) -> Callable[[str], bool]:
        if not isinstance(node, Literal):
            raise ExpressionError(f"{name} takes a string as it is, not one that is computed", node.column)
        self._patterns += 1
        if self._patterns > MAX_PATTERNS:
            raise ExpressionError(f"more than {MAX_PATTERNS} patterns", node.column)
        text = str(node.value)
        if (name, text) not in self._made:
            self._made[name, text] = _regex(text, node) if name == "matches" else _glob(text, node)
        return self._made[name, text]

    def _has(self, node: Call) -> _Operand:
        if len(node.arguments) != 1 or not isinstance(node.arguments[0], Path):
            raise ExpressionError("has takes one field: has(grpc.status)", node.column)
        return _Operand("bool", self._field(node.arguments[0]).present)

    def _size(self, node: Call) -> _Operand:
        if len(node.arguments) != 1:
            raise ExpressionError("size takes one value: size(request.headers)", node.column)
        operand = self._operand(node.arguments[0])
        if operand.type not in ("string", "list", "headers", "messages"):
            raise ExpressionError(f"{_named(operand.type)} has no size", node.arguments[0].column)
        get = operand.get
        return _Operand("int", lambda s: len(get(s)))


def _regex(text: str, node: Literal) -> Callable[[str], bool]:
    try:
        return compile_regex(text)
    except RegexError as error:
        raise ExpressionError(f"in {text!r}: {error}", node.column + 1 + error.column) from None


def _glob(text: str, node: Literal) -> Callable[[str], bool]:
    if len(text) > MAX_GLOB:
        raise ExpressionError(f"a glob of {len(text)} characters; at most {MAX_GLOB}", node.column)
    try:
        # The standard library translates to atomic groups: each part is looked for once, left to right.
        match = re.compile(fnmatch.translate(text)).match
    except re.error as error:
        raise ExpressionError(f"{text!r} is no glob: {error}", node.column) from None
    return lambda value: match(value[:MAX_TEXT]) is not None


def _has_header(headers: Any, name: str) -> bool:
    return any(header.name.lower() == name for header in headers)


def _fit(left: _Operand, right: _Operand, column: int) -> None:
    """Refuses to compare what is never alike; ``column`` is where the right one stands."""
    if left.type in _NUMBERS and right.type in _NUMBERS:
        if right.type == "duration" and not left.duration and not left.constant:
            raise ExpressionError("only fields that end in _ns, times aside, are durations", column)
        if right.type == "size" and left.duration:
            raise ExpressionError("this is a size, and what it is compared with is a duration", column)
    elif left.type != right.type or left.type not in ("string", "bool"):
        raise ExpressionError(f"{_named(right.type)} cannot be compared with {_named(left.type)}", column)


def _named(kind: str) -> str:
    return {
        "int": "a number",
        "duration": "a duration",
        "size": "a size",
        "string": "a string",
        "bool": "true or false",
        "headers": "a list of headers",
        "list": "a list of numbers",
        "messages": "a list",
        "message": "a group of fields",
    }[kind]
