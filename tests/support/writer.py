"""A TLS client whose writes the test makes one by one, over a socket that never blocks and is as small as can be.

For tests of when a write is over. The client is libssl by ctypes, its server Python's, both in one process;
only the client's writes matter. ``Writer`` says what to do and returns what the library said.
"""

from __future__ import annotations

import subprocess

from tests.support.lab import PYTHON, Lab

PROGRAM = r"""
import ctypes, signal, socket, ssl, struct, sys, threading, time
certificate, key, version, ciphers = sys.argv[1:5]
P = ctypes.c_void_p
lib = ctypes.CDLL("libssl.so.3")
for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
    getattr(lib, name).restype = P
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.num_tickets = 0
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if ciphers:
    context.set_ciphers(ciphers)
listener = socket.create_server(("127.0.0.1", 0))
near = socket.socket()
near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
near.connect(listener.getsockname())
far = listener.accept()[0]
near.setblocking(False)
far.setblocking(False)
server = context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
client = P(lib.SSL_new(P(lib.SSL_CTX_new(P(lib.TLS_client_method())))))
lib.SSL_set_fd(client, near.fileno())
lib.SSL_ctrl(client, 33, 2, None)  # SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
shaken = served = False
while not (shaken and served):
    shaken = shaken or lib.SSL_connect(client) == 1
    try:
        served = served or server.do_handshake() is None
    except ssl.SSLWantReadError:
        pass
aside = socket.create_connection(listener.getsockname())
beyond = listener.accept()[0]

@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_int, P, ctypes.c_size_t, P, P)
def call_back(writing, version, kind, data, size, ssl_, argument):
    if writing and kind == 256:  # SSL3_RT_HEADER: before the record is sent
        aside.send(bytes(aside_bytes))

def read_late(wanted):
    time.sleep(0.3)
    while wanted > 0:
        try:
            wanted -= len(server.recv(1 << 16))
        except ssl.SSLWantReadError:
            time.sleep(0.001)

print("ready", flush=True)
for line in sys.stdin:
    what, text, number = line.split()
    number = int(number)
    if what == "write":
        done = lib.SSL_write(client, text.encode() * number, number)
    elif what == "read":
        got = b""
        try:
            while True:
                got += server.recv(1 << 16)
        except (ssl.SSLWantReadError, OSError):
            pass
        done = got.decode() or "-"
    elif what == "interrupted":  # by signals, while the socket is full and blocks
        near.setblocking(True)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, False)  # SA_RESTART
        reader = threading.Thread(target=read_late, args=(len(text) * number,))
        reader.start()
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        done = sum(lib.SSL_write(client, letter.encode() * number, number) for letter in text)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reader.join()
    elif what == "fragment":
        done = lib.SSL_ctrl(client, 52, number, None)
    elif what == "update":
        done = lib.SSL_key_update(client, 0)
    elif what == "again":
        done = lib.SSL_do_handshake(client)
    elif what == "aside":
        aside_bytes = number
        done = lib.SSL_set_msg_callback(client, call_back)
    elif what == "reset":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        done = server.close()
    elif what == "shutdown":
        done = lib.SSL_shutdown(client)
    elif what == "free":
        done = lib.SSL_free(client)
    print(done, flush=True)
"""


class Writer:
    """The process. ``version``: "TLSv1_3" or "TLSv1_2"; ``ciphers`` of the latter, as OpenSSL lists them."""

    def __init__(self, lab: Lab, version: str = "TLSv1_3", ciphers: str = "") -> None:
        self._process = lab.start(
            *(PYTHON, "-c", PROGRAM, lab.certificate, lab.key, version, ciphers),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def does(self, what: str, text: str = "-", number: int = 0) -> str:
        """The result, as text."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {text} {number}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def write(self, letter: str, size: int) -> int:
        """SSL_write of so many of that letter: what it returned."""
        return int(self.does("write", letter, size))

    def arrived(self) -> str:
        """What the server can read now."""
        got = self.does("read")
        return "" if got == "-" else got

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0
