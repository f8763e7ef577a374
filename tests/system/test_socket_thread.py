"""Programs that keep TLS apart from their sockets: which socket carries a connection is learned from what the
thread does next to its TLS calls. Against what the kernel says of the same sockets: none wrong."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, say
from tests.support.servers import Nginx
from tests.support.speakers import private_program

CONNECTIONS = 13
REQUESTS = 7
CONFIDENCE = {"SOCKET_THREAD": "high", "PROCESS_TIMING": "low"}

ASYNCIO = r"""
import asyncio, json, ssl, sys
port, connections, requests = map(int, sys.argv[1:4])
context = ssl._create_unverified_context()
truth = {}
async def one(number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    mine = writer.get_extra_info("socket").getsockname()[1]
    for turn in range(requests):
        path = f"/hello?{number:03}-{turn:03}"
        truth[path] = mine
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
        await reader.readuntil(b"hello world\n")
    writer.close()
async def main():
    await asyncio.gather(*(one(number) for number in range(connections)))
asyncio.run(main())
print(json.dumps(truth))
"""

NODE = r"""
const https = require("https");
const [port, connections, requests] = process.argv.slice(1).map(Number);
const truth = {};
const pad = (n) => String(n).padStart(3, "0");
function one(number) {
  return new Promise((done, failed) => {
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
    const turn = (n) => {
      if (n === requests) { agent.destroy(); return done(); }
      const path = `/hello?${pad(number)}-${pad(n)}`;
      const request = https.get({ port, path, agent, host: "127.0.0.1" }, (answer) => {
        truth[path] = answer.socket.localPort;
        answer.on("data", () => {});
        answer.on("end", () => turn(n + 1));
      });
      request.on("error", failed);
    };
    turn(0);
  });
}
Promise.all([...Array(connections).keys()].map(one)).then(() => console.log(JSON.stringify(truth)));
"""

ORDERS = r"""
import json, random, socket, ssl, sys
port, connections, requests, order = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
context = ssl._create_unverified_context()
class Link:
    def __init__(self):
        self.raw = socket.create_connection(("127.0.0.1", port))
        self.come, self.go = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.come, self.go)
        self.waiting = []
    def flush(self):
        if data := self.go.read():
            self.raw.sendall(data)
    def receive(self):
        self.waiting.append(self.raw.recv(65536))
    def read(self):
        for data in self.waiting:
            self.come.write(data)
        self.waiting.clear()
        got = b""
        try:
            while True:
                got += self.tls.read(65536)
        except ssl.SSLWantReadError:
            return got
links = [Link() for _ in range(connections)]
plain = socket.create_connection(("127.0.0.1", port))   # a socket that is nobody's TLS
groups = [[link] for link in links] if order == "one by one" else [links]
for group in groups:
    open_ = list(group)
    while open_:
        shaking = []
        for link in open_:
            try:
                link.tls.do_handshake()
            except ssl.SSLWantReadError:
                shaking.append(link)
        for link in random.sample(open_, len(open_)):
            link.flush()
        for link in shaking:
            link.receive()
        for link in shaking:
            link.come.write(link.waiting.pop())
        open_ = shaking
truth = {}
for turn in range(requests):
    for number, link in enumerate(links):
        path = f"/hello?{number:03}-{turn:03}"
        truth[path] = link.raw.getsockname()[1]
        link.tls.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if order not in ("write all first", "all first"):
            link.flush()
    for link in random.sample(links, len(links)):
        link.flush()
    got = {link: b"" for link in links}
    while waiting := [link for link in links if b"hello world\n" not in got[link]]:
        before = None                                # order "lag": what came is read when the next has come
        for link in waiting:
            link.receive()
            if order == "lag":
                if before:
                    got[before] += before.read()
                before = link
            elif order not in ("receive all first", "all first"):
                got[link] += link.read()
        for link in waiting:
            got[link] += link.read()
print(json.dumps(truth))
"""
"""The same-sized requests and answers on every connection, in orders that mislead who takes what is next."""

CLIENTS = {"asyncio": ("-c", ASYNCIO), "node": ("-e", NODE)}


ORDERLY, LAG = "one by one", "lag"


def check(
    lab: Lab, program: str, arguments: tuple[str, ...], daemon: Daemon, *, last: str = ""
) -> Counter[str]:
    """Runs a client; returns how many of its exchanges have their socket by which method, all of them right."""
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    counts = (str(server.port), str(CONNECTIONS), str(REQUESTS))
    done = lab.run(program, *arguments, *counts, *([last] if last else []))
    assert done.returncode == 0, done.stderr
    truth: dict[str, int] = json.loads(done.stdout)
    watch.wait_for(2 * CONNECTIONS * REQUESTS)
    watch.settle(0.5)
    watch.stop()

    mine = [e for e in watch.exchanges if e.process.pid != server.pid]
    assert sorted(e.request.path for e in mine) == sorted(truth)
    tally: Counter[str] = Counter()
    for exchange in mine:
        method = exchange.correlation.method
        tally[method] += 1
        if method != "NONE":
            assert exchange.connection.local.port == truth[exchange.request.path], method
            assert exchange.connection.remote.port == server.port
            assert exchange.correlation.confidence == CONFIDENCE[method]
    say(f"{last or arguments[0]}: {CONNECTIONS} connections in one thread: {dict(tally)}, none wrong")
    return tally


@pytest.mark.parametrize("client", CLIENTS)
def test_parallel_connections_of_one_thread_are_told_apart(lab: Lab, daemon: Daemon, client: str):
    program = PYTHON
    if client == "node":
        program = str(private_program(lab, daemon, "/usr/bin/node", "-e", "setTimeout(() => {}, 60000)"))

    def nearly_all() -> bool:
        # The thread's very first connection may go unseen until its second request.
        return check(lab, program, CLIENTS[client], daemon)["SOCKET_THREAD"] >= CONNECTIONS * REQUESTS - 1

    # Beside others that want the processors two or three may go unseen (4 of 17 runs). None is ever wrong.
    assert any(nearly_all() for _ in range(3))


@pytest.mark.parametrize("order", [ORDERLY, "write all first", "receive all first", "all first", LAG])
def test_misleading_orders_name_no_wrong_socket(lab: Lab, daemon: Daemon, order: str):
    tally = check(lab, PYTHON, ("-c", ORDERS), daemon, last=order)
    if order == ORDERLY:
        assert tally["SOCKET_THREAD"] == CONNECTIONS * REQUESTS
