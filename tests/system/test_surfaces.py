"""The less usual ways to read and write: early data, looking ahead, in children and other threads, in parts."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.servers import Nginx
from tests.support.speakers import attached, copy_library, serve

PEEK = r"""
import ctypes, socket, sys
lib = ctypes.CDLL("libssl.so.3")
P = ctypes.c_void_p
for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
    getattr(lib, name).restype = P
ssl = P(lib.SSL_new(P(lib.SSL_CTX_new(P(lib.TLS_client_method())))))
raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
assert lib.SSL_set_fd(ssl, raw.fileno()) == 1 and lib.SSL_connect(ssl) == 1
request = f"GET {sys.argv[2]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
written, read = ctypes.c_size_t(), ctypes.c_size_t()
assert lib.SSL_write_ex(ssl, request, ctypes.c_size_t(len(request)), ctypes.byref(written)) == 1
buffer = ctypes.create_string_buffer(65536)
total = b""
while (size := lib.SSL_peek(ssl, buffer, 65536)) > 0:
    assert lib.SSL_peek_ex(ssl, buffer, ctypes.c_size_t(7), ctypes.byref(read)) == 1
    first = lib.SSL_read(ssl, buffer, 5)                # in two parts, by both functions
    total += buffer.raw[:first]
    assert size <= first or lib.SSL_read_ex(ssl, buffer, ctypes.c_size_t(65536), ctypes.byref(read)) == 1
    total += buffer.raw[: read.value] if size > first else b""
lib.SSL_shutdown(ssl)
lib.SSL_free(ssl)
sys.stdout.buffer.write(total)
"""

FORKS = r"""
import os, socket, ssl, sys
port, path, children = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
context = ssl._create_unverified_context()
links = [context.wrap_socket(socket.create_connection(("127.0.0.1", port))) for _ in range(children)]
pids = []
for number, link in enumerate(links):        # the handshake was the parent's, the request is the child's
    pid = os.fork()
    if not pid:
        link.sendall(f"GET {path}{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while link.recv(65536):
            pass
        os._exit(0)
    pids.append([pid, link.getsockname()[1]])
for pid, _ in pids:
    assert os.waitpid(pid, 0)[1] == 0
import json; print(json.dumps(pids))
"""

THREADS = r"""
import json, queue, socket, ssl, sys, threading
port, path, count, requests = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
context = ssl._create_unverified_context()
ports = {}
def writer(link, number, asked, answered):
    for turn in range(requests):
        link.sendall(f"GET {path}{number}-{turn} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        asked.put(None)
        answered.get()
def reader(link, asked, answered):
    for _ in range(requests):
        asked.get()
        got = b""
        while not got.endswith(b"hello world\n"):
            got += link.recv(100)
        answered.put(None)
threads = []
for number in range(count):
    link = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
    ports[number] = link.getsockname()[1]
    asked, answered = queue.Queue(), queue.Queue()
    threads.append(threading.Thread(target=writer, args=(link, number, asked, answered)))
    threads.append(threading.Thread(target=reader, args=(link, asked, answered)))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(ports))
"""
"""Each connection is written by one thread and read by another, in turns: OpenSSL allows no more."""

PARTS = r"""
import ctypes, socket, sys
port, total = int(sys.argv[1]), int(sys.argv[2])
crypto, x509, lib = (ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
                     for name in ("libmbedcrypto.so.7", "libmbedx509.so.1", "libmbedtls.so.14"))
room = lambda: ctypes.create_string_buffer(65536)
entropy, drbg, ssl, config = (room() for _ in range(4))
net = ctypes.create_string_buffer(64)
crypto.mbedtls_entropy_init(entropy)
crypto.mbedtls_ctr_drbg_init(drbg)
assert crypto.mbedtls_ctr_drbg_seed(drbg, crypto.mbedtls_entropy_func, entropy, None, 0) == 0
lib.mbedtls_ssl_init(ssl)
lib.mbedtls_ssl_config_init(config)
assert lib.mbedtls_ssl_config_defaults(config, 0, 0, 0) == 0
lib.mbedtls_ssl_conf_authmode(config, 0)
lib.mbedtls_ssl_conf_rng(config, crypto.mbedtls_ctr_drbg_random, drbg)
raw = socket.create_connection(("127.0.0.1", port))
ctypes.memmove(net, raw.fileno().to_bytes(4, "little"), 4)
assert lib.mbedtls_ssl_setup(ssl, config) == 0
lib.mbedtls_ssl_set_bio(ssl, net, lib.mbedtls_net_send, lib.mbedtls_net_recv, None)
assert lib.mbedtls_ssl_handshake(ssl) == 0
data = b"POST /hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % total
data += bytes(i * 7 & 255 for i in range(total))
calls, sent = 0, 0
while sent < len(data):
    rest = data[sent:]
    size = lib.mbedtls_ssl_write(ssl, rest, ctypes.c_size_t(len(rest)))
    assert size > 0
    calls, sent = calls + 1, sent + size
lib.mbedtls_ssl_read(ssl, room(), ctypes.c_size_t(65536))
lib.mbedtls_ssl_close_notify(ssl)
lib.mbedtls_ssl_free(ssl)
print(calls)
"""
"""PORT BYTES: asks to write all at once, and is told how much was taken."""


def seen(watch: Watch, path: str) -> list[spliff_pb2.Exchange]:
    return [one for one in watch.exchanges if one.request.path.startswith(path)]


def test_looking_ahead_is_not_reading(lab: Lab, daemon: Daemon, server: Nginx):
    content = bytes(i * 13 & 255 for i in range(40009))
    server.file("ahead", content)
    watch = daemon.watch(bodies=True)
    done = lab.run(PYTHON, "-c", PEEK, str(server.port), "/ahead")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.endswith(content)
    watch.wait_for(2)
    watch.settle(0.3)
    watch.stop()
    assert len(watch.exchanges) == 2
    for one in watch.exchanges:
        assert (one.completeness.state, one.response.body_size) == ("complete", len(content))
        assert watch.body(one, response=True) == content


def test_early_data_at_both_ends(lab: Lab, daemon: Daemon, server: Nginx):
    """A request that goes with the ClientHello (RFC 8446, 2.3): by SSL_write_early_data and SSL_read_early_data."""
    process, port = serve(
        lab, "openssl", "s_server", "-accept", "127.0.0.1:{port}", "-early_data", "-tls1_3",
        "-cert", lab.certificate, "-key", lab.key, stdin=subprocess.PIPE,
    )  # fmt: skip
    session, early = lab.folder / "session", lab.folder / "early"
    early.write_bytes(b"GET /early HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"]

    def run(*options: str | Path, until: Callable[[], bool]) -> bytes:
        talk = lab.start(*client, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        wait_for(until, 30, f"what {options} was for")
        return talk.communicate(b"Q\n", 60)[0]

    run("-sess_out", session, until=lambda: session.exists() and b"END SSL SESSION" in session.read_bytes())

    def captured() -> float:
        return sum(value for name, value in daemon.stats().items() if "captured_bytes_total" in name)

    watch = daemon.watch()
    wanted = captured() + 2 * early.stat().st_size
    said = run("-sess_in", session, "-early_data", early, until=lambda: captured() >= wanted)
    assert b"Early data was accepted" in said
    watch.wait_for(2)  # told when the connection has ended without an answer
    watch.settle(0.3)
    watch.stop()
    roles = {one.connection.role: one for one in seen(watch, "/early")}
    assert len(seen(watch, "/early")) == len(roles) == 2
    assert roles["server"].process.pid == process.pid
    assert roles["client"].connection.local == roles["server"].connection.remote


def test_children_speak_on_what_their_parent_opened(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch()
    done = lab.run(PYTHON, "-c", FORKS, str(server.port), "/hello?child", "5")
    assert done.returncode == 0, done.stderr.decode()
    children = json.loads(done.stdout)
    watch.wait_for(10)
    watch.settle(0.3)
    watch.stop()
    mine = {one.request.path: one for one in watch.exchanges if one.connection.role != "server"}
    assert len(mine) == 5
    for number, (pid, port) in enumerate(children):
        one = mine[f"/hello?child{number}"]
        assert (one.process.pid, one.connection.local.port, one.response.status) == (pid, port, 200)
        assert one.correlation.method == "SOCKET_NESTED"


def test_one_thread_writes_another_reads(lab: Lab, daemon: Daemon, server: Nginx):
    connections, requests = 7, 11
    watch = daemon.watch()
    arguments = [str(server.port), "/hello?thread", str(connections), str(requests)]
    done = lab.run(PYTHON, "-c", THREADS, *arguments)
    assert done.returncode == 0, done.stderr.decode()
    ports = json.loads(done.stdout)
    watch.wait_for(2 * connections * requests)
    watch.settle(0.3)
    watch.stop()
    mine = [one for one in watch.exchanges if one.connection.role == "client"]
    tally = Counter(one.request.path for one in mine)
    assert len(tally) == tally.total() == connections * requests
    for one in mine:
        number = one.request.path.removeprefix("/hello?thread").split("-")[0]
        assert one.connection.local.port == ports[number]
        assert (one.completeness.state, one.response.status) == ("complete", 200)


@pytest.mark.parametrize("total", [40009])
def test_a_write_that_takes_a_part(lab: Lab, daemon: Daemon, server: Nginx, total: int):
    copy_library(lab, "libmbedtls.so.14")
    holder = lab.start(
        PYTHON, "-c", "import ctypes, sys; ctypes.CDLL('libmbedtls.so.14'); sys.stdin.read()",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: attached(daemon, lab.libraries / "libmbedtls.so.14"), 30, "attached")
    watch = daemon.watch(bodies=True)
    done = lab.run(PYTHON, "-c", PARTS, str(server.port), str(total))
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 1
    watch.wait_for(2)
    watch.settle(0.3)
    watch.stop()
    assert holder.poll() is None
    content = bytes(i * 7 & 255 for i in range(total))
    (one,) = [one for one in watch.exchanges if one.tls.library == "mbedtls"]
    assert watch.body(one, response=False) == content
