"""The ring reader against memory laid out as the kernel lays it out (kernel/bpf/ringbuf.c).

A BPF ring maps its data pages twice in a row, so that no record wraps. A memfd cannot do that, so the
writer here stores every byte at both places, which to a reader is the same.
"""

from __future__ import annotations

import mmap
import os
import random
import re

import pytest

from spliffd.kernel import records
from spliffd.kernel.compile import source_folder
from spliffd.kernel.ring import WRAP_BYTES, Ring

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARD = 1 << 31, 1 << 30


class Producer:
    """The kernel's side of a ring in a memfd: consumer page, producer page, data twice."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * size)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + 2 * size)
        self.words = memoryview(self.memory).cast("Q")

    @property
    def consumed(self) -> int:
        return self.words[0]

    @property
    def position(self) -> int:
        return self.words[PAGE // 8]

    def start_at(self, position: int) -> None:
        """As if so many bytes had gone through already."""
        self.words[0] = self.words[PAGE // 8] = position

    def _store(self, at: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            where = (at + i) % self.size
            self.memory[2 * PAGE + where] = self.memory[2 * PAGE + self.size + where] = byte

    def reserve(self, payload: bytes, flags: int = BUSY) -> int:
        """Reserves and fills a record; returns its position, -1 when the ring is full."""
        room = (8 + len(payload) + 7) // 8 * 8
        at = self.position
        if at + room - self.consumed > self.size:
            return -1
        self._store(at, (len(payload) | flags).to_bytes(4, "little") + bytes(4) + payload)
        self.words[PAGE // 8] = at + room
        return at

    def commit(self, at: int, flags: int = 0) -> None:
        """Submits (or discards) what was reserved."""
        header = int.from_bytes(self.memory[2 * PAGE + at % self.size :][:4], "little") & ~BUSY
        self._store(at, (header | flags).to_bytes(4, "little"))

    def submit(self, payload: bytes) -> bool:
        at = self.reserve(payload)
        if at >= 0:
            self.commit(at)
        return at >= 0


@pytest.fixture
def producer():
    producer = Producer()
    yield producer
    os.close(producer.fd)


@pytest.fixture
def ring(producer):
    ring = Ring(producer.fd, SIZE)
    yield ring
    ring.close()


def read(ring: Ring, budget: int = 64, size: int = 3) -> list[bytes]:
    return [ring.data[at : at + size] for at in ring.drain(budget)]


def test_records_in_order(producer, ring):
    assert ring.drain(64) == []
    for payload in (b"one", b"two", b"six"):
        producer.submit(payload)
    assert read(ring) == [b"one", b"two", b"six"]
    assert ring.drain(64) == []


def test_room_is_given_back_by_release_and_not_before(producer, ring):
    producer.submit(b"one")
    ring.drain(64)
    assert producer.consumed == 0
    ring.release()
    assert producer.consumed == producer.position == 16


def test_the_budget_ends_a_batch(producer, ring):
    for n in range(7):
        producer.submit(b"%03d" % n)
    assert [len(ring.drain(3)), len(ring.drain(3)), len(ring.drain(3)), len(ring.drain(3))] == [3, 3, 1, 0]


def test_a_record_that_is_still_written_ends_a_batch(producer, ring):
    producer.submit(b"one")
    busy = producer.reserve(b"two")
    producer.submit(b"six")
    assert read(ring) == [b"one"]
    ring.release()
    assert read(ring) == []
    assert ring.pending() == 32
    producer.commit(busy)
    assert read(ring) == [b"two", b"six"]
    assert ring.pending() == 0


def test_discarded_records_are_passed_over_and_given_back(producer, ring):
    producer.submit(b"one")
    producer.commit(producer.reserve(b"xxx"), DISCARD)
    producer.submit(b"two")
    producer.commit(producer.reserve(b"yyy"), DISCARD)
    assert read(ring) == [b"one", b"two"]
    ring.release()
    assert producer.consumed == producer.position


def test_only_discarded_records_are_no_work_but_room(producer, ring):
    producer.commit(producer.reserve(b"xxx"), DISCARD)
    assert ring.drain(64) == []
    ring.release()
    assert producer.consumed == producer.position


def test_a_record_over_the_end_is_in_one_piece(producer):
    producer.start_at(SIZE - 16)
    ring = Ring(producer.fd, SIZE)
    payload = bytes(range(100))
    assert producer.submit(payload)
    assert read(ring, size=100) == [payload]
    ring.close()


def test_positions_beyond_32_bits(producer):
    producer.start_at((1 << 32) - 8)
    ring = Ring(producer.fd, SIZE)
    for payload in (b"one", b"two"):
        producer.submit(payload)
    assert read(ring) == [b"one", b"two"]
    ring.release()
    assert producer.consumed == (1 << 32) + 24
    ring.close()


def test_a_new_reader_goes_on_where_the_last_one_released(producer, ring):
    for payload in (b"one", b"two", b"six"):
        producer.submit(payload)
    ring.drain(1)
    ring.release()
    ring.drain(1)  # and dies before it gives this one back
    successor = Ring(producer.fd, SIZE)
    assert read(successor) == [b"two", b"six"]
    successor.close()


def test_long_traffic_arrives_whole(producer, ring):
    """Random sizes, many times around the ring, read in random batches: all of it, once, in order."""
    random_ = random.Random(7)
    sent, got = [], []
    for n in range(2003):
        payload = n.to_bytes(4, "little") + bytes([n & 255]) * random_.randrange(300)
        while not producer.submit(payload):
            for at in ring.drain(random_.randrange(1, 9)):
                length = int.from_bytes(ring.data[at - 8 : at - 4], "little")
                got.append(ring.data[at : at + length])
            ring.release()
        sent.append(payload)
    for at in ring.drain(1000):
        length = int.from_bytes(ring.data[at - 8 : at - 4], "little")
        got.append(ring.data[at : at + length])
    assert got == sent
    assert producer.position > 50 * SIZE


def test_another_processor_is_refused(producer, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(NotImplementedError, match="x86-64"):
        Ring(producer.fd, SIZE)


def test_the_largest_record_is_readable_across_the_end_of_the_ring():
    """A record begins before the end and goes on in the second mapping: all of it must be mapped."""
    source = (source_folder() / "emit.bpf.c").read_text()
    rooms = [int(room) for room in re.findall(r"^EMIT_PIECE\((\d+)\)", source, re.MULTILINE)]
    assert len(rooms) > 5
    assert max(rooms) + records.HEADER_BYTES + 8 <= WRAP_BYTES
