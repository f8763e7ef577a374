"""Sockets to worker and supervisor: fairness, acknowledgements, broken input, slow peers."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from api_harness import exchange

from spliffd import ipc
from spliffd.api import links
from spliffd.api.links import ControlLink, DataLink


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ipc.SEND_BUFFER)
    ours.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


class Log:
    """What a link called back with."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.bad: list[int] = []
        self.changes = 0
        self.messages: list[object] = []
        self.ended = False

    def changed(self) -> None:
        self.changes += 1

    def data(self, sock) -> DataLink:
        return DataLink(sock, lambda batch: self.batches.append(len(batch)), self.bad.append, self.changed)

    def end(self) -> None:
        self.ended = True

    def control(self, sock) -> ControlLink:
        return ControlLink(sock, lambda *got: self.messages.append(got), self.bad.append, self.end)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_wake_up_reads_a_bounded_number_of_datagrams(pair):
    worker, ours = pair
    for _ in range(links.MAX_READS * 2 + 3):
        worker.send(ipc.encode([exchange()]))
    log = Log()
    link = log.data(ours)
    seen = []
    while len(log.batches) < links.MAX_READS * 2 + 3:
        await asyncio.sleep(0)
        seen.append(len(log.batches))

    # Each turn of the loop reads so many at most: others have their turn in between.
    assert [n for n in sorted(set(seen)) if n] == [
        links.MAX_READS,
        links.MAX_READS * 2,
        links.MAX_READS * 2 + 3,
    ]
    link.close()


async def test_a_demand_is_acknowledged_by_an_empty_batch(pair):
    worker, ours = pair
    log = Log()
    link = log.data(ours)
    for watchers in (1, 2):
        link.demand(ipc.Demand(watchers, bodies=False, body_limit=0, handshakes=False, messages=False))
    assert [ipc.decode_from_api(worker.recv(100)).watchers for _ in range(2)] == [1, 2]

    worker.send(ipc.encode([]))
    await settle()
    assert not link.acknowledged
    worker.send(ipc.encode([]))
    await settle()

    assert link.acknowledged
    assert (log.batches, log.changes) == ([], 2)
    link.close()


async def test_broken_and_oversized_datagrams_are_told_not_raised(pair):
    worker, ours = pair
    log = Log()
    link = log.data(ours)
    worker.send(b"\xc1no messagepack")
    worker.send(bytes(ipc.MAX_DATAGRAM + 1))
    worker.send(ipc.encode([exchange()]))
    await settle()

    assert log.bad == [15, ipc.MAX_DATAGRAM + 1]
    assert log.batches == [1]
    link.close()


async def test_a_worker_that_is_gone_closes_its_link(pair):
    worker, ours = pair
    log = Log()
    link = log.data(ours)
    worker.send(ipc.encode([exchange()]))
    worker.close()
    await settle()

    assert log.batches == [1]
    assert not link.open
    assert not link.acknowledged


async def test_a_peer_that_does_not_read_gets_everything_later_and_in_order(pair):
    supervisor, ours = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    link = Log().control(ours)
    sent = [number for number in range(1009) if link.send(ipc.Pong(number))]
    assert links.MAX_WAITING < len(sent) < 1009  # the rest was refused: nobody reads

    got = []
    while len(got) < len(sent):
        got.append(ipc.decode_from_child(supervisor.recv(100)).number)
        await asyncio.sleep(0)

    assert got == sent
    link.close()


async def test_sending_to_a_peer_that_is_gone_is_refused(pair):
    supervisor, ours = pair
    log = Log()
    link = log.control(ours)
    supervisor.close()

    assert not link.send(ipc.Ready())
    await settle()
    assert log.ended
    link.close()


async def test_a_control_message_brings_its_fd(pair):
    supervisor, ours = pair
    log = Log()
    link = log.control(ours)
    read, write = os.pipe()
    socket.send_fds(supervisor, [ipc.encode(ipc.Link(worker=3))], [write])
    os.close(write)
    await settle()

    ((message, fds),) = log.messages
    assert message == ipc.Link(worker=3)
    (fd,) = fds
    assert not os.get_inheritable(fd)
    os.write(fd, b"same pipe")
    assert os.read(read, 99) == b"same pipe"
    os.close(fd)
    os.close(read)
    link.close()


async def test_a_control_message_that_cannot_be_read_leaves_no_fd_behind(pair):
    supervisor, ours = pair
    log = Log()
    link = log.control(ours)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(supervisor, [b"\xc1"], [0, 1])
    await settle()

    assert log.bad == [1]
    assert len(os.listdir("/proc/self/fd")) == before
    link.close()
