"""Field lines that come again: a block says the same whether it is remembered, new, or not looked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.protocols import http1_block
from spliffd.protocols.http1_block import MAX_BLOCK, MAX_BLOCKS, MISSES, PAUSE, block_of
from spliffd.protocols.http1_fields import CHUNKED, UNSTATED, UNUSUAL, scan_framing
from tests.support.blocks import block_of_lines

LINES = (
    b"Host: a",
    b"Content-Length: 17",
    b"content-length: 18",
    b"Transfer-Encoding: chunked",
    b"Upgrade: h2c",
    b" folded",
    b"",
    b"X: 1",
)


@pytest.mark.parametrize(
    ("lines", "framing"),
    [
        (b"", UNSTATED),
        (b"Host: a\r", UNSTATED),
        (b"Content-Length: 17\r", 17),
        (b"Host: a\r\ncontent-LENGTH:17", 17),
        (b"Transfer-Encoding: chunked\r\nX: 1\r", CHUNKED),
        (b"Content-Length: 1\r\nContent-Length: 2\r", UNUSUAL),
        (b" folded\r\nX: 1\r", UNUSUAL),
    ],
)
def test_framing(lines: bytes, framing: int):
    assert [block_of_lines(lines).framing for _ in range(3)] == [framing] * 3


@given(st.lists(st.sampled_from(LINES), max_size=5), st.sampled_from([b"\n", b"\r\n"]))
def test_it_is_what_the_whole_head_says(lines, end):
    joined = end.join(lines)
    head = b"GET / HTTP/1.1\r\n" + joined + b"\n" if joined else b"GET / HTTP/1.1\n"
    assert block_of_lines(joined).framing == scan_framing(head, 0, len(head))


@pytest.mark.parametrize("empty_first", [False, True])
def test_one_empty_line_is_not_the_same_as_none(empty_first: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1_block, "_known", {})
    none, empty = b"GET / HTTP/1.1\n\r\n", b"GET / HTTP/1.1\n\n\r\n"
    for head in (empty, none, empty, none)[not empty_first :]:
        newline, end = head.index(b"\n"), head.index(b"\n\r\n")
        assert block_of(head, newline, end).framing == (UNUSUAL if head is empty else UNSTATED)


@pytest.mark.parametrize("count", [MISSES + 3, MAX_BLOCKS + MISSES + PAUSE])
def test_blocks_that_never_repeat_are_all_right(count: int):
    for n in range(count):
        assert block_of_lines(b"X-Id: %d\r\nContent-Length: %d" % (n, n)).framing == n
    assert len(http1_block._known) <= MAX_BLOCKS
    repeated = b"Content-Length: 5\r\nX-Id: again %d" % count
    for _ in range(PAUSE + 2):  # while none is looked for they are right, too, and then they are again
        assert block_of_lines(repeated).framing == 5
    assert block_of_lines(repeated) is block_of_lines(repeated)


def test_long_ones_are_not_kept():
    long = b"X: " + b"x" * MAX_BLOCK
    assert block_of_lines(long) is not block_of_lines(long)
