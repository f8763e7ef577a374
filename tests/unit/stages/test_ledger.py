"""The ledger's books: which process a connection is whose, what is added up, and what is forgotten."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from typing import Any, cast

import pytest

from spliffd.attribution.coverage import TlsFile
from spliffd.attribution.processes import Processes
from spliffd.counters import SUPERVISOR, Region
from spliffd.kernel import bpf
from spliffd.kernel.flows import CLIENT_HELLO, Flow, Hop, RecordSide
from spliffd.kernel.maps import CONN_VALUE, Maps
from spliffd.stages import ledger
from spliffd.stages.ledger import Ledger
from spliffd.stages.mapped import Mapped

HOST = 4223
"""Cookie of the daemon's network namespace."""


YOUNG_NS = 1_000_000
"""An age that is no longer young here: this process may not be a second old."""


def flow(tgid: int, **changes) -> Flow:
    """A client's connection to port 443 that began a while ago, seen on an interface, with a ClientHello."""
    made = Flow(
        first_ns=time.monotonic_ns() - YOUNG_NS, last_ns=0, closed_ns=0, netns_cookie=HOST,
        local=socket.inet_aton("192.0.2.1") + bytes(12), remote=socket.inet_aton("192.0.2.2") + bytes(12),
        local_port=40009, remote_port=443, family=4, role=1, hops=(Hop(5, 2, 7, 5, 700, 5_000, 1_100),),
        flags=CLIENT_HELLO, tgid=tgid, state=1, tcp_sent=0, tcp_received=0,
    )  # fmt: skip
    return made._replace(**changes)


class Books:
    """A ledger over tables that a test fills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flows: list[tuple[int, Flow]] = []
        self.conns: list[tuple[bytes, bytes]] = []
        self.again: list[int] = []
        monkeypatch.setattr(ledger, "GRACE_NS", YOUNG_NS)
        monkeypatch.setattr(ledger, "read_flows", lambda _fd: self.flows)
        monkeypatch.setattr(bpf, "map_lookup_batch", lambda *_: (self.conns, b""))
        maps = type("Tables", (), {"fd": {"flows": 0, "conns": 1}, "netns_cookie": HOST})()
        self.counters = Region(SUPERVISOR, memoryview(bytearray(8 * len(SUPERVISOR))).cast("Q"))
        self.processes = Processes()
        self.ledger = Ledger(
            cast(Maps, maps),
            self.processes,
            lambda file: TlsFile(file.path, "", "skipped"),
            lambda _pid, _start: Mapped((), bits32=False),
            lambda look, _start: self.again.append(look.pid),
            lambda _pid: True,
            self.counters,
        )

    def close(self, *flows: Flow) -> None:
        """These have closed, and are swept."""
        numbered = list(enumerate(flows))
        self.ledger.closed(numbered, [cookie for cookie, _ in numbered])

    def one(self) -> Any:
        """The only line: covered, reason, connections, captured."""
        [entry] = self.ledger.entries()
        return entry.verdict.covered, entry.verdict.reason, entry.tls_flows, entry.evidence.captured


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    return Books(monkeypatch)


ME = os.getpid()


def test_open_and_closed_connections_are_added_up(books: Books):
    books.close(flow(ME, plaintext=True), flow(ME, plaintext=True), flow(ME))
    books.flows = [(7, flow(ME, plaintext=True)), (8, flow(ME))]
    assert books.one() == ("partly", "unknown_library", 5, 3)
    assert books.again == [ME]


def test_what_is_no_tls_is_not_counted(books: Books):
    books.close(flow(ME, flags=0), flow(0))
    books.flows = [(7, flow(ME, flags=0)), (8, flow(0, plaintext=True))]
    assert books.ledger.entries() == []


def test_a_young_connection_is_not_missed_yet(books: Books):
    books.flows = [(7, flow(ME, first_ns=time.monotonic_ns() + 60 * 10**9))]  # however long this takes
    assert books.ledger.entries() == []
    books.flows = [(7, flow(ME, first_ns=time.monotonic_ns(), closed_ns=time.monotonic_ns()))]
    assert books.one() == ("not", "unknown_library", 1, 0)


def conn(pid: int, start_ns: int, method: int, sent: int = 7) -> tuple[bytes, bytes]:
    """A TLS object with a socket (``method``) or without, of which ``sent`` bytes were seen."""
    value = bytearray(CONN_VALUE)
    struct.pack_into("=Q", value, 128, sent)
    value[190] = ledger.ACCOUNTED_BYTES if method and sent else 0
    struct.pack_into("=I4xQ", value, 0, pid, start_ns)
    value[85] = method
    return bytes(24), bytes(value)


def test_tls_objects_without_a_socket_stand_for_connections_that_nobody_named(books: Books):
    start = books.processes.start_of(ME)
    books.flows = [(7, flow(ME)), (8, flow(ME))]
    assert books.one() == ("not", "unknown_library", 2, 0)
    books.ledger.nameless([(ME, start, 1)])
    assert books.one() == ("partly", "unknown_library", 2, 1)
    books.conns = [conn(ME, start, 0)]
    assert books.one() == ("covered", "", 2, 2)


def test_tls_objects_alone_are_evidence(books: Books):
    books.conns = [conn(ME, books.processes.start_of(ME), 1)]
    assert books.one() == ("covered", "", 1, 1)


def test_a_probe_that_saw_nothing_but_the_end_is_no_evidence(books: Books):
    start = books.processes.start_of(ME)
    books.flows = [(7, flow(ME)), (8, flow(ME))]
    books.conns = [conn(ME, start, 1, sent=0), conn(ME, start, 0, sent=0)]
    assert books.one() == ("not", "unknown_library", 2, 0)


def records(*lengths: int, client: bool, flight: int = 0) -> RecordSide:
    """A direction of a TLS connection whose records have these lengths."""
    first = sum(length << 16 * at for at, length in enumerate(lengths[flight : flight + 4]))
    size, before = sum(lengths), sum(lengths[:flight])
    return RecordSide(1 << 63, size, before, first, len(lengths), flight, lengths[-1], 1, client)


ANSWER = records(900, 266, 266, 400, client=False, flight=1)
ASKED = (records(69, 120, 19, client=True), ANSWER)
"""A client's Finished, a request, an alert; a server's flight, two tickets, a response: TLS 1.3."""
ASKED_NOTHING = (records(69, 19, client=True), ANSWER)


def test_a_handshake_that_probes_saw_is_not_the_bytes_that_followed(books: Books):
    """The probes of a file are put in one after another: that of the handshake was in place, the others not yet."""
    gone, closed = ended(), time.monotonic_ns()
    books.flows = [(7, flow(gone, handshake=True, closed_ns=closed, sides=ASKED))]
    books.conns = [conn(gone, 0, 1, sent=0)]
    assert books.one() == ("not", "unknown_library", 1, 0)
    books.close(*(flow for _, flow in books.flows))
    books.flows, books.conns = [], []
    assert books.one() == ("not", "unknown_library", 1, 0)


def test_a_connection_that_was_only_opened_is_covered(books: Books):
    books.close(flow(ME, handshake=True, sides=ASKED_NOTHING, closed_ns=7))
    books.flows = [(7, flow(ME, handshake=True))]
    assert books.one() == ("covered", "", 2, 2)


def test_an_open_connection_whose_bytes_may_be_still_to_be_read_is_covered(books: Books):
    books.flows = [(7, flow(ME, handshake=True, sides=ASKED))]
    assert books.one() == ("covered", "", 1, 1)


def test_bytes_that_passed_a_probe_are_covered_whatever_the_records_say(books: Books):
    books.close(flow(ME, handshake=True, plaintext=True, sides=ASKED, closed_ns=7))
    assert books.one() == ("covered", "", 1, 1)


def ended() -> int:
    """The pid of a process that is over."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


def test_an_ended_process_stays_when_it_was_not_covered(books: Books, monkeypatch: pytest.MonkeyPatch):
    gone = ended()
    books.close(flow(gone), flow(ended(), plaintext=True))
    [entry] = books.ledger.entries()
    assert (entry.book.pid, entry.verdict.covered, bool(entry.book.ended_ns)) == (gone, "not", True)
    monkeypatch.setattr(ledger, "KEEP_ENDED_NS", 0)
    assert books.ledger.entries() == []


def test_a_pid_that_is_used_again_is_another_process(books: Books):
    """This process has the pid, but it did not live when the connection began."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - books.processes.start_of(ME)
    books.close(flow(ME, first_ns=time.monotonic_ns() - before - 10**9))
    [entry] = books.ledger.entries()
    assert entry.book.start_ns != books.processes.start_of(ME)
    assert entry.book.ended_ns


def test_more_processes_than_there_is_room_for_are_counted(books: Books, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "MAX_PROCESSES", 3)
    books.ledger.nameless([(pid, 7, 1) for pid in range(1, 8)])
    assert books.counters.get("processes_forgotten") == 4


def test_gauges_count_what_is_listed(books: Books):
    books.close(flow(ME))
    list(books.ledger.refresh())
    assert books.counters.get("processes_not_unknown_library") == 1
    books.ledger.nameless([(ME, books.processes.start_of(ME), 1)])
    list(books.ledger.refresh())
    assert books.counters.get("processes_not_unknown_library") == 0
    assert books.counters.get("processes_covered") == 1


def test_a_kernel_that_gives_no_batches_leaves_the_ledger_empty(
    books: Books, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_fd: int) -> list[tuple[int, Flow]]:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(ledger, "read_flows", refuse)
    assert books.ledger.entries() == []
