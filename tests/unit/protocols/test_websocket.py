"""WebSocket: what a peer wrote comes out as messages; losses cost what they touch and are told."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.protocols import websocket_deflate, websocket_message
from spliffd.protocols.websocket import CLIENT, MAX_KEPT, SERVER, WebSocket
from spliffd.protocols.websocket_deflate import Agreed, negotiated
from spliffd.protocols.websocket_frames import MAX_SEARCH, unmask
from spliffd.protocols.websocket_message import Room
from tests.unit.protocols.websocket_transcripts import Peer, read, told

DEFLATE = Agreed(deflate=True)


def test_the_examples_of_rfc_6455_section_5_7():
    hello = b"Hello"
    single = bytes.fromhex("810548656c6c6f")
    masked = bytes.fromhex("818537fa213d7f9f4d5158")
    fragments = bytes.fromhex("010348656c80026c6f")
    ping, pong = bytes.fromhex("890548656c6c6f"), bytes.fromhex("8a8537fa213d7f9f4d5158")
    long = bytes.fromhex("827e0100") + bytes(256)
    longer = bytes.fromhex("827f0000000000010000") + bytes(65536)
    server = read(single + fragments + ping + long + longer, direction=SERVER)
    assert told(server) == [
        (True, 1, hello, "complete"),
        (True, 1, hello, "complete"),
        (True, 9, hello, "complete"),
        (True, 2, bytes(256), "complete"),
        (True, 2, bytes(65536), "complete"),
    ]
    assert [m.wire_size for m in server] == [7, 9, 7, 260, 65546]
    assert [m.frames for m in server] == [1, 2, 1, 1, 1]
    assert told(read(masked + pong)) == [(False, 1, hello, "complete"), (False, 10, hello, "complete")]


def test_the_examples_of_rfc_7692_section_7_2_3():
    one = "c107f248cdc9c90700"  # 7.2.3.1
    fragments = "4103f248cd" + "8004c9c90700"
    shared = "c107f248cdc9c90700" + "c105f200110000"  # 7.2.3.2: the second refers to the first
    stored = "c10b000500faff48656c6c6f00"  # 7.2.3.3: a block that is not compressed
    final = "c108f348cdc9c9070000"  # 7.2.3.4: BFINAL set
    two = "c10df248050000 00ffffcac9c90700".replace(" ", "")  # 7.2.3.5: two blocks in a message
    for data, count in ((one, 1), (fragments, 1), (shared, 2), (stored, 1), (final, 1), (two, 1)):
        messages = read(bytes.fromhex(data), direction=SERVER, agreed=DEFLATE)
        assert told(messages) == [(True, 1, b"Hello", "complete")] * count, data
        assert all(message.compressed for message in messages)


def test_control_frames_come_between_fragments():
    peer = Peer()
    data = (
        peer.frame(1, b"first ", fin=False) + peer.frame(9, b"now?") + peer.frame(0, b"second", fin=False)
        + peer.frame(10, b"") + peer.frame(0, b" third") + peer.close(1001, "going away")
    )  # fmt: skip
    messages = read(data)
    assert told(messages) == [
        (False, 9, b"now?", "complete"),
        (False, 10, b"", "complete"),
        (False, 1, b"first second third", "complete"),
        (False, 8, b"\x03\xe9going away", "complete"),
    ]
    assert messages[-1].close_code == 1001


def test_nothing_comes_behind_a_close():
    peer = Peer()
    socket = WebSocket(Agreed(), Room())
    assert len(socket.feed(CLIENT, peer.close() + peer.text("late"), 1)) == 1
    assert socket.garbage_bytes == len(peer.text("late"))
    assert read(peer.frame(8, b""))[0].close_code == 0


@pytest.mark.parametrize("keep", [True, False], ids=["takeover", "no takeover"])
@pytest.mark.parametrize("bits", [9, 15])
def test_compressed_messages(keep: bool, bits: int):
    peer = Peer(deflate=True, keep=keep, bits=bits)
    texts = [b'{"id": %d, "name": "one of many, all alike"}' % number for number in range(101)]
    agreed = Agreed(True, keep_client=keep)
    messages = read(b"".join(map(peer.text, texts)) + peer.binary(texts[0] * 99, 7, 50), agreed=agreed)
    assert [m.data for m in messages] == [*texts, texts[0] * 99]
    assert {m.state for m in messages} == {"complete"}
    assert [m.size for m in messages] == [len(m.data) for m in messages]
    assert sum(m.wire_size for m in messages) < sum(m.size for m in messages)


def test_what_was_agreed_on():
    assert negotiated(b"") == Agreed()
    assert negotiated(b"permessage-deflate") == Agreed(deflate=True)
    value = b"permessage-deflate; server_no_context_takeover; client_max_window_bits=12"
    assert negotiated(value) == Agreed(True, keep_server=False)
    assert negotiated(b"Permessage-Deflate;client_no_context_takeover") == Agreed(True, keep_client=False)
    assert negotiated(b"x-other; a=1, permessage-deflate") == Agreed(True, others=True)


def test_the_beginning_of_a_large_message_is_kept_and_its_size_told():
    body = random.Random(1).randbytes(3 * MAX_KEPT + 11)
    for deflate in (False, True):
        peer = Peer(deflate=deflate)
        room = Room()
        socket = WebSocket(Agreed(deflate), room)
        (message,) = socket.feed(CLIENT, peer.binary(body, 1000, MAX_KEPT), 1)
        assert (message.data, message.size, message.state) == (body[:MAX_KEPT], len(body), "complete")
        assert room.left == websocket_message.MAX_HELD
        assert [m.data for m in socket.feed(CLIENT, peer.text("next"), 1)] == [b"next"]


def test_without_room_sizes_are_told():
    socket = WebSocket(Agreed(), Room(10))
    (message,) = socket.feed(CLIENT, Peer().text("twenty bytes of text"), 1)
    assert (message.data, message.size, message.state) == (b"twenty byt", 20, "complete")


def test_a_bomb_stops_and_the_next_message_comes():
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(128)) + zeros.flush(zlib.Z_SYNC_FLUSH)[:-4]
    data = Peer(server=True).frame(2, bomb)
    data = bytes([data[0] | 0x40]) + data[1:]
    socket = WebSocket(DEFLATE, Room())
    tracemalloc.start()
    messages = [m for at in range(0, len(data), 16384) for m in socket.feed(SERVER, data[at : at + 16384], 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (message,) = messages
    assert message.state == "truncated"
    assert message.size < websocket_deflate.MAX_INFLATED
    assert message.wire_size == len(data)
    assert peak < 8 << 20
    after = socket.feed(SERVER, Peer(server=True, deflate=True).text("after"), 1)
    assert told(list(after)) == [(True, 1, b"after", "complete")]


@given(st.binary(min_size=0, max_size=3000), st.binary(min_size=4, max_size=4))
def test_unmasking(data: bytes, key: bytes):
    assert unmask(data, key) == bytes(byte ^ key[index % 4] for index, byte in enumerate(data))


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 9, 10]),
        st.one_of(st.binary(max_size=125), st.sampled_from([b"ab" * 60, b"x" * 126, bytes(70_000)])),
        st.lists(st.integers(0, 40), max_size=3),
    ),
    min_size=1,
    max_size=7,
)


def wire(messages: list[tuple[int, bytes, list[int]]], peer: Peer) -> tuple[bytes, list[tuple[int, bytes]]]:
    out, expected = b"", []
    for opcode, data, sizes in messages:
        if opcode > 2:
            payload = data[:125]
            out += peer.frame(opcode, payload)
            expected.append((opcode, payload))
        else:
            out += peer.binary(data, *sizes)
            expected.append((2, data))
    return out, expected


@given(MESSAGES, st.booleans(), st.booleans(), st.data())
def test_however_the_bytes_are_cut_the_same_messages_come_out(messages, server, deflate, draw):
    data, expected = wire(messages, Peer(server=server, deflate=deflate))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=8)))
    out = read(data, direction=int(server), agreed=Agreed(deflate), cuts=cuts)
    assert [(m.opcode, m.data) for m in out] == expected
    assert {m.state for m in out} == {"complete"}
    assert sum(m.wire_size for m in out) == len(data)


@given(MESSAGES, st.booleans(), st.booleans(), st.data())
def test_a_gap_anywhere_costs_what_it_touches(messages, server, deflate, draw):
    """What is called complete is right, what stands before the gap is complete, the rest is marked."""
    data, expected = wire(messages, Peer(server=server, deflate=deflate, keep=False))
    start = draw.draw(st.integers(0, len(data)))
    size = draw.draw(st.integers(1, len(data)))
    socket = WebSocket(Agreed(deflate, keep_client=False, keep_server=False), Room())
    side = int(server)
    before = socket.feed(side, data[:start], 1)
    assert [(m.opcode, m.data) for m in before] == expected[: len(before)]
    assert all(m.state == "complete" for m in before)
    after = [*socket.gap(side, size, 2), *socket.feed(side, data[start + size :], 3), *socket.close(4)]
    left = list(expected[len(before) :])
    for message in after:
        if message.state == "complete":
            while left and left[0] != (message.opcode, message.data):
                left.pop(0)
            assert left, f"{message.opcode} {message.data!r} was never sent"
            left.pop(0)


def test_a_gap_inside_a_payload_is_counted_and_reading_goes_on():
    peer = Peer()
    body = bytes(range(256)) * 8
    data = peer.binary(body) + peer.text("next")
    socket = WebSocket(Agreed(), Room())
    assert socket.feed(CLIENT, data[:1008], 1) == ()
    assert socket.gap(CLIENT, 501, 2) == ()
    first, second = socket.feed(CLIENT, data[1509:], 3)
    assert first.data == body[:1000] + body[1501:]
    assert (first.state, first.missing_bytes, first.gap_offset, first.gap_at) == ("gap", 501, 1008, 1000)
    assert first.wire_size == len(body) + 8
    assert (second.data, second.state) == (b"next", "complete")
    assert socket.resyncs == 0


def test_behind_a_gap_that_hides_boundaries_frames_are_found_again():
    peer = Peer(server=True)
    texts = [f"message number {number}, and some more" for number in range(23)]
    data = b"".join(map(peer.text, texts))
    socket = WebSocket(Agreed(), Room())
    out = [*socket.feed(SERVER, data[:110], 1), *socket.gap(SERVER, 200, 2)]
    for at in range(310, len(data), 17):
        out += socket.feed(SERVER, data[at : at + 17], 3)
    assert [m.state for m in out[:4]] == ["complete", "complete", "complete", "gap"]
    assert (out[3].data, out[3].missing_bytes) == (b"message n", 22)
    assert [m.state for m in out[4:]] == ["gap", *["complete"] * 12]  # the first that was found is in doubt
    behind = [m.data.decode() for m in out[4:]]
    assert behind == texts[-len(behind) :]
    assert len(behind) == 13
    assert socket.resyncs == 1


def test_compressed_messages_come_again_once_they_refer_to_nothing_lost():
    peer = Peer(deflate=True)
    noise = random.Random(7)
    blocks = [noise.randbytes(60) for _ in range(11)]
    sent = [blocks[0], blocks[0] + blocks[1], blocks[1] + blocks[2], *blocks[3:]]
    first, *others = map(peer.binary, sent)
    socket = WebSocket(DEFLATE, Room())
    out = list(socket.feed(CLIENT, first[:9], 1))
    out += socket.gap(CLIENT, len(first) - 9, 2)
    out += socket.feed(CLIENT, b"".join(others), 3)
    # The second repeats the first, the third the second.
    assert [m.state for m in out] == ["gap", "truncated", "truncated", *["complete"] * 8]
    for message, data in zip(out, sent, strict=True):
        assert message.data == data if message.state == "complete" else data.startswith(message.data)


@pytest.mark.parametrize("key", ["82820282", "81828182", "00000000", "82848284"])
def test_masked_zeros_are_not_taken_for_frames(key: str):
    """A payload of zeros is the key over and over, and every fourth byte may look like a header."""
    socket = WebSocket(Agreed(), Room())
    socket.gap(CLIENT, 1000, 1)
    assert socket.feed(CLIENT, bytes.fromhex(key) * 5000, 2) == ()


def test_what_breaks_the_rules_is_searched_through_within_bounds():
    socket = WebSocket(Agreed(), Room())
    noise = random.Random(3).randbytes(5 * MAX_SEARCH)
    for at in range(0, len(noise), 65536):
        socket.feed(SERVER, noise[at : at + 65536], at)
        assert socket.held() <= MAX_SEARCH + MAX_KEPT + 65536


@given(st.binary(max_size=400), st.booleans(), st.booleans(), st.data())
def test_no_input_raises_and_cuts_make_no_difference(data: bytes, server: bool, deflate: bool, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    whole = read(data, direction=int(server), agreed=Agreed(deflate))
    pieces = read(data, direction=int(server), agreed=Agreed(deflate), cuts=cuts)
    assert [(m.opcode, m.wire_size, m.state) for m in whole] == [
        (m.opcode, m.wire_size, m.state) for m in pieces
    ]
    for one, other in zip(whole, pieces, strict=True):
        if one.state == "complete" or not one.compressed:
            assert (one.data, one.size) == (other.data, other.size)
