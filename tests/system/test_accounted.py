"""The wire as witness: the TLS records in the packets hold just what was captured, or say that there was more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon, Watch
from tests.support.http_programs import HttpServer
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.net import Namespace, Network
from tests.support.servers import Nginx

STOPS_READING = """
import os, socket, ssl, sys, time
context = ssl._create_unverified_context()
context.maximum_version = ssl.TLSVersion[sys.argv[3]]
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as plain, context.wrap_socket(plain) as tls:
    tls.sendall(b"GET " + sys.argv[2].encode() + b" HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    tls.recv(4096)
    bare = socket.socket(fileno=os.dup(tls.fileno()))
    left, now = -1, 0
    while left < now:  # what the server sends meanwhile is in the socket, and is never read
        time.sleep(2)  # longer than the server may be held up
        left, now = now, len(bare.recv(1 << 20, socket.MSG_PEEK))
    print(left)
"""


class Place:
    """Servers and the daemon in a network namespace, packets seen on its loopback."""

    def __init__(self, lab: Lab, namespace: Namespace) -> None:
        self.lab, self.namespace = lab, namespace
        tls = "ssl_protocols TLSv1.2 TLSv1.3; ssl_ciphers ALL:@SECLEVEL=0;"
        self.nginx = Nginx(lab, namespace=namespace, http2=True, tls=tls)
        self.nginx.file("small.bin", bytes(40_009))
        self.daemon = Daemon(lab, namespace=namespace)
        self.daemon.wait_attached()

    def curl(self, *options: str) -> None:
        done = self.lab.run(*self.namespace.enter("curl", "-sk", "-o", "/dev/null", *options))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab("accounts") as lab, Network("accounts") as network:
        place = Place(lab, network.namespace())
        yield place
        place.daemon.stop()


@pytest.fixture
def watch(place: Place) -> Iterator[Watch]:
    watch = place.daemon.watch()
    yield watch
    watch.stop()


def proofs(watch: Watch, asks: Callable[[], None], enough: set[str]) -> set[str]:
    """Asks until both ends have shown a proof of ``enough``; returns all that were shown.

    A single one may miss: more may be on the wire by the time that it is looked at.
    """
    shown: dict[str, set[str]] = {"client": set(), "server": set()}

    def both() -> bool:
        had = len(watch.exchanges)
        asks()
        watch.wait_for(had + 2)
        for one in watch.exchanges[had:]:
            assert one.completeness.state == "complete"
            shown[one.connection.role].add(one.completeness.proof)
        return all(proofs & enough for proofs in shown.values())

    wait_for(both, 60, f"both ends to show {enough}: {shown}")
    return shown["client"] | shown["server"]


@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
@pytest.mark.parametrize(
    "session",
    [
        ["--tlsv1.3", "--tls13-ciphers", "TLS_AES_256_GCM_SHA384"],
        ["--tlsv1.3", "--tls13-ciphers", "TLS_CHACHA20_POLY1305_SHA256"],
        ["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"],
        ["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"],
    ],
    ids=["1.3-AES", "1.3-ChaCha20", "1.2-AES", "1.2-ChaCha20"],
)
def test_every_byte_of_the_wire_is_accounted_for(place: Place, watch: Watch, session: list[str], http: str):
    url = place.nginx.url("/small.bin")
    assert proofs(watch, lambda: place.curl(*session, http, url), {"wire"}) <= {"wire", "offsets"}


def test_padded_records_prove_nothing(place: Place, watch: Watch):
    session = ["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"]
    url = place.nginx.url("/small.bin")
    for _ in range(3):
        assert proofs(watch, lambda: place.curl(*session, url), {"offsets"}) == {"offsets"}


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_what_a_program_leaves_unread_is_told(place: Place, watch: Watch, version: str):
    """No length says how large the body is: that there is more is known from the wire alone."""
    total = 300_007
    server = HttpServer(place.lab, namespace=place.namespace)
    path = f"/down?chunked=1&size=16001&seed=3&total={total}"
    program = [PYTHON, "-c", STOPS_READING, str(server.port), path, version]
    done = place.lab.run(*place.namespace.enter(*program))
    left = int(done.stdout)
    assert left > 16_384, done.stderr

    def client() -> list[pb.Exchange]:
        return [one for one in watch.exchanges if one.connection.role == "client"]

    wait_for(lambda: len(client()) == 1, 30, "the client's exchange")
    (cut,) = client()
    assert cut.completeness.state == "aborted"
    # Beside what is in the socket: the library has the rest of a record, and one is on its way.
    assert left * 0.95 - 4096 < cut.completeness.missing_bytes < left + 2 * 16_384
