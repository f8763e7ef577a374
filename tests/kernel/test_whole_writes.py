"""Writes that are over when the socket has taken their record: delivered once, and when in doubt by their return."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.kernel import bpf, records
from tests.support.lab import Lab
from tests.support.shared import lab_of_the_file
from tests.support.tracer import Tracer
from tests.support.writer import Writer

lab = lab_of_the_file("whole-writes")

ENABLE_STATS = 32
"""BPF_ENABLE_STATS: while its descriptor is open, runs of programs are counted."""

AEAD = {
    "1.3": ("TLSv1_3", ""),
    "1.2-gcm": ("TLSv1_2", "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"),
    "1.2-chacha": ("TLSv1_2", "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"),
}


class Seen:
    """What the kernel tells of one writer's calls."""

    def __init__(self, tracer: Tracer, lab: Lab, version: str, ciphers: str) -> None:
        self.tracer = tracer
        self.writer = Writer(lab, version, ciphers)
        tracer.read()
        self._unmatched = tracer.counters().get("call_unmatched", 0)

    def said(self) -> str:
        """What the client was seen to write since the last look."""
        found = [
            record.payload.decode()
            for record in self.tracer.read()
            if record.kind == records.DATA and record.direction == records.SENT
        ]
        return "".join(found)

    def unmatched(self) -> int:
        """Calls that were counted because nobody knows how they ended."""
        return self.tracer.counters().get("call_unmatched", 0) - self._unmatched

    def runs(self) -> int:
        """How often the program of the calls has run."""
        info = Path(f"/proc/self/fdinfo/{self.tracer.programs.fd['tls_call']}").read_text(encoding="ascii")
        found = re.search(r"run_cnt:\s+(\d+)", info)
        assert found
        return int(found[1])

    def cost(self, letter: str, size: int) -> int:
        """Runs that one write takes: 2 with its return, 1 without."""
        before = self.runs()
        assert self.writer.write(letter, size) == size
        return self.runs() - before


@pytest.fixture(scope="module")
def tracer(lab: Lab) -> Iterator[Tracer]:
    with Tracer(lab) as tracer:
        if not tracer.programs.sessions:
            pytest.skip("this kernel has no uprobe sessions (6.13): every return is looked at")
        fd = bpf.call(ENABLE_STATS, bytearray(bpf.ATTR_BYTES))
        yield tracer
        os.close(fd)


@pytest.fixture(params=AEAD.values(), ids=list(AEAD))
def seen(tracer: Tracer, lab: Lab, request: pytest.FixtureRequest) -> Iterator[Seen]:
    seen = Seen(tracer, lab, *request.param)
    yield seen
    seen.writer.close()


@pytest.fixture
def seen13(tracer: Tracer, lab: Lab) -> Iterator[Seen]:
    seen = Seen(tracer, lab, *AEAD["1.3"])
    yield seen
    seen.writer.close()


def test_a_write_no_longer_than_one_that_went_whole_needs_no_return(seen: Seen):
    costs = [seen.cost(letter, size) for letter, size in zip("abcd", (100, 100, 7, 1), strict=True)]

    assert costs == [2, 1, 1, 1]
    assert seen.said() == "a" * 100 + "b" * 100 + "c" * 7 + "d"
    assert seen.unmatched() == 0


def test_a_longer_one_is_looked_at_until_it_went_whole_too(seen: Seen):
    costs = [seen.cost(letter, size) for letter, size in zip("abcd", (10, 11, 11, 10), strict=True)]

    assert costs == [2, 2, 1, 1]
    assert seen.said() == "a" * 10 + "b" * 11 + "c" * 11 + "d" * 10


def test_padded_records_are_always_looked_at(tracer: Tracer, lab: Lab):
    seen = Seen(tracer, lab, "TLSv1_2", "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256")
    assert [seen.cost("a", 100) for _ in range(3)] == [2, 2, 2]
    assert seen.said() == "a" * 300
    seen.writer.close()


@pytest.mark.parametrize("size", [16384, 16385, 40000])
def test_more_than_a_record_is_looked_at(seen13: Seen, size: int):
    pieces = []
    for letter in "ab":
        while seen13.writer.write(letter, size) != size:
            seen13.writer.arrived()
        seen13.writer.arrived()
        pieces.append(letter * size)

    assert seen13.said() == "".join(pieces)
    assert seen13.unmatched() == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_full_socket_and_calls_made_again(seen: Seen, seed: int):
    """Whatever the socket takes of a record, what is delivered is what the server gets, once and in order."""
    chance = random.Random(seed)
    written, got = [], ""
    for number in range(101):
        letter, size = chr(97 + number % 26), chance.choice((1, 7, 101, 1009, 4099, 16381))
        while seen.writer.write(letter, size) != size:
            got += seen.writer.arrived()
        written.append(letter * size)
        if chance.random() < 0.2:
            got += seen.writer.arrived()
    whole = "".join(written)
    deadline = time.monotonic() + 30
    while len(got) < len(whole) and time.monotonic() < deadline:
        got += seen.writer.arrived()

    assert got == whole
    assert seen.said() == whole
    assert seen.unmatched() == 0


def until_refused(writer: Writer) -> str:
    """Writes until the socket is full; returns what it took whole calls of."""
    whole = []
    for letter in "bcdefghijklmnop" * 40:
        if writer.write(letter, 4096) != 4096:
            return "".join(whole)
        whole.append(letter * 4096)
    pytest.fail("the socket takes everything")


def test_a_call_that_is_not_made_again_was_none(seen: Seen):
    whole = until_refused(seen.writer)

    assert seen.said() == whole
    assert seen.unmatched() == 0


def test_a_call_that_signals_interrupt_and_the_kernel_makes_again_is_delivered(seen: Seen):
    letters = "abcdefghijklmnop" * 40
    assert seen.writer.does("interrupted", letters, 4096) == str(4096 * len(letters))

    assert seen.said() == "".join(letter * 4096 for letter in letters)
    assert seen.unmatched() == 0


def test_a_record_that_goes_ahead_does_not_hide_the_calls_own(seen13: Seen):
    assert seen13.cost("a", 100) == 2
    assert seen13.cost("b", 100) == 1
    assert seen13.writer.does("update") == "1"
    for letter in "cd":  # the first one sends a KeyUpdate ahead
        assert seen13.cost(letter, 100) == 1

    assert seen13.said() == "".join(letter * 100 for letter in "abcd")
    assert seen13.unmatched() == 0


def test_what_call_backs_send_elsewhere_is_no_part_of_it(seen13: Seen):
    assert seen13.cost("a", 100) == 2
    seen13.writer.does("aside", number=122)  # just as long as the record
    for letter in "bc":
        assert seen13.cost(letter, 100) == 1

    assert seen13.said() == "".join(letter * 100 for letter in "abc")
    assert seen13.unmatched() == 0


def test_what_a_call_back_sends_elsewhere_is_not_taken_for_the_record(seen13: Seen):
    """Of a call that the full socket refuses nothing is delivered, though as many bytes were sent in it."""
    assert seen13.cost("a", 4096) == 2
    seen13.writer.does("aside", number=4096 + 22)
    whole = until_refused(seen13.writer)

    assert seen13.said() == "a" * 4096 + whole


def test_a_handshake_call_begins_anew(seen: Seen):
    assert [seen.cost("a", 100), seen.cost("b", 100)] == [2, 1]
    assert seen.writer.does("again") == "1"
    assert [seen.cost("c", 100), seen.cost("d", 100)] == [2, 1]
    assert seen.said() == "".join(letter * 100 for letter in "abcd")


def test_a_call_that_goes_another_way_is_told_and_the_next_are_looked_at(seen13: Seen):
    assert [seen13.cost("a", 1000), seen13.cost("b", 1000)] == [2, 1]
    assert seen13.writer.does("fragment", number=512) == "1"
    assert seen13.cost("c", 1000) == 1
    assert seen13.unmatched() == 1
    assert [seen13.cost("d", 1000), seen13.cost("e", 400), seen13.cost("f", 400)] == [2, 2, 2]

    assert seen13.said() == "".join(letter * (1000 if letter in "abd" else 400) for letter in "abdef")
    assert seen13.unmatched() == 1


def test_a_write_on_a_reset_connection_is_not_delivered(seen: Seen):
    seen.cost("a", 100)
    seen.writer.does("reset")
    failed = [seen.writer.write("b", 100) for _ in range(3)]
    seen.writer.does("free")

    assert -1 in failed or 0 in failed
    assert seen.said() == "a" * 100 + "b" * 100 * failed.count(100)
    assert seen.unmatched() == 0


def test_a_write_that_sends_nothing_leaves_no_call_behind(seen: Seen):
    seen.cost("a", 100)
    seen.writer.does("shutdown")
    assert seen.writer.write("b", 100) == -1
    seen.writer.does("free")
    seen.writer.arrived()  # the thread's next call

    assert seen.said() == "a" * 100
    assert seen.unmatched() == 0
