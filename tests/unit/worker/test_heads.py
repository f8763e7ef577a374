"""Heads that repeat: what is remembered says the same as what is read, with and without secrets."""

from __future__ import annotations

import pytest

from spliffd.config import Access
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.masking import Masker
from spliffd.worker.heads import MAX_BLOCKS, MISSES, PAUSE, Heads

MASKER = Masker(bytes(32), Access().mask_headers, Access().mask_fields)


def head(first: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([first, *fields])


def shown(heads: Heads, unread: bytes, secrets: list[tuple[int, bytes]] | None = None) -> pb.Request:
    found = heads.encode(unread, secrets)
    assert found is not None
    return pb.Request.FromString(found[0])


def test_the_same_fields_below_another_first_line():
    heads = Heads(MASKER)
    fields = (b"Host: a.example", b"Content-Type: text/plain", b"X-Id: 7")
    first = heads.encode(head(b"GET /1 HTTP/1.1", *fields), None)
    again = heads.encode(head(b"GET /2 HTTP/1.1", *fields), None)

    assert first == again == Heads(MASKER).encode(head(b"GET /2 HTTP/1.1", *fields), None)
    assert first is not None
    assert again is not None
    assert again[0] is first[0]  # remembered; compiled, the pair itself is made anew
    assert first[1] == "a.example"
    assert [one.name for one in shown(heads, head(b"GET /3 HTTP/1.1", *fields)).headers] == [
        "Host",
        "Content-Type",
        "X-Id",
    ]


def test_who_may_see_secrets_gets_them_of_a_head_that_was_met_before():
    heads = Heads(MASKER)
    unread = head(b"GET / HTTP/1.1", b"Host: a", b"Authorization: Bearer s3cr3t")
    for _ in range(2):
        assert b"s3cr3t" not in shown(heads, unread).SerializeToString()
    secrets: list[tuple[int, bytes]] = []
    assert b"s3cr3t" not in shown(heads, unread, secrets).SerializeToString()
    assert secrets == [(1, b"Bearer s3cr3t")]


@pytest.mark.parametrize("count", [MISSES + 3, MAX_BLOCKS + MISSES + PAUSE])
def test_heads_that_never_repeat_are_all_right(count: int):
    heads = Heads(MASKER)
    for n in range(count):
        assert shown(heads, head(b"GET / HTTP/1.1", b"X-Id: %d" % n)).headers[0].value == str(n)
    assert len(heads._blocks) <= MAX_BLOCKS
    repeated = head(b"GET / HTTP/1.1", b"X-Id: again")
    for _ in range(PAUSE + 2):  # while none is looked for they are right, too, and then they are again
        assert shown(heads, repeated).headers[0].value == "again"
    met, again = heads.encode(repeated, None), heads.encode(repeated, None)
    assert met is not None
    assert again is not None
    assert again[0] is met[0]
