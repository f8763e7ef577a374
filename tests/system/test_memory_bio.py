"""A server that does TLS in another thread than its sockets (memory BIOs), so that nothing names a connection's
socket: who holds which accepted socket is entered when the worker asks, and what fits alone is claimed."""

from __future__ import annotations

import subprocess
from collections import Counter

from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, say
from tests.support.swarm import swarm

COUNT = 29
REQUESTS = 3
RIGHT = 0.95

SERVER = r"""
import socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
with ThreadPoolExecutor(1) as tls_thread:
    while True:
        raw, _ = listener.accept()
        come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = tls_thread.submit(context.wrap_bio, come, go, server_side=True).result()
        shaken = False
        def take(data):
            global shaken
            come.write(data)
            try:
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                while tls.read(65536):
                    tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                pass
            return go.read()
        while data := raw.recv(65536):
            if answer := tls_thread.submit(take, data).result():
                raw.sendall(answer)
        raw.close()
"""
"""One thread has the sockets, another does TLS: nothing that either does is next to the other's."""


CLIENT = r"""
import http.client, ssl, sys, time
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=ssl._create_unverified_context())
for number in range(int(sys.argv[3])):
    connection.request("GET", f"/{sys.argv[2]}/{number}")
    connection.getresponse().read()
    time.sleep(0.05)
print(connection.sock.getsockname()[1])
"""
"""Keeps its connection for a while: a socket that is closed at once has no owner that could be found."""


def test_accepted_sockets_are_found_by_their_owner():
    with Lab("bio") as lab:
        process = lab.start(
            PYTHON, "-c", SERVER, lab.certificate, lab.key, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        port = int(process.stdout.readline())
        daemon = Daemon(lab)
        daemon.wait_attached()
        watch = daemon.watch()
        command = [PYTHON, "-c", CLIENT, str(port), "{n}", str(REQUESTS)]
        runs = swarm(lab, COUNT, command, parallel=1)
        ports = {f"/{n}/{i}": int(out) for n, (_, out) in runs.items() for i in range(REQUESTS)}
        watch.wait_for(2 * COUNT * REQUESTS)
        watch.stop()
        daemon.stop()

    served = [e for e in watch.exchanges if e.connection.role == "server"]
    assert sorted(e.request.path for e in served) == sorted(ports)
    assert {e.process.pid for e in served} == {process.pid}
    tally: Counter[str] = Counter()
    for exchange in served:
        connection, correlation = exchange.connection, exchange.correlation
        if correlation.method == "NONE":
            tally["unclaimed"] += 1
            continue
        assert (correlation.method, correlation.confidence) == ("PROCESS_TIMING", "low")
        assert (connection.local.port, connection.remote.port) == (port, ports[exchange.request.path])
        assert correlation.wire == "TC", exchange
        tally["right"] += 1
    say(f"server of two threads, {COUNT} connections one after the other: {dict(tally)}, none wrong")
    assert tally["right"] >= RIGHT * COUNT * REQUESTS
