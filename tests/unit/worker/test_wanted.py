"""Exchanges of connections that no watcher can want are counted and never serialised."""

from __future__ import annotations

import socket

import pytest

from spliffd import ipc
from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.counters import Area
from spliffd.protocols.masking import Masker
from spliffd.worker.output import Output
from spliffd.worker.receiver import FrameMaker
from spliffd.worker.wanted import Wanted
from tests.support.batches import frames_of

REQUEST, RESPONSE = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def demand(
    whom: ipc.Whom | None, *, watchers: int = 1, bodies: bool = False, history: bool = False
) -> ipc.Demand:
    return ipc.Demand(
        watchers, bodies=bodies, body_limit=0, handshakes=False, messages=False, whom=whom, history=history
    )


def facts(*, pid: int = 7, uid: int = 33, comm: str = "nginx") -> ConnectionFacts:
    made = ConnectionFacts()
    made.pid, made.uid, made.comm = pid, uid, comm
    return made


@pytest.mark.parametrize(
    ("whom", "wanted"),
    [
        (None, True),
        (ipc.Whom(comms=["nginx"]), True),
        (ipc.Whom(comms=["wrk"]), False),
        (ipc.Whom(pids=[7]), True),
        (ipc.Whom(pids=[8], uids=[33]), True),
        (ipc.Whom(pids=[8], uids=[0], comms=["wrk"]), False),
        (ipc.Whom(units=["ssh.service"]), True),
        (ipc.Whom(pids=[8], containers=["abcdef"]), True),
        (ipc.Whom(), False),
    ],
)
def test_by_what_the_kernel_is_told_too(whom: ipc.Whom | None, wanted: bool):
    assert Wanted(demand(whom)).wants(facts()) is wanted
    assert Wanted(demand(whom, history=True)).wants(facts())
    assert not Wanted(demand(None, watchers=0)).wants(facts())


def said(of: ConnectionFacts, wanted: ipc.Demand) -> list[ipc.Frame]:
    """What the api is sent of one exchange of such a connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    region = Area.create().workers[0]
    output = Output(region)
    output.link = theirs
    maker = FrameMaker(output, region, 0, lambda *_: None, Masker(bytes(ipc.MASK_KEY_BYTES), (), ()))
    maker.demands(wanted)
    connection = Connection(b"k" * 40, (1, 1), of, joined=False)
    connection.watch_bodies(maker.on_body(connection))
    done = [
        *connection.data(0, 0, REQUEST, len(REQUEST), 1),
        *connection.data(1, 0, RESPONSE, len(RESPONSE), 2),
    ]
    assert len(done) == 1
    maker.deliver([(connection, exchange, 0, 0) for exchange in done])
    output.acknowledge()
    found = frames_of(ipc.decode_batch(ours.recv(ipc.MAX_DATAGRAM)))
    output.close()
    ours.close()
    return found


@pytest.mark.parametrize("bodies", [False, True])
def test_what_the_api_is_sent(bodies: bool):
    nginx = ipc.Whom(comms=["nginx"])
    (one,) = said(facts(), demand(nginx, bodies=bodies))
    assert ipc.summary_of(one.summary).path == "/x"
    assert one.response_body == (b"hi" if bodies else b"")
    assert said(facts(comm="wrk"), demand(nginx, bodies=bodies)) == []
    assert len(said(facts(comm="wrk"), demand(nginx, bodies=bodies, history=True))) == 1
    assert said(facts(), demand(None, watchers=0)) == []


@pytest.mark.parametrize(("comm", "kept"), [("nginx", True), ("wrk", False)])
def test_bodies_of_others_are_not_kept(comm: str, kept: bool):
    region = Area.create().workers[0]
    maker = FrameMaker(Output(region), region, 0, lambda *_: None, Masker(bytes(ipc.MASK_KEY_BYTES), (), ()))
    maker.demands(demand(ipc.Whom(comms=["nginx"]), bodies=True))
    connection = Connection(b"k" * 40, (1, 1), facts(comm=comm), joined=False)
    assert (maker.on_body(connection) is not None) is kept
