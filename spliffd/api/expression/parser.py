"""Expressions as trees.

Takes the text of a filter; returns its tree. Grammar, weakest first: ``||``, ``&&``, one comparison
(``== != < <= > >= in``), ``!``, then fields (``request.path``), headers (``request.headers['accept']``),
functions (``size(x)``, ``x.startsWith('y')``), lists of literals and brackets. No loops, no arithmetic, no
assignment: every expression ends. Raises ``ExpressionError`` with the column.
"""

from __future__ import annotations

from typing import NamedTuple, Union

from spliffd.api.expression.lexer import ExpressionError, Token, tokens

MAX_LENGTH = 4096
"""Characters of an expression: twenty lines of it."""

MAX_DEPTH = 32
"""Brackets and marks inside each other: the parser and the compiler call themselves that often."""

MAX_NODES = 256
"""Parts of an expression, list members aside: each costs some 0.1 us for every exchange."""

MAX_MEMBERS = 1024
"""Members of all lists together: they are looked up in sets."""

COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


class Literal(NamedTuple):
    """A value; ``kind`` is int, duration, size, string or bool."""

    kind: str
    value: str | int | bool
    column: int


class Members(NamedTuple):
    """A list of literals."""

    literals: tuple[Literal, ...]
    column: int


class Path(NamedTuple):
    """A field by its path from Exchange; the columns of its names."""

    names: tuple[str, ...]
    columns: tuple[int, ...]

    @property
    def column(self) -> int:
        """Where it begins."""
        return self.columns[0]


class Header(NamedTuple):
    """One header by its name."""

    headers: Path
    name: Literal

    @property
    def column(self) -> int:
        """Where it begins."""
        return self.headers.column


class Call(NamedTuple):
    """A function of ``arguments``; of a method the first one stands before the dot."""

    function: str
    arguments: tuple[Node, ...]
    column: int


class Compare(NamedTuple):
    """``operator`` is one of COMPARISONS, or in."""

    operator: str
    left: Node
    right: Node
    column: int


class Logic(NamedTuple):
    """``operator`` is && or ||."""

    operator: str
    parts: tuple[Node, ...]
    column: int


class Not(NamedTuple):
    """The opposite."""

    part: Node
    column: int


Node = Union[Literal, Members, Path, Header, Call, Compare, Logic, Not]  # noqa: UP007 - recursive


def parse(text: str) -> Node:
    """The tree of ``text``; raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"{len(text)} characters; at most {MAX_LENGTH}", 1)
    return _Parser(tokens(text)).whole()


class _Parser:
    def __init__(self, words: list[Token]) -> None:
        self._words = words
        self._at = 0
        self._nodes = 0
        self._members = 0
        self._depth = 0

    def whole(self) -> Node:
        if self._next.kind == "end":
            raise ExpressionError("the expression is empty", 1)
        tree = self._either()
        if self._next.kind != "end":
            raise ExpressionError(f"{_shown(self._next)} is not expected here", self._next.column)
        return tree

    @property
    def _next(self) -> Token:
        return self._words[self._at]

    def _take(self, *marks: str) -> Token | None:
        """The next token if it is one of these marks (or the word in)."""
        token = self._next
        if token.kind in ("mark", "name") and token.value in marks:
            self._at += 1
            return token
        return None

    def _need(self, mark: str) -> Token:
        token = self._take(mark)
        if token is None:
            raise ExpressionError(f"expected {mark}, not {_shown(self._next)}", self._next.column)
        return token

    def _count(self, column: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ExpressionError(f"more than {MAX_NODES} parts", column)

    def _either(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} levels of brackets", self._next.column)
        parts = [self._all()]
        column = self._next.column
        while self._take("||"):
            parts.append(self._all())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Logic("||", tuple(parts), column)

    def _all(self) -> Node:
        parts = [self._comparison()]
        column = self._next.column
        while self._take("&&"):
            parts.append(self._comparison())
        return parts[0] if len(parts) == 1 else Logic("&&", tuple(parts), column)

    def _comparison(self) -> Node:
        left = self._not()
        token = self._take(*COMPARISONS, "in")
        if token is None:
            return left
        self._count(token.column)
        right = self._not()
        again = self._take(*COMPARISONS, "in")
        if again is not None:
            raise ExpressionError("compare two values at a time: a < b && b < c", again.column)
        return Compare(str(token.value), left, right, token.column)

    def _not(self) -> Node:
        token = self._take("!")
        if token is None:
            return self._postfix()
        self._count(token.column)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} times ! in a row", token.column)
        part = self._not()
        self._depth -= 1
        return Not(part, token.column)

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            if self._take("."):
                node = self._member(node)
            elif (token := self._take("[")) is not None:
                name = self._primary()
                self._need("]")
                if not (isinstance(node, Path) and isinstance(name, Literal) and name.kind == "string"):
                    raise ExpressionError(
                        "only headers are looked up, by name: request.headers['accept']", token.column
                    )
                node = Header(node, name)
            else:
                return node

    def _member(self, node: Node) -> Node:
        """A field or a method of ``node``, behind the dot."""
        token = self._next
        if token.kind != "name":
            raise ExpressionError(f"expected a name, not {_shown(token)}", token.column)
        self._at += 1
        self._count(token.column)
        name = str(token.value)
        if self._take("("):
            return Call(name, (node, *self._arguments()), token.column)
        if isinstance(node, Path):
            return Path((*node.names, name), (*node.columns, token.column))
        raise ExpressionError("only fields have fields", token.column)

    def _primary(self) -> Node:
        token = self._next
        self._at += 1
        self._count(token.column)
        if token.kind in ("int", "duration", "size", "string"):
            return Literal(token.kind, token.value, token.column)
        if token.kind == "name":
            name = str(token.value)
            if name in ("true", "false"):
                return Literal("bool", name == "true", token.column)
            if name == "in":
                raise ExpressionError("expected a value before in", token.column)
            if self._take("("):
                return Call(name, tuple(self._arguments()), token.column)
            return Path((name,), (token.column,))
        if token.kind == "mark" and token.value == "(":
            tree = self._either()
            self._need(")")
            return tree
        if token.kind == "mark" and token.value == "[":
            return self._list(token.column)
        self._at -= 1
        raise ExpressionError(f"expected a value, not {_shown(token)}", token.column)

    def _arguments(self) -> list[Node]:
        """Up to and with the closing bracket."""
        if self._take(")"):
            return []
        found = [self._either()]
        while self._take(","):
            found.append(self._either())
        self._need(")")
        return found

    def _list(self, column: int) -> Members:
        literals: list[Literal] = []
        while not self._take("]"):
            if literals:
                self._need(",")
            token = self._next
            if token.kind not in ("int", "duration", "size", "string"):
                raise ExpressionError("a list holds numbers or strings", token.column)
            self._at += 1
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise ExpressionError(f"more than {MAX_MEMBERS} members of lists", token.column)
            literals.append(Literal(token.kind, token.value, token.column))
        return Members(tuple(literals), column)


def _shown(token: Token) -> str:
    return "the end" if token.kind == "end" else repr(token.value)
