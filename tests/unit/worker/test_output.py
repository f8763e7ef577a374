"""Frames out over a real socket pair: batches, a busy api, a stuck one, none; and what is lost is told."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from spliffd import counters, ipc
from spliffd.counters import Region
from spliffd.pb import spliff_pb2
from spliffd.worker import output as outputs
from spliffd.worker.output import Output


class Stage:
    def __init__(self) -> None:
        self.counters = Region(counters.WORKER, memoryview(bytearray(counters.REGION_BYTES)).cast("Q"))
        self.output = Output(self.counters)
        self.api: socket.socket | None = None
        self.opened: list[socket.socket] = []

    def connect(self, room: int = ipc.SEND_BUFFER) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.settimeout(5)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.output.link, self.api = ours, theirs
        self.opened += [ours, theirs]

    def batch(self) -> ipc.Batch:
        assert self.api is not None
        return ipc.decode_batch(self.api.recv(ipc.MAX_DATAGRAM))

    def waiting(self) -> list[ipc.Batch]:
        assert self.api is not None
        self.api.setblocking(False)
        found = []
        while True:
            try:
                found.append(ipc.decode_batch(self.api.recv(ipc.MAX_DATAGRAM)))
            except BlockingIOError:
                self.api.settimeout(5)
                return found

    def count(self, name: str) -> int:
        return self.counters.get(name)


@pytest.fixture
def stage():
    stage = Stage()
    yield stage
    for sock in stage.opened:
        sock.close()


def frame(n: int = 0, size: int = 0) -> ipc.Frame:
    return ipc.Frame(ipc.EXCHANGE, n, b"", b"x" * size)


def losses(batch: ipc.Batch) -> list[tuple[str, str, int, int]]:
    found = [spliff_pb2.Loss.FromString(f.public) for f in batch if f.kind == ipc.LOSS]
    return [(loss.stage, loss.reason, loss.count, loss.bytes) for loss in found]


def test_nothing_is_sent_before_the_flush(stage):
    stage.connect()
    stage.output.flush()
    for n in range(3):
        stage.output.put(frame(n))
    assert stage.waiting() == []
    assert stage.output.pending()
    stage.output.flush()
    assert not stage.output.pending()
    assert [f.part_key for f in stage.batch()] == [0, 1, 2]


def test_many_frames_go_without_a_flush(stage):
    stage.connect()
    for n in range(outputs.BATCH_FRAMES * 2 + 1):
        stage.output.put(frame(n))
    assert [len(batch) for batch in stage.waiting()] == [outputs.BATCH_FRAMES] * 2
    stage.output.flush()
    assert [len(batch) for batch in stage.waiting()] == [1]


def test_large_frames_stay_below_the_largest_datagram(stage):
    from spliffd.worker.bodies import PART_BYTES

    stage.connect()
    part = ipc.Frame(ipc.BODY_PART, 1, b"", b"", request_body=bytes(2 * PART_BYTES))
    for _ in range(5):
        stage.output.put(part)
    stage.output.flush()
    assert sum(len(batch) for batch in stage.waiting()) == 5
    assert stage.count("output_dropped_frames") == 0


def test_without_an_api_frames_are_dropped_counted_and_told_later(stage):
    for n in range(3):
        stage.output.put(frame(n, 100))
    stage.output.flush()
    stage.output.put(frame(3, 100))
    stage.output.flush()
    assert stage.count("output_dropped_frames") == 4
    assert stage.count("output_dropped_bytes") == 4 * 356
    assert stage.output.pending()

    stage.connect()
    stage.output.put(frame(9))
    stage.output.flush()
    batch = stage.batch()
    assert losses(batch) == [("worker", "queue_full", 4, 4 * 356)]
    assert [f.part_key for f in batch if f.kind == ipc.EXCHANGE] == [9]
    assert not stage.output.pending()  # told once


def test_an_api_that_goes_away_is_noticed(stage):
    stage.connect()
    stage.api.close()
    stage.output.put(frame())
    stage.output.flush()
    assert stage.output.link is None
    assert stage.count("output_dropped_frames") == 1
    stage.connect()
    stage.output.flush()
    assert losses(stage.batch()) == [("worker", "queue_full", 1, 256)]


def test_a_stuck_api_costs_one_second_and_what_is_dropped_is_told(stage, monkeypatch):
    monkeypatch.setattr(outputs, "STALL_SECONDS", 0.2)
    stage.connect(room=1 << 14)
    sent = 0
    while not stage.count("output_stalls"):
        stage.output.put(frame(sent, 1000))
        begin = time.monotonic()
        stage.output.flush()
        sent += 1
    took = time.monotonic() - begin
    assert 0.2 <= took < 0.6
    assert stage.count("output_dropped_frames") == 1
    assert stage.output.link is not None  # it may come back

    arrived = stage.waiting()
    assert sum(len(batch) for batch in arrived) == sent - 1
    stage.output.flush()
    assert losses(stage.batch()) == [("worker", "queue_full", 1, 1256)]


def fill(stage) -> None:
    """Until the socket takes no more."""
    try:
        while True:
            stage.output.link.send(ipc.encode([]))
    except BlockingIOError:
        return


def test_a_busy_api_is_waited_for(stage):
    stage.connect(room=1 << 14)
    fill(stage)
    reader = threading.Timer(0.1, stage.waiting)
    reader.start()
    stage.output.put(frame(7))
    stage.output.flush()
    reader.join()
    assert [f.part_key for batch in stage.waiting() for f in batch] in ([7], [])  # or the reader had it
    assert stage.count("output_stalls") == 1
    assert stage.count("output_dropped_frames") == 0


def test_an_api_that_dies_while_it_is_waited_for(stage, monkeypatch):
    monkeypatch.setattr(outputs, "STALL_SECONDS", 5.0)
    stage.connect(room=1 << 14)
    fill(stage)
    killer = threading.Timer(0.1, stage.api.close)
    killer.start()
    begin = time.monotonic()
    stage.output.put(frame())
    stage.output.flush()
    killer.join()
    assert time.monotonic() - begin < 2
    assert stage.output.link is None
    assert stage.count("output_dropped_frames") == 1


def test_losses_of_a_kind_are_added_up(stage):
    stage.output.lose("kernel", "ring_full", 2, 100, 50, 60)
    stage.output.lose("kernel", "fault", 1, 0, 55, 55)
    stage.output.lose("kernel", "ring_full", 3, 200, 40, 58)
    assert stage.output.pending()
    stage.output.flush()  # nobody there: kept, not dropped
    stage.connect()
    stage.output.flush()
    batch = stage.batch()
    assert losses(batch) == [("kernel", "ring_full", 5, 300), ("kernel", "fault", 1, 0)]
    first = spliff_pb2.Loss.FromString(batch[0].public)
    assert (first.first_time_ns, first.last_time_ns) == (40, 60)


def test_an_acknowledgement_comes_behind_what_was_before(stage):
    stage.connect()
    stage.output.put(frame(1))
    stage.output.acknowledge()
    assert [len(batch) for batch in stage.waiting()] == [1, 0]


def test_an_acknowledgement_to_nobody(stage):
    stage.output.acknowledge()
    assert not stage.output.pending()
