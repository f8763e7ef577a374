"""A library of which only the handshake is probed yet, as between the attaching of its first probe and its last."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from spliffd.attribution.coverage import TlsFile
from spliffd.attribution.processes import Processes
from spliffd.counters import SUPERVISOR, Region
from spliffd.kernel import netlinks
from spliffd.stages.ledger import Ledger
from spliffd.stages.mapped import Mapped, MappedFile
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.net import Namespace, Network, inside
from tests.support.tracer import Tracer

SERVER = r"""
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def serve(raw):
    try:
        with context.wrap_socket(raw, server_side=True) as one:
            while said := one.recv(4096):
                one.sendall(said)
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

CLIENT = r"""
import socket, ssl, sys
context = ssl._create_unverified_context()
context.maximum_version = ssl.TLSVersion[sys.argv[2]]
raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
with context.wrap_socket(raw) as one:
    if said := sys.argv[3].encode():
        one.sendall(said)
        assert one.recv(4096) == said
    if sys.argv[4] == "properly":
        one.unwrap()
    if sys.argv[4] == "held":
        print("open", flush=True)
        sys.stdin.readline()
"""
"""PORT VERSION WORDS END."""

HANDSHAKE = ("handshake", "connect", "accept")


@pytest.fixture
def place() -> Iterator[Namespace]:
    with Network("half") as network:
        yield network.namespace()


class Stage:
    """The programs in a namespace with packets, a server, and a ledger over what the kernel tells."""

    def __init__(self, lab: Lab, place: Namespace, tracer: Tracer) -> None:
        self._lab, self._place, self.tracer = lab, place, tracer
        for program, egress in (("tc_ingress_l2", False), ("tc_egress_l2", True)):
            with inside(place):
                link = netlinks.tcx_link(tracer.programs.fd[program], place.index("lo"), egress=egress)
            tracer.attached.append(type(tracer.attached[0])([link]))
        server = lab.start(
            *place.enter(PYTHON, "-c", SERVER, lab.certificate, lab.key), stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        self._port = server.stdout.readline().decode().strip()
        library = MappedFile(0, 0, "libssl.so.3", executable=False)
        self.ledger = Ledger(
            tracer.maps,
            Processes(),
            lambda file: TlsFile(
                file.path, "openssl", "attached", attached_ns=time.monotonic_ns(), named=True
            ),
            lambda _pid, _start: Mapped((library,), bits32=False),
            lambda _look, _start: None,
            lambda _pid: True,
            Region(SUPERVISOR, memoryview(bytearray(8 * len(SUPERVISOR))).cast("Q")),
        )

    def client(self, version: str, words: str, end: str) -> subprocess.Popen[bytes]:
        """One that connects, says that, and ends so."""
        command = self._place.enter(PYTHON, "-c", CLIENT, self._port, version, words, end)
        return self._lab.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def told(self, pid: int) -> list[tuple[str, str]]:
        """What the ledger says of a process."""
        return [
            (entry.verdict.covered, entry.verdict.reason)
            for entry in self.ledger.entries()
            if entry.book.pid == pid
        ]


VERSIONS = ("TLSv1_2", "TLSv1_3")
ENDS = ("properly", "at once")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", ENDS)
def test_what_was_said_unseen_has_its_reason(lab: Lab, place: Namespace, version: str, end: str):
    with inside(place):
        tracer = Tracer(lab, only=HANDSHAKE)
    with tracer:
        stage = Stage(lab, place, tracer)
        client = stage.client(version, "GET / HTTP/1.1", end)
        assert client.wait(30) == 0
        wait_for(lambda: stage.told(client.pid) == [("not", "attached_late")], 30, "its reason")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", ENDS)
def test_nothing_was_said_so_nothing_was_missed(lab: Lab, place: Namespace, version: str, end: str):
    with inside(place):
        tracer = Tracer(lab, only=HANDSHAKE)
    with tracer:
        stage = Stage(lab, place, tracer)
        held = stage.client(version, "", "held")
        assert held.stdout is not None
        assert held.stdout.readline() == b"open\n"
        client = stage.client(version, "", end)
        assert client.wait(30) == 0
        time.sleep(0.2)
        assert stage.told(client.pid) == []  # it has ended, and was covered
        assert stage.told(held.pid) == [("covered", "")]


@pytest.mark.parametrize("version", VERSIONS)
def test_with_all_probes_it_is_covered(lab: Lab, place: Namespace, version: str):
    with inside(place):
        tracer = Tracer(lab)
    with tracer:
        stage = Stage(lab, place, tracer)
        held = stage.client(version, "GET / HTTP/1.1", "held")
        assert held.stdout is not None
        assert held.stdout.readline() == b"open\n"
        client = stage.client(version, "GET / HTTP/1.1", "at once")
        assert client.wait(30) == 0
        time.sleep(0.2)
        assert stage.told(client.pid) == []
        assert stage.told(held.pid) == [("covered", "")]
