"""Messages between the daemon's processes: what is encoded comes back the same, nonsense is an error."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd import ipc

TO_CHILD = typing.get_args(ipc.ToChild)
FROM_CHILD = typing.get_args(ipc.FromChild)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.integers(-(1 << 63), (1 << 64) - 1)
KINDS: dict[type, st.SearchStrategy] = {
    int: number,
    str: text,
    bool: st.booleans(),
    bytes: st.binary(max_size=50),
    dict[int, str]: st.dictionaries(number, text, max_size=5),
    list[int]: st.lists(number, max_size=3),
    list[str]: st.lists(st.text(max_size=9), max_size=3),
    list[tuple[int, int, int]]: st.lists(st.tuples(number, number, number), max_size=3),
    ipc.Whom | None: st.none()
    | st.builds(
        ipc.Whom, st.lists(number, max_size=3), st.lists(number, max_size=3), st.lists(text, max_size=3)
    ),
}


def messages(of: tuple[type, ...]) -> st.SearchStrategy:
    return st.one_of(
        *(st.builds(kind, *(KINDS[hint] for hint in typing.get_type_hints(kind).values())) for kind in of)
    )


@given(messages(TO_CHILD))
def test_to_children(message):
    assert ipc.decode_to_child(ipc.encode(message)) == message


@given(messages(FROM_CHILD))
def test_from_children(message):
    assert ipc.decode_from_child(ipc.encode(message)) == message


@given(st.booleans(), st.booleans(), st.booleans(), number, number)
def test_demands(bodies, handshakes, messages_, watchers, limit):
    demand = ipc.Demand(watchers, bodies=bodies, body_limit=limit, handshakes=handshakes, messages=messages_)
    assert ipc.decode_from_api(ipc.encode(demand)) == demand


summaries = st.builds(ipc.Summary, *(KINDS[hint] for hint in typing.get_type_hints(ipc.Summary).values()))
frames = st.builds(
    ipc.Frame,
    kind=st.integers(1, 6), part_key=number, summary=KINDS[bytes] | summaries.map(ipc.encode), public=KINDS[bytes],
    secret=KINDS[bytes], request_body=KINDS[bytes], request_offset=number, response_body=KINDS[bytes],
    response_offset=number, uid=st.integers(-1, (1 << 32) - 1),
)  # fmt: skip


@given(st.lists(frames, max_size=5))
def test_batches(batch):
    assert ipc.decode_batch(ipc.encode(batch)) == batch


def test_every_message_is_told_apart():
    for kinds in (TO_CHILD, FROM_CHILD):
        assert len({kind.__name__ for kind in kinds}) == len(kinds)
    assert ipc.decode_to_child(ipc.encode(ipc.Ping(1))) != ipc.decode_to_child(ipc.encode(ipc.Link(1)))


def test_a_message_for_the_other_direction_is_refused():
    with pytest.raises(msgspec.ValidationError):
        ipc.decode_from_child(ipc.encode(ipc.Stop()))
    with pytest.raises(msgspec.ValidationError):
        ipc.decode_to_child(ipc.encode(ipc.Ready()))


@given(st.binary(max_size=100))
def test_nonsense_is_an_error_of_two_kinds(data):
    for decode in (ipc.decode_batch, ipc.decode_from_api, ipc.decode_to_child, ipc.decode_from_child):
        try:
            decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def test_an_empty_batch_is_small_because_it_is_the_acknowledgement():
    assert ipc.decode_batch(ipc.encode([])) == []
    assert len(ipc.encode([])) == 1


def test_frame_kinds_are_those_of_the_contract():
    from spliffd.pb import spliff_pb2

    numbers = {field.name: field.number for field in spliff_pb2.Item.DESCRIPTOR.fields}
    kinds = ("exchange", "handshake", "message", "chunk", "body_part", "loss")
    assert sorted(kinds, key=lambda kind: numbers[kind]) == list(kinds)
    ours = (ipc.EXCHANGE, ipc.HANDSHAKE, ipc.MESSAGE, ipc.CHUNK, ipc.BODY_PART, ipc.LOSS)
    assert ours == tuple(range(1, 7))


@given(summaries)
def test_summaries(summary):
    assert ipc.decode_summary(ipc.encode(summary)) == summary
