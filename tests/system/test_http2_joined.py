"""Attached in the middle of 101 live HTTP/2 connections: each new request comes, and nothing in it is wrong."""

from __future__ import annotations

import subprocess
import sys

from tests.support.daemon import Daemon
from tests.support.lab import Lab, say, wait_for
from tests.support.servers import Nginx

CONNECTIONS, BEFORE, AFTER = 101, 5, 3
UNKNOWN = "(unknown)"

CLIENT = r"""
import socket, ssl, sys
from h2.connection import H2Connection
from h2.events import StreamEnded

port, connections, before, after = map(int, sys.argv[1:])
context = ssl._create_unverified_context()
context.set_alpn_protocols(["h2"])

class Connection:
    def __init__(self, number):
        self.number, self.asked = number, 0
        self.tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.tls.sendall(self.h2.data_to_send())

    def ask(self):
        self.asked += 1
        stream = self.h2.get_next_available_stream_id()
        late = [("x-late", "connection %d" % self.number)] if self.asked > before else []
        self.h2.send_headers(stream, [
            (":method", "GET"), (":authority", "localhost:%d" % port), (":scheme", "https"),
            (":path", "/hello?connection=%d&n=%d" % (self.number, self.asked)),
            ("user-agent", "joined-test/1.0"), ("x-connection", str(self.number)),
            ("x-asked", "%d of %d" % (self.asked, self.number)), ("accept", "text/plain;q=0.%d" % (self.number % 9)),
            *late,
        ], end_stream=True)
        self.tls.sendall(self.h2.data_to_send())
        while True:
            events = self.h2.receive_data(self.tls.recv(65536))
            self.tls.sendall(self.h2.data_to_send())
            if any(isinstance(event, StreamEnded) and event.stream_id == stream for event in events):
                return

all_of_them = [Connection(number) for number in range(connections)]
for _ in range(before):
    for one in all_of_them:
        one.ask()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(after):
    for one in all_of_them:
        one.ask()
print("done", flush=True)
sys.stdin.readline()
"""


def test_every_new_request_is_delivered_and_none_is_wrong():
    with Lab("joined") as lab:
        server = Nginx(lab, http2=True)
        numbers = [str(n) for n in (server.port, CONNECTIONS, BEFORE, AFTER)]
        client = lab.start(
            sys.executable, "-c", CLIENT, *numbers, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        daemon = Daemon(lab)
        daemon.wait_attached()
        watch = daemon.watch()
        client.stdin.write(b"go\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"done\n"
        wanted = 2 * CONNECTIONS * AFTER
        wait_for(lambda: len(watch.exchanges) >= wanted, 30, f"{wanted} exchanges")
        watch.settle(0.5)
        watch.stop()
        assert watch.losses == []
        unknown = known = 0
        for role in ("client", "server"):
            seen = [one for one in watch.exchanges if one.connection.role == role]
            expected = {
                f"/hello?connection={connection}&n={number}"
                for connection in range(CONNECTIONS)
                for number in range(BEFORE + 1, BEFORE + AFTER + 1)
            }
            assert len(seen) == len(expected)
            assert {one.request.path for one in seen} == expected
            for one in seen:
                connection, number = (int(part.partition("=")[2]) for part in one.request.path[7:].split("&"))
                assert one.response.status == 200
                assert one.completeness.proof == ""  # nobody saw their beginning
                assert one.response.body_size == len("hello world\n")
                truth = {
                    "user-agent": "joined-test/1.0",
                    "x-connection": str(connection),
                    "x-asked": f"{number} of {connection}",
                    "x-late": f"connection {connection}",
                    "accept": f"text/plain;q=0.{connection % 9}",
                }
                # Fields of before are marked, those that come anew are right, and none is made up.
                lost = [header for header in one.request.headers if header.name == UNKNOWN]
                told = {h.name: h.value for h in one.request.headers if h.name != UNKNOWN}
                assert told.items() <= truth.items()
                assert told["x-late"] == truth["x-late"]  # the first time in full, then by its index
                # The name of this field may be one of before; its value comes anew each time, and is masked,
                # because a field without a name may be any.
                if "x-asked" not in told:
                    assert len(truth["x-asked"]) in [header.masked.length for header in lost]
                assert one.request.authority in ("", f"localhost:{server.port}")
                assert bool(lost) == (one.completeness.state == "joined_mid_stream")
                unknown += len(lost)
                known += len(told)
        assert unknown > 0
        say(f"{CONNECTIONS} live connections: {wanted} exchanges, {known} fields right, {unknown} marked")
        daemon.stop()
