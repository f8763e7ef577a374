"""Two ends of one TLS connection in one process, that write what they are told, one call for each message.

For tests of what becomes of a stream's pieces: nothing but the test decides when and in what order they
come. Both ends are seen (the same process, two TLS objects): the client's is made first.
"""

from __future__ import annotations

import subprocess

from tests.support.lab import PYTHON, Lab

PROGRAM = r"""
import socket, ssl, sys
certificate, key, over = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
other = ssl._create_unverified_context()
context.num_tickets = 0
if over == "memory":
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = other.wrap_bio(incoming, outgoing)
    server = context.wrap_bio(outgoing, incoming, server_side=True)
else:
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far = listener.accept()[0]
    client = other.wrap_socket(near, do_handshake_on_connect=False)
    server = context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    client.setblocking(False)
    server.setblocking(False)
done = set()
while len(done) < 2:
    for end in (client, server):
        try:
            end.do_handshake()
            done.add(end)
        except ssl.SSLWantReadError:
            pass
if over == "socket":
    client.setblocking(True)
    server.setblocking(True)
print("ready", flush=True)
for line in sys.stdin:
    who, text = line.split()
    data = bytes.fromhex(text)
    writer, reader = (client, server) if who == "client" else (server, client)
    writer.write(data)
    got = b""
    while len(got) < len(data):
        got += reader.read(1 << 20)
    assert got == data
    print("ok", flush=True)
"""


class Dialogue:
    """``client`` and ``server`` say something; when they return it was written and read.

    ``over``: a TCP "socket" pair, or "memory" (then nothing names a socket).
    """

    def __init__(self, lab: Lab, over: str = "socket") -> None:
        self._process = lab.start(
            *(PYTHON, "-c", PROGRAM, lab.certificate, lab.key, over),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._answer(b"ready")

    def _answer(self, expected: bytes) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line == expected, f"{line!r}; ended with {self._process.poll()}"

    def _say(self, who: str, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{who} {data.hex()}\n".encode())
        self._process.stdin.flush()
        self._answer(b"ok")

    def client(self, data: bytes) -> None:
        """The client writes ``data`` in one call, the server reads it."""
        self._say("client", data)

    def server(self, data: bytes) -> None:
        """The other way round."""
        self._say("server", data)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0
