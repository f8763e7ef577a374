"""HTTP/2 bodies that nobody wants, call by call: what is delivered, and what is told of what is not."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from spliffd.kernel import records
from spliffd.kernel.unwanted import Unwanted
from spliffd.protocols.http2 import REQUEST, RESPONSE, Http2
from spliffd.protocols.http2_frames import PREFACE
from spliffd.protocols.http2_unwanted import Part, Skipped
from spliffd.protocols.messages import HttpExchange
from tests.support.dialogue import Dialogue
from tests.support.lab import Lab
from tests.support.shared import lab_of_the_file
from tests.support.tracer import Record, Tracer
from tests.support.watched import Watched
from tests.unit.protocols.http2_transcripts import GET, OK, Peer, facts, frame

lab = lab_of_the_file("frames")

SETTINGS = frame(4, 0, 0, bytes.fromhex("000300000064"))
NOTHING = (0, 0, 0, 0)


class Told(NamedTuple):
    offset: int
    size: int
    parts: list[tuple[int, int, int]]
    left: int
    current: int


class Talk:
    """One connection; the server says DATA, and the test says of which streams nobody wants it."""

    def __init__(self, kernel: Watched, dialogue: Dialogue, requests: int = 1) -> None:
        self.kernel, self.dialogue = kernel, dialogue
        self.up, self.down = Peer(), Peer()
        self.said: list[bytes] = []
        kernel.data()
        dialogue.client(PREFACE + SETTINGS)
        self.server(SETTINGS)
        for n in range(requests):
            dialogue.client(self.up.headers(2 * n + 1, GET, end=True))
            self.server(self.down.headers(2 * n + 1, OK))
        sent = {r.payload: r.key for r in kernel.data() if r.direction == records.SENT}
        self.key, self.client_key = sent[SETTINGS], sent[PREFACE + SETTINGS]
        self.offset = sum(len(data) for data in self.said)

    def server(self, data: bytes) -> None:
        self.said.append(data)
        self.dialogue.server(data)

    def unwanted(self, *streams: int) -> None:
        """Of what the server sends."""
        Unwanted(self.kernel.tracer.maps.fd["unwanted"]).streams(self.key, (*streams, *NOTHING)[:4], NOTHING)

    def sent(self) -> list[Told | bytes]:
        """What came of that since."""
        return [
            told(record) if record.kind == records.SKIPPED else record.payload
            for record in self.kernel.tracer.read()
            if record.direction == records.SENT and record.key == self.key
        ]


def told(record: Record) -> Told:
    return Told(record.offset, record.size, *records.unpack_skipped(record.payload, 0))


def data(stream: int, size: int) -> bytes:
    return frame(0, 0, stream, bytes(size))


@pytest.fixture
def talk(kernel: Watched, dialogue: Dialogue) -> Talk:
    return Talk(kernel, dialogue, requests=3)


def test_calls_that_hold_nothing_else_are_told_by_one_record_before_the_next(talk: Talk):
    before = talk.kernel.tracer.maps.counters.get("unwanted_bytes")
    talk.unwanted(1)
    body = data(1, 8192) * 5
    for at in range(0, 32768, 16384):
        talk.server(body[at : at + 16384])
    assert talk.sent() == []
    rest = body[32768:] + frame(0, 1, 1, b"the end")
    talk.server(rest)

    assert talk.sent() == [
        Told(talk.offset, 32768, [(1, 4, 32768 - 36)], 4 * 8192 - (32768 - 36), 1),
        rest,
    ]
    assert talk.kernel.tracer.maps.counters.get("unwanted_bytes") - before == 32768


@pytest.mark.parametrize(
    "call",
    [
        data(1, 6000) + frame(6, 0, 0, bytes(8)),
        frame(8, 0, 1, bytes(4)) + data(1, 6000),
        data(1, 6000) + data(5, 100),
        frame(0, 1, 1, bytes(6000)),
        frame(0, 8, 1, b"\x05" + bytes(6000)),
        data(1, 6000)[:-1] + b"\0" + data(1, 100)[:5],
        data(1, 4000),
    ],
    ids=["ping", "window", "another's", "end", "padded", "half-a-header", "small"],
)
def test_whatever_else_is_in_a_call_it_is_delivered_whole(talk: Talk, call: bytes):
    talk.unwanted(1, 3)
    talk.server(call)

    assert talk.sent() == [call]


def test_of_several_streams_each_is_told(talk: Talk):
    talk.unwanted(1, 3, 5)
    talk.server(data(1, 3000) + data(3, 2000) + data(5, 5000)[:3000])
    talk.server(data(5, 5000)[3000:] + data(3, 2500))
    talk.server(frame(6, 0, 0, bytes(8)))

    size = 10000 + 2500 + 4 * 9
    assert talk.sent() == [
        Told(talk.offset, size, [(1, 1, 3000), (3, 2, 4500), (5, 1, 5000)], 0, 3),
        frame(6, 0, 0, bytes(8)),
    ]


def test_a_header_that_was_cut_goes_on_in_what_is_left_out(talk: Talk):
    talk.unwanted(1)
    whole = data(1, 5000) + data(1, 5000)
    talk.server(whole[:5012])
    talk.server(whole[5012:])
    talk.server(b"\0")

    assert talk.sent() == [whole[:5012], Told(talk.offset + 5012, 5006, [(1, 1, 5000)], 0, 1), b"\0"]


def test_who_watches_sees_it_grow(talk: Talk):
    talk.unwanted(1)
    stream = data(1, 99991) * 21
    for at in range(0, len(stream), 50000):
        talk.server(stream[at : at + 50000])

    assert talk.sent() == [Told(talk.offset, 21 * 50000, [(1, 11, 21 * 50000 - 99)], 50000, 1)]


def test_what_is_no_frame_ends_it_for_good(talk: Talk):
    talk.unwanted(1)
    talk.server(frame(0, 0, 0, bytes(5000)))
    talk.server(data(1, 5000))

    assert talk.sent() == [frame(0, 0, 0, bytes(5000)), data(1, 5000)]


def test_too_many_frames_at_once_end_it(talk: Talk):
    talk.unwanted(1)
    talk.server(data(1, 200) * 40)
    talk.server(data(1, 5000))

    assert talk.sent() == [data(1, 200) * 40, data(1, 5000)]


def test_nobody_wants_is_taken_back(talk: Talk):
    talk.unwanted(1)
    talk.server(data(1, 5000))
    Unwanted(talk.kernel.tracer.maps.fd["unwanted"]).until(talk.key, 0, 0)
    talk.server(data(1, 6000))

    assert talk.sent() == [Told(talk.offset, 5009, [(1, 1, 5000)], 0, 1), data(1, 6000)]


def test_what_a_client_sends_is_left_out_as_well(talk: Talk):
    talk.kernel.tracer.read()
    table = Unwanted(talk.kernel.tracer.maps.fd["unwanted"])
    table.streams(talk.client_key, (1, 0, 0, 0), NOTHING)
    talk.dialogue.client(data(1, 5000))
    talk.dialogue.client(frame(0, 1, 1, b"end"))

    found = [r for r in talk.kernel.tracer.read() if r.direction == records.SENT and r.key == talk.client_key]
    assert [r.kind for r in found] == [records.SKIPPED, records.DATA]
    assert told(found[0])[1:] == (5009, [(1, 1, 5000)], 0, 1)


def test_what_a_full_ring_cannot_tell_waits_and_nothing_overtakes_it(lab: Lab):
    with Tracer(lab, ring_mib=1) as tracer:
        talk, other = Talk(Watched(tracer), Dialogue(lab)), Dialogue(lab)
        talk.unwanted(1)
        talk.server(data(1, 5000))
        full = tracer.maps.counters
        for size in (16000, 10):
            before = full.get("ring_full_data_records")
            for _ in range(5000):
                other.client(b"x" * size)
                if full.get("ring_full_data_records") > before + 1:
                    break
        lost = full.get("ring_full_data_bytes")
        ping = frame(6, 0, 0, bytes(8))
        talk.server(ping)
        assert full.get("ring_full_control") > 0
        assert full.get("ring_full_data_bytes") - lost == 2 * len(ping)
        assert talk.sent() == []
        talk.server(data(1, 6000))
        talk.server(ping)

        assert talk.sent() == [
            Told(talk.offset, 5009, [(1, 1, 5000)], 0, 1),
            Told(talk.offset + 5009 + len(ping), 6009, [(1, 1, 6000)], 0, 1),
            ping,
        ]
        for dialogue in (talk.dialogue, other):
            dialogue.close()


def test_what_is_smaller_than_the_run_that_waits_does_not_slip_past_it(lab: Lab):
    with Tracer(lab, ring_mib=1) as tracer:
        talk, other = Talk(Watched(tracer), Dialogue(lab)), Dialogue(lab)
        talk.unwanted(1)
        tracer.read()
        before = tracer.ring.produced()
        for _ in range(2):  # read at the client: two records of the same size
            talk.server(data(1, 5000))
        other.client(b"begin: it is neither HTTP/1 nor HTTP/2")
        taken = tracer.ring.produced() - before
        for size in fitting((1 << 20) - USED_UP - SMALLEST - taken):
            other.client(b"x" * size)
        assert tracer.ring.produced() - before == (1 << 20) - USED_UP - SMALLEST
        ping = frame(6, 0, 0, bytes(8))
        talk.server(ping)  # its own record would have room, the run's would not

        assert tracer.maps.counters.get("ring_full_data_bytes") == len(ping)
        assert talk.sent() == []
        talk.server(ping)
        assert talk.sent() == [Told(talk.offset, 10018, [(1, 2, 10000)], 0, 1), ping]
        for dialogue in (talk.dialogue, other):
            dialogue.close()


USED_UP = 8
"""A ring is full when as much is left."""
SMALLEST = 8 + records.HEADER_BYTES + 64
"""What a record of up to 64 bytes takes: 8 less than one that tells a run."""


def fitting(room: int) -> list[int]:
    """Sizes of calls whose records, one at each end, take just so much."""
    large, middle, small = (2 * (SMALLEST - 64 + most) for most in (16384, 320, 64))
    sizes = []
    while room > 3 * large:
        sizes.append(16384)
        room -= large
    many = next(n for n in range(room // middle + 1) if (room - n * middle) % small == 0)
    return [*sizes, *[320] * many, *[64] * ((room - many * middle) // small)]


@pytest.mark.parametrize("seed", range(6))
def test_any_frames_cut_anywhere_give_the_same_exchanges(kernel: Watched, dialogue: Dialogue, seed: int):
    dice = random.Random(seed)
    talk = Talk(kernel, dialogue, requests=3)
    talk.unwanted(1, 5)
    stream = b""
    while len(stream) < 400_000:
        kind = dice.randrange(10)
        number = dice.choice([1, 1, 1, 5, 5, 3] if kind < 8 else [1, 3])
        size = dice.choice([0, 1, 100, 4096, 8192, 16384, 40000])
        if kind < 8:
            stream += data(number, size)
        elif kind == 8:
            stream += frame(0, 8, number, b"\x03" + bytes(size + 3))
        else:
            stream += dice.choice([frame(6, 0, 0, bytes(8)), frame(8, 0, 1, bytes(4))])
    stream += b"".join(frame(0, 1, number, b"end") for number in (3, 1, 5))
    start = talk.offset
    while stream:
        size = dice.choice([7, 100, 5000, 8192, 8192 + 9, 16384, 16384, 30000])
        talk.server(stream[:size])
        stream = stream[size:]

    found = [(record.kind, record) for record in kernel.tracer.read() if record.kind in (1, records.SKIPPED)]
    assert any(kind == records.SKIPPED for kind, _ in found)
    for direction in (records.SENT, records.RECEIVED):
        whole, pieces = begun(talk), begun(talk)
        expected = whole.feed(RESPONSE, b"".join(talk.said)[start:], 1)
        at, out = start, []
        for _, record in found:
            if record.direction != direction or record.offset < start:
                continue
            assert record.offset == at
            at += record.size
            if record.kind == records.SKIPPED:
                run = told(record)
                parts = tuple(Part(*part) for part in run.parts)
                assert pieces.skip(RESPONSE, Skipped(run.size, parts, run.left, run.current), 1)
            else:
                out += pieces.feed(RESPONSE, record.payload, 1)
        assert [facts(each) for each in out] == [facts(each) for each in expected]
        assert {each.state for each in out} == {"complete"}


def begun(talk: Talk) -> Http2:
    """A parser that has read what was said before the bodies."""
    parser = Http2(None)
    up, down = Peer(), Peer()
    parser.feed(REQUEST, PREFACE + SETTINGS, 0)
    parser.feed(RESPONSE, SETTINGS, 0)
    early: list[HttpExchange] = []
    for number in (1, 3, 5):
        early += parser.feed(REQUEST, up.headers(number, GET, end=True), 0)
        early += parser.feed(RESPONSE, down.headers(number, OK), 0)
    assert not early
    return parser
