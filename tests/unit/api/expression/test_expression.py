"""Expressions: what they say of exchanges, what is refused and where, and items with less than an exchange."""

from __future__ import annotations

import re

import pytest
from api_harness import summary
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.api.delivery import Delivery
from spliffd.api.expression.compiler import Expression
from spliffd.api.expression.lexer import ExpressionError
from spliffd.api.filter import Filter
from spliffd.pb import spliff_pb2 as pb

MESSAGE = pb.Exchange(
    duration_ns=250_000_000,
    process=pb.Process(pid=7, comm="curl", cmdline="curl -s x", uid=1000),
    connection=pb.Connection(role="client", remote=pb.Endpoint(address="192.0.2.1", port=443)),
    correlation=pb.Correlation(method="SOCKET_NESTED", wire="TC"),
    tls=pb.Tls(library="openssl", version="TLSv1.3", sni="api.example.com"),
    protocol="grpc",
    request=pb.Request(
        method="POST",
        authority="api.example.com",
        path="/users/42?x=1",
        body_size=2048,
        headers=[
            pb.Header(name="User-Agent", value="curl/8"),
            pb.Header(name="Cookie", masked=pb.Masked(length=3)),
        ],
    ),
    response=pb.Response(status=503, interim=[103], body_size=10),
    completeness=pb.Completeness(state="complete"),
    grpc=pb.Grpc(service="users", status=0),
)


def facts(message: pb.Exchange) -> ipc.Summary:
    return summary(
        pid=message.process.pid,
        uid=message.process.uid,
        comm=message.process.comm,
        library=message.tls.library,
        sni=message.tls.sni,
        protocol=message.protocol,
        remote_port=message.connection.remote.port,
        remote_address=message.connection.remote.address,
        authority=message.request.authority,
        path=message.request.path,
        method=message.request.method,
        status=message.response.status,
    )


def delivery(message=MESSAGE, *, kind: int = ipc.EXCHANGE, known: ipc.Summary | None = None) -> Delivery:
    told = facts(MESSAGE) if known is None else known
    return Delivery(ipc.Frame(kind, 0, ipc.encode(told), message.SerializeToString()), 1)


@pytest.mark.parametrize(
    "text",
    [
        "response.status == 503",
        "response.status in [404, 503]",
        "response.status >= 500 && response.status < 600",
        "process.pid == 7 && process.comm == 'curl'",
        'process.cmdline.contains(" -s ")',
        "request.path.startsWith('/users/') || false",
        'request.path.endsWith("x=1")',
        "request.path.matches('^/users/[0-9]+[?]')",
        r"request.path.matches(r'\?x=\d$')",
        "request.authority.glob('*.example.com')",
        "request.method.lowerAscii() == 'post'",
        "request.headers['user-agent'] == 'curl/8'",
        "request.headers['cookie'] == ''",
        "'COOKIE' in request.headers && !('accept' in request.headers)",
        "size(request.headers) == 2 && size(tls.sni) == 15",
        "103 in response.interim",
        "duration_ns > 100ms && duration_ns <= 0.25s",
        "duration_ns == 250000000",
        "request.body_size == 2K && request.body_size >= 2KiB && request.body_size < 1MB",
        "request.body_size > response.body_size",
        "has(grpc.status) && grpc.status == 0",
        "!has(tls.resumed) && !has(response.reason) && has(grpc)",
        "correlation.method == 'SOCKET_NESTED' && correlation.wire != 'NONE'",
        "connection.remote.port == 443",
        "!(protocol in ['http1', 'http2'])",
        "completeness.state == 'complete'",
        "(true == true) && !false",
        "(process.pid == 7) == (process.uid == 1000)",
        "tls.version > 'TLSv1.2'",
        "\t request.method\n==\n'POST' ",
        "request.path == '/users/4\\x32\\u003fx=1'",
    ],
)
def test_it_holds(text):
    assert Expression(text).match(delivery()) is True
    assert Expression(f"!({text})").match(delivery()) is False


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("", 1, "empty"),
        ("request.hots == 'x'", 9, "request has no field 'hots'"),
        ("request.methd == 'x'", 9, "did you mean method?"),
        ("path == '/'", 1, "an exchange has no field 'path'"),
        ("response.status = 200", 17, "write =="),
        ("response.status == 'x'", 20, "a string cannot be compared with a number"),
        ("response.status", 1, "not true or false"),
        ("true & false", 6, "write &&"),
        ("(true", 6, "expected )"),
        ("true)", 5, "not expected here"),
        ("process.comm == 'curl", 17, "does not end"),
        ("1 < response.status < 3", 21, "two values at a time"),
        ("duration_ns > 5K", 15, "is a size"),
        ("start_time_ns > 5s", 17, "durations"),
        ("response.body_size > 5s", 22, "durations"),
        ("duration_ns > 5parsecs", 15, "is no unit"),
        ("1.5 == 2", 1, "no fractions"),
        ("process.pid == 99999999999999999999", 16, "too large"),
        ("request.headers[1] == 'x'", 16, "by name"),
        ("process['pid'] == 'x'", 1, "holds no headers"),
        ("id > 5", 1, "cannot look at id"),
        ("part_key > 5", 1, "cannot look at part_key"),
        ("size(revealed) > 0", 6, "cannot look at revealed"),
        ("request.body == 'x'", 9, "cannot look at request.body"),
        ("process.pid.x == 1", 13, "process.pid has no fields"),
        ("connection.path.hook == 'TC'", 17, "connection.path has no fields"),
        ("process == 'x'", 12, "a group of fields"),
        ("request.path.matches('a(b')", 24, "without its )"),
        ("request.path.matches(request.method)", 22, "a string as it is"),
        ("request.path.nothing('x')", 14, "there is no function 'nothing'"),
        ("request.path.contains()", 14, "write x.contains("),
        ("size(process.pid) == 1", 6, "a number has no size"),
        ("process.pid in request.headers", 16, "a number cannot be in it"),
        ("request.path in ['a', 1]", 23, "a number cannot be compared with a string"),
        ("has(1)", 1, "one field"),
        ("request.path == '\\q'", 18, "\\q is not known"),
        ("true < false", 6, "== and != only"),
        ("true" + " && true" * 256, 2049, "more than 256 parts"),
        ("(" * 40 + "true" + ")" * 40, 33, "more than 32 levels"),
        ("!" * 40 + "true", 32, "more than 32 times !"),
        ("true || " * 600, 1, "at most 4096"),
        (" || ".join(["request.path.glob('*')"] * 17), 435, "more than 16 patterns"),
        (f"process.pid in [{','.join('1' * 1025)}]", 2065, "more than 1024 members"),
    ],
)
def test_what_is_wrong_is_told_with_its_column(text, column, why):
    with pytest.raises(ExpressionError, match=re.escape(why)) as error:
        Expression(text)

    assert error.value.column == column


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "request",
                "response",
                "status",
                "path",
                "==",
                "!=",
                "in",
                "&&",
                "||",
                "!",
                "(",
                ")",
                "[",
                "]",
                ".",
                ",",
                "'a'",
                "5",
                "10ms",
                "1K",
                "has",
                "size",
                "matches",
                "x",
                "true",
            ]
        ),
        max_size=14,
    )
)
def test_any_words_are_an_expression_or_refused(words):
    text = " ".join(words)
    try:
        column, answer = 1, Expression(text).match(delivery())
    except ExpressionError as error:
        column, answer = error.column, False

    assert 1 <= column <= len(text) + 1
    assert answer in (True, False)


# ---- against Python's own evaluation -----------------------------------------------------------

TERMS = {
    "response.status >= 400": lambda e: e.response.status >= 400,
    "process.pid in [1, 2]": lambda e: e.process.pid in (1, 2),
    "request.path.startsWith('/a')": lambda e: e.request.path.startswith("/a"),
    "duration_ns > 2ms": lambda e: e.duration_ns > 2_000_000,
    "'x' in request.headers": lambda e: any(h.name.lower() == "x" for h in e.request.headers),
    "has(grpc.status)": lambda e: e.grpc.HasField("status"),
}
trees = st.recursive(
    st.sampled_from(sorted(TERMS)),
    lambda inner: st.one_of(
        st.tuples(st.just("!"), inner),
        st.tuples(st.sampled_from(["&&", "||"]), inner, inner, inner),
    ),
    max_leaves=8,
)
messages = st.builds(
    lambda status, pid, path, duration, header, grpc: pb.Exchange(
        duration_ns=duration,
        process=pb.Process(pid=pid),
        request=pb.Request(path=path, headers=[pb.Header(name=header)]),
        response=pb.Response(status=status),
        grpc=pb.Grpc(status=0) if grpc else None,
    ),
    st.sampled_from([0, 200, 404]),
    st.integers(1, 3),
    st.sampled_from(["/a", "/b", ""]),
    st.sampled_from([0, 1_000_000, 3_000_000]),
    st.sampled_from(["X", "y"]),
    st.booleans(),
)


def written(tree) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "!":
        return f"!({written(tree[1])})"
    return "(" + f" {tree[0]} ".join(written(part) for part in tree[1:]) + ")"


def truth(tree, message) -> bool:
    if isinstance(tree, str):
        return TERMS[tree](message)
    if tree[0] == "!":
        return not truth(tree[1], message)
    return (all if tree[0] == "&&" else any)(truth(part, message) for part in tree[1:])


@settings(max_examples=300, deadline=None)
@given(trees, messages)
def test_it_says_what_python_says(tree, message):
    assert Expression(written(tree)).match(delivery(message, known=facts(message))) is truth(tree, message)


@settings(max_examples=300, deadline=None)
@given(trees, messages)
def test_an_early_part_is_kept_while_its_exchange_may_still_match(tree, message):
    known = facts(message)
    whole = Expression(written(tree)).match(delivery(message, known=known))
    known.status = 0
    early = Expression(written(tree)).match_early(delivery(pb.Exchange(), kind=ipc.BODY_PART, known=known))

    assert early or not whole


# ---- items with less -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "handshake", "chunk"),
    [
        ("process.cmdline == 'curl -s x'", True, True),
        ("process.cmdline == 'wget'", False, False),
        ("tls.version == 'TLSv1.3'", True, True),
        ("tls.version == 'TLSv1.2'", False, False),
        ("response.status == 599", True, False),  # a handshake has none: it may be
        ("!(duration_ns > 5s)", True, True),
        ("process.pid == 7 && duration_ns > 5s", True, True),
        ("process.pid == 8 && duration_ns > 5s", False, False),
        ("!(process.pid == 7 || duration_ns > 5s)", False, False),
        ("correlation.wire == 'TC'", True, True),
        ("correlation.wire == 'XDP'", False, False),
    ],
)
def test_an_item_is_refused_only_where_what_it_has_decides(text, handshake, chunk):
    parts = {name: getattr(MESSAGE, name) for name in ("process", "connection", "correlation", "tls")}
    chosen = Filter(pb.Filter(expression=text))

    assert chosen.wants(delivery(pb.Handshake(**parts), kind=ipc.HANDSHAKE)) is handshake
    assert chosen.wants(delivery(pb.Chunk(**parts), kind=ipc.CHUNK)) is chunk


def test_an_expression_is_one_more_condition():
    chosen = Filter(pb.Filter(pids=[7], expression="response.status == 503"))

    assert chosen.wants(delivery())
    assert not chosen.wants(delivery(known=summary(pid=8, status=503)))
    assert not chosen.wants(delivery(known=summary(pid=7, status=200)))


def test_the_message_is_parsed_only_when_the_summary_does_not_decide():
    shared = delivery()
    Expression("process.pid == 7 && request.path != ''").match(shared)
    assert shared._message is None
    Expression("process.pid == 8 && duration_ns > 1s").match(shared)
    assert shared._message is None
    Expression("process.pid == 7 && duration_ns > 1s").match(shared)
    assert shared._message is not None


def test_a_frame_that_is_no_message_is_an_empty_one():
    broken = Delivery(ipc.Frame(ipc.EXCHANGE, 0, ipc.encode(summary(pid=7)), b"\xff\xff"), 1)

    assert Expression("process.pid == 7 && duration_ns == 0").match(broken)
