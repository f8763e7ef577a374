"""A server that keeps TLS apart from its sockets (asyncio: memory BIOs), so that nothing names a connection's
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
import asyncio, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
async def serve(reader, writer):
    while (head := await reader.readuntil(b"\r\n\r\n")):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


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
    say(f"asyncio server, {COUNT} connections one after the other: {dict(tally)}, none wrong")
    assert tally["right"] >= RIGHT * COUNT * REQUESTS
