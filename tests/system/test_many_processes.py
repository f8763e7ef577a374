"""A host full of processes with TLS libraries when the daemon starts, and one in namespaces of its own."""

from __future__ import annotations

import subprocess

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon
from tests.support.idlers import idle
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.servers import Nginx

IDLE = 503

BOTH_ENDS = r"""
import http.client, http.server, ssl, sys, threading
certificate, key = sys.argv[1:]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 443), Answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    connection = http.client.HTTPSConnection("127.0.0.1", 443, context=ssl._create_unverified_context())
    connection.request("GET", line.strip())
    print(connection.getresponse().status, flush=True)
"""

INSIDE = 'ip link set lo up && mount -t tmpfs none "$1" && cp "$2"/* "$1" && shift 2 && exec "$@"'
"""Mounts a file system that nobody else sees, with copies of the libraries, and runs a command."""


def library(daemon: Daemon, path: str) -> pb.Library | None:
    found = daemon.stub().ListLibraries(pb.ListLibrariesRequest()).libraries
    return next((one for one in found if one.path == path and one.state == "attached"), None)


def test_many_idle_processes_at_start(lab: Lab):
    idlers = idle(lab, IDLE, lab.libraries / "libssl.so.3")
    daemon = Daemon(lab)
    attached = daemon.text().count("attached path=")
    assert attached == 1  # one file, whoever maps it
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch(filter=pb.Filter(comms=["curl"]))
    assert lab.run("curl", "-sk", server.url("/hello?among-many")).returncode == 0
    watch.wait_for(1)
    assert watch.exchanges[0].request.path == "/hello?among-many"
    processes = daemon.stub().ListProcesses(pb.ListProcessesRequest()).processes
    assert idlers.pid not in {one.process.pid for one in processes}  # it has said nothing
    assert idlers.stdin is not None
    idlers.stdin.close()
    assert idlers.wait(60) == 0
    daemon.stop()


def test_namespaces_of_its_own_with_a_copy_of_its_own(lab: Lab, daemon: Daemon):
    """Another mount namespace, where alone its library is, and another network namespace."""
    folder = lab.folder / "private"
    folder.mkdir()
    process = lab.start(
        "unshare", "--mount", "--net", "sh", "-c", INSIDE, "sh", folder, lab.libraries,
        "env", f"LD_LIBRARY_PATH={folder}", PYTHON, "-S", "-c", BOTH_ENDS, lab.certificate, lab.key,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert list(folder.iterdir()) == []  # here there is nothing
    path = str(folder / "libssl.so.3")
    wait_for(lambda: library(daemon, path) is not None, 30, f"attached\n{daemon.text()}")
    watch = daemon.watch(filter=pb.Filter(pids=[process.pid]))
    process.stdin.write(b"/hello?namespaces\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"200\n"
    watch.wait_for(2)
    roles = sorted(exchange.connection.role for exchange in watch.exchanges)
    assert roles == ["client", "server"]
    for exchange in watch.exchanges:
        assert exchange.request.path == "/hello?namespaces"
        assert exchange.correlation.method == "SOCKET_NESTED"
        assert exchange.connection.netns_cookie
        assert 443 in (exchange.connection.local.port, exchange.connection.remote.port)

    request = pb.ListProcessesRequest(pids=[process.pid])
    [entry] = daemon.stub().ListProcesses(request).processes
    assert (entry.covered, entry.reason) == ("covered", "")
    assert [file.path for file in entry.files if file.state == "attached"] == [path]
