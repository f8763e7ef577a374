"""Fuzzes filter expressions: any text is an expression or refused at a column, and no expression raises.

Run by packaging/fuzz.sh. An input is the text of an expression, and the part behind a newline that of a
regular expression. What compiles is asked about a full exchange and an empty one; a pattern that Python
knows too must find what Python finds.
"""

from __future__ import annotations

import re
import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd"]):
    from spliffd import ipc
    from spliffd.api.delivery import Delivery
    from spliffd.api.expression.compiler import Expression
    from spliffd.api.expression.lexer import ExpressionError
    from spliffd.api.expression.regex import RegexError, compile_regex
    from spliffd.pb import spliff_pb2 as pb

TEXTS = ("", "a", "abc", "/users/42?x=1", "AbC-1 \n", "é\u2028")


def subject(message: pb.Exchange) -> Delivery:
    summary = ipc.Summary(
        1, 2, 3, "curl", "/usr/bin/curl", "user", "a.service", "", "openssl", 5, 443, "192.0.2.1",
        "example.com", [], "http1", "example.com", "/users", "GET", 200,
    )  # fmt: skip
    return Delivery(ipc.Frame(ipc.EXCHANGE, 0, ipc.encode(summary), message.SerializeToString()), 1)


FULL = subject(
    pb.Exchange(
        duration_ns=5,
        request=pb.Request(path="/users", headers=[pb.Header(name="Accept", value="*/*")]),
        response=pb.Response(status=200, interim=[103]),
        grpc=pb.Grpc(status=0),
    )
)
EMPTY = subject(pb.Exchange())


def one(data: bytes) -> None:
    text, _, pattern = data.decode(errors="replace").partition("\n")
    try:
        expression = Expression(text)
    except ExpressionError as error:
        if not 1 <= error.column <= max(len(text), 4096) + 1:
            raise AssertionError((text, error.column)) from error
    else:
        for asked in (FULL, EMPTY):
            for match in (expression.match, expression.match_early, expression.match_part):
                assert match(asked) in (True, False)
    try:
        search = compile_regex(pattern)
    except RegexError as error:
        if not 0 <= error.column <= len(pattern):
            raise AssertionError((pattern, error.column)) from error
        return
    try:
        oracle = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    except (re.error, OverflowError, RecursionError):
        return
    if r"\$" in pattern or "[" in pattern or "\\" in pattern:
        return  # where the two may read the same text differently; tests/unit has those
    for shown in TEXTS:
        assert search(shown) is bool(oracle.search(shown)), (pattern, shown)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
