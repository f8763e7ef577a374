"""Handshakes and the facts of TLS sessions: what curl, s_client and nginx do, by the word of tshark and their own."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.tls_ciphers import cipher_name
from spliffd.protocols.tls_hello import VERSIONS
from tests.support.daemon import Daemon, Watch
from tests.support.handshakes import Capture, Server, wait_handshakes
from tests.support.lab import PYTHON, Lab, stop, wait_for
from tests.support.net import Namespace, Network, inside
from tests.support.servers import Nginx, free_port
from tests.support.speakers import attached, copy_library

NAME = "www.example.org"


class Place:
    """A lab in a network namespace: a server for HTTP/2 with TLS 1.2 and 1.3, and the daemon."""

    def __init__(self, lab: Lab, namespace: Namespace) -> None:
        self.lab, self.namespace = lab, namespace
        self.server = Nginx(lab, namespace=namespace, http2=True, tls="ssl_protocols TLSv1.2 TLSv1.3;")
        self.daemon = Daemon(lab, namespace=namespace)
        self.daemon.wait_attached()

    def run(self, *command: str | Path, **options) -> subprocess.CompletedProcess[bytes]:
        return self.lab.run(*self.namespace.enter(*command), **options)

    def curl(self, *options: str, name: str = "") -> subprocess.CompletedProcess[bytes]:
        """One request to the server, by its name or address."""
        port = self.server.port
        where = (
            ["--resolve", f"{name}:{port}:127.0.0.1", self.server.url(host=name)]
            if name
            else [self.server.url()]
        )
        return self.run("curl", "-s", "-o", "/dev/null", *options, *where)

    def s_client(self, *options: str | Path) -> str:
        """What ``openssl s_client`` says of one session with the server."""
        done = self.run(
            "openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{self.server.port}", *options,
            input=b"GET /hello HTTP/1.0\r\n\r\n",
        )  # fmt: skip
        return done.stdout.decode()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab("shakes") as lab, Network("shakes") as network:
        place = Place(lab, network.namespace())
        yield place
        place.daemon.stop()


@pytest.fixture
def watch(place: Place) -> Iterator[Watch]:
    watch = place.daemon.watch(handshakes=True)
    yield watch
    watch.stop()


def both(watch: Watch, comm: str) -> tuple[pb.Handshake, pb.Handshake]:
    """The one handshake of a client by that name, and nginx's of the same connection."""
    (client,) = wait_handshakes(watch, 1, comm=comm)
    (server,) = wait_handshakes(watch, 1, comm="nginx")
    assert (client.connection.role, server.connection.role) == ("client", "server")
    assert client.connection.local.port == server.connection.remote.port
    return client, server


def same_facts(client: pb.Tls, server: pb.Tls) -> None:
    for field in ("version", "cipher", "alpn", "sni", "ja4"):
        assert getattr(client, field) == getattr(server, field)
    assert client.HasField("resumed")
    assert client.resumed == server.resumed


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("name", ["", NAME])
def test_both_ends_say_what_tshark_says(place: Place, watch: Watch, version: str, name: str):
    capture = Capture(place.lab, place.namespace)
    assert place.curl("-k", "--tls-max", version, f"--tlsv{version}", name=name).returncode == 0
    client, server = both(watch, "curl")
    asked, answered = capture.stop().hellos()

    same_facts(client.tls, server.tls)
    tls = client.tls
    chosen = answered["tls.handshake.extensions.supported_version"] or answered["tls.handshake.version"]
    assert tls.version == f"TLSv{version}" == VERSIONS[int(chosen, 16)]
    assert tls.cipher == cipher_name(int(answered["tls.handshake.ciphersuite"], 16))
    assert tls.sni == name == asked["tls.handshake.extensions_server_name"]
    kinds = asked["tls.handshake.extension.type"].split(",")
    suites = asked["tls.handshake.ciphersuite"].split(",")
    assert tls.ja4.startswith(
        f"t{version.replace('.', '')}{'d' if name else 'i'}{len(suites):02}{len(kinds):02}h2_"
    )
    assert (tls.alpn, tls.resumed) == ("h2", False)
    for told in (client, server):
        assert told.success
        assert 0 < told.duration_ns == told.tls.handshake_ns < 30_000_000_000
        assert (told.correlation.method, told.correlation.wire) == ("SOCKET_NESTED", "TC")
        assert (told.connection.interface, told.connection.role) == ("lo", told.connection.role)
    # An exchange of that connection carries the same.
    watch.wait_for(2)
    for exchange in watch.exchanges:
        same_facts(exchange.tls, tls)
        assert exchange.tls.handshake_ns > 0


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_resumption_as_s_client_says_it(place: Place, watch: Watch, version: str):
    session = place.lab.folder / f"session-{version}"
    first = place.s_client(f"-tls{version}", "-sess_out", session, "-servername", NAME)
    again = place.s_client(f"-tls{version}", "-sess_in", session, "-servername", NAME)
    assert ("\nNew, " in first, "\nReused, " in again) == (True, True)
    told = wait_handshakes(watch, 2, comm="nginx")
    assert [one.tls.resumed for one in told] == [False, True]
    for one, text in zip(told, (first, again), strict=True):
        assert one.tls.HasField("resumed")
        assert one.tls.sni == NAME
        (protocol,) = set(re.findall(r"^(?:New|Reused), (\S+), Cipher is", text, re.MULTILINE))
        assert one.tls.version == protocol.replace("(NONE)", "")


SELF_SIGNED = "certificate verify failed: self-signed certificate (sent alert unknown_ca)"
REFUSED = "the peer sent alert unknown_ca"
FAILURES = {
    "a certificate that is not trusted": (("--tls-max", "1.2"), SELF_SIGNED, REFUSED),
    "the same in TLS 1.3, whose alerts of clients are encrypted": (("--tlsv1.3",), SELF_SIGNED, REFUSED),
    "no version in common": (
        ("-k", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"),
        "the peer sent alert protocol_version",
        "no protocol version in common (sent alert protocol_version)",
    ),
    "no cipher in common": (
        ("-k", "--tls-max", "1.2", "--ciphers", "AES128-SHA"),
        "the peer sent alert handshake_failure",
        "no cipher suite in common (sent alert handshake_failure)",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_at_both_ends(place: Place, watch: Watch, case: str):
    """The client's reason and the server's, from the library's own errors and the alerts on the wire."""
    options, ours, theirs = FAILURES[case]
    before = place.daemon.stats()
    assert place.curl(*options).returncode
    client, server = both(watch, "curl")
    assert (client.success, client.reason) == (False, ours)
    assert (server.success, server.reason) == (False, theirs)
    assert client.tls.ja4 == server.tls.ja4 != ""
    for told in (client, server):
        assert told.duration_ns > 0
        assert told.correlation.wire == "TC"
    failed = 'spliff_handshakes_total{result="failed"}'
    assert place.daemon.stats()[failed] == before.get(failed, 0) + 2


CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=float(sys.argv[4])) as raw:
    context.wrap_socket(raw, server_hostname=sys.argv[3])
"""


def python_client(place: Place, port: int, name: str = "localhost", seconds: float = 30) -> pb.Handshake:
    """Its one handshake; it fails."""
    watch = place.daemon.watch(handshakes=True)
    done = place.run(PYTHON, "-c", CLIENT, str(port), place.lab.certificate, name, str(seconds))
    assert done.returncode
    (told,) = wait_handshakes(watch, 1, comm="python3")
    watch.stop()
    assert not told.success
    return told


def test_a_name_that_the_certificate_does_not_have(place: Place):
    told = python_client(place, place.server.port, NAME)
    assert told.reason == "certificate verify failed: hostname mismatch (sent alert bad_certificate)"
    assert told.tls.sni == NAME


PEERS = {
    "plain HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", 30, "the peer does not speak TLS"),
    "closes at once": (b"", 30, "the peer closed the connection"),
    "an alert": (b"\x15\x03\x03\0\2\x02\x70", 30, "the peer sent alert unrecognized_name"),
    "silence": (None, 0.5, "no answer to the ClientHello"),
}


@pytest.mark.parametrize("peer", PEERS)
def test_servers_that_shake_no_hands(place: Place, peer: str):
    answer, patience, why = PEERS[peer]
    with inside(place.namespace):
        listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)
    done = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as connection:
            connection.recv(4096)
            if answer is None:
                done.wait(30)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    told = python_client(place, listener.getsockname()[1], seconds=patience)
    done.set()
    thread.join()
    listener.close()
    assert told.reason.partition(" (sent alert")[0] == why
    assert told.tls.ja4.startswith("t13d")


def test_a_server_that_is_spoken_to_in_plain_http(place: Place, watch: Watch):
    server = Server(place.lab, place.namespace)
    place.run("curl", "-s", f"http://127.0.0.1:{server.port}/")
    (told,) = wait_handshakes(watch, 1, comm="openssl")
    assert (told.success, told.connection.role) == (False, "server")
    assert told.reason.partition(" (sent alert")[0] == "the client speaks plain HTTP"


def test_gnutls_says_its_own_reasons(place: Place, watch: Watch):
    copy_library(place.lab, "libgnutls.so.30")
    idle = place.lab.start(
        "gnutls-serv",
        "--http",
        "--port",
        str(free_port()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: attached(place.daemon, place.lab.libraries / "libgnutls.so.30"), 30, "GnuTLS probed")
    port = str(place.server.port)
    place.run(
        "gnutls-cli", "--insecure", "--alpn", "h2", "--sni-hostname", NAME, "-p", port, "127.0.0.1", input=b""
    )
    place.run("gnutls-cli", "-p", port, "127.0.0.1", input=b"")
    good, bad = wait_handshakes(watch, 2, comm="gnutls-cli")
    assert (good.success, good.tls.library, good.tls.version) == (True, "gnutls", "TLSv1.3")
    assert (good.tls.alpn, good.tls.sni) == ("h2", NAME)
    assert good.tls.ja4.startswith("t13d")
    assert (bad.success, bad.reason) == (False, "error in the certificate")
    stop(idle)


NODE = """
const options = {port: process.argv[1], servername: "NAME", ALPNProtocols: ["http/1.1"], rejectUnauthorized: false};
require("https").get({...options, path: "/hello"}, (answer) => answer.resume());
""".replace("NAME", NAME)


def test_node_shakes_hands_inside_of_its_first_read(place: Place, watch: Watch):
    """Memory BIOs, and no call of the handshake: its packets show it, and the first exchange that it is over."""
    node = place.lab.folder / "node"
    shutil.copy("/usr/bin/node", node)
    idle = place.lab.start(node, "-e", "setTimeout(() => {}, 60000)")
    wait_for(lambda: attached(place.daemon, node), 30, "node probed")
    assert place.run(node, "-e", NODE, str(place.server.port)).returncode == 0
    watch.wait_for(2)
    (exchange,) = (one for one in watch.exchanges if one.process.comm == "node")
    assert (exchange.tls.version, exchange.tls.sni) == ("TLSv1.3", NAME)
    assert exchange.tls.ja4.startswith("t13d")
    (told,) = wait_handshakes(watch, 1, comm="node")
    assert (told.success, told.duration_ns, told.tls.version) == (True, 0, "TLSv1.3")
    stop(idle)


def test_without_packets_only_the_library_tells(place: Place):
    """Nothing is made up: what no call and no packet has told is unset."""
    with Lab("silent") as lab:
        server = Nginx(lab, http2=True)
        daemon = Daemon(lab, config='[interfaces]\nmode = "off"\n')
        daemon.wait_attached()
        watch = daemon.watch(handshakes=True)
        assert lab.run("curl", "-sk", "-o", "/dev/null", server.url()).returncode == 0
        (told,) = wait_handshakes(watch, 1, comm="curl")
        tls = told.tls
        assert (told.success, told.correlation.wire, tls.alpn) == (True, "NONE", "h2")
        assert (tls.version, tls.cipher, tls.sni, tls.ja4, tls.HasField("resumed")) == ("", "", "", "", False)
        watch.stop()
        daemon.stop()


def test_text_and_json_show_them(place: Place):
    with (place.lab.folder / "text").open("wb") as text, (place.lab.folder / "json").open("wb") as json:
        clients = [
            place.daemon.client(
                "watch", "--handshakes", "--comm", "curl", "--count", "1", *options, stdout=file
            )
            for options, file in (((), text), (("-o", "json"), json))
        ]
        stats = "spliff_subscribers"
        wait_for(lambda: place.daemon.stats()[stats] >= 2, 30, "both watch")
        assert place.curl("-k", "--tlsv1.3", name=NAME).returncode == 0
        assert [client.wait(30) for client in clients] == [0, 0]
    line = (place.lab.folder / "text").read_text().splitlines()[0]
    assert re.search(
        rf"\* TLSv1\.3 handshake TLS_\S+ h2 sni={NAME} ja4=t13d\d{{4}}h2_\w{{12}}_\w{{12}} openssl ",
        line,
    )
    told = pb.Item()
    json_format.Parse((place.lab.folder / "json").read_text().splitlines()[0], told)
    assert (told.handshake.tls.version, told.handshake.tls.sni) == ("TLSv1.3", NAME)
