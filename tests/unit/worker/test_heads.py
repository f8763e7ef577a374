"""Heads that repeat: what is remembered says the same as what is read, with and without secrets."""

from __future__ import annotations

from spliffd.config import Access
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.http1_block import Block
from spliffd.protocols.masking import Masker
from spliffd.worker.heads import Heads
from tests.support.blocks import block_of_lines

MASKER = Masker(bytes(32), Access().mask_headers, Access().mask_fields)


def block(*fields: bytes) -> Block:
    return block_of_lines(b"\r\n".join(fields))


def shown(heads: Heads, unread: Block, secrets: list[tuple[int, bytes]] | None = None) -> pb.Request:
    found = heads.encode(unread, secrets)
    assert found is not None
    return pb.Request.FromString(found[0])


def test_the_same_fields_again():
    heads = Heads(MASKER)
    fields = (b"Host: a.example", b"Content-Type: text/plain", b"X-Id: 7")
    first = heads.encode(block(*fields), None)
    again = heads.encode(block(*fields), None)

    assert first == again == Heads(MASKER).encode(block(*fields), None)
    assert first is not None
    assert again is not None
    assert again[0] is first[0]  # remembered; compiled, the pair itself is made anew
    assert first[1] == "a.example"
    assert [one.name for one in shown(heads, block(*fields)).headers] == ["Host", "Content-Type", "X-Id"]


def test_another_mask_masks_anew():
    fields = block(b"X-Token: s3cr3t", b"Authorization: Bearer s3cr3t")
    plain = Heads(Masker(bytes(32), ["authorization"], []))
    strict = Heads(Masker(bytes(32), ["authorization", "x-token"], []))
    for _ in range(2):  # by turns, so that what the other one has left is met
        assert shown(plain, fields).headers[0].value == "s3cr3t"
        assert b"s3cr3t" not in shown(strict, fields).SerializeToString()


def test_who_may_see_secrets_gets_them_of_a_head_that_was_met_before():
    heads = Heads(MASKER)
    unread = block(b"Host: a", b"Authorization: Bearer s3cr3t")
    for _ in range(2):
        assert b"s3cr3t" not in shown(heads, unread).SerializeToString()
    secrets: list[tuple[int, bytes]] = []
    assert b"s3cr3t" not in shown(heads, unread, secrets).SerializeToString()
    assert secrets == [(1, b"Bearer s3cr3t")]
    assert b"s3cr3t" not in shown(heads, unread).SerializeToString()
