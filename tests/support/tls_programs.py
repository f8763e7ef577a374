"""Python programs that run inside the lab, as text: real OpenSSL calls of chosen sizes."""

SERVER = r"""
import socket, ssl, sys, threading, hashlib
certificate, key, mode = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
family = socket.AF_INET6 if mode.endswith("6") else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))
listener.listen(64)
print(listener.getsockname()[1], flush=True)

def serve(raw):
    with context.wrap_socket(raw, server_side=True) as tls:
        if mode.startswith("sink"):      # reads into one buffer, again and again
            buffer, total, digest = bytearray(16384), 0, hashlib.sha256()
            while n := tls.recv_into(buffer):
                total += n
                digest.update(memoryview(buffer)[:n])
                if total >= int(sys.argv[4]):
                    tls.sendall(digest.hexdigest().encode())
        elif mode.startswith("source"):  # writes what it is asked for, in calls of the size asked for
            size, total = map(int, tls.recv(100).split())
            data = bytes(i * 7 & 255 for i in range(256)) * (size // 256 + 1)
            sent = 0
            while sent < total:
                piece = data[: min(size, total - sent)]
                tls.sendall(piece)
                sent += len(piece)
        else:                            # echo
            while data := tls.recv(65536):
                tls.sendall(data)

while True:
    raw, _ = listener.accept()
    threading.Thread(target=serve, args=(raw,), daemon=True).start()
"""

CLIENT = r"""
import socket, ssl, sys, hashlib
host, port, mode, size, total = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
context = ssl._create_unverified_context()
tls = context.wrap_socket(socket.create_connection((host, port)))
print(int.from_bytes(tls.getsockopt(socket.SOL_SOCKET, 57, 8), "little"), *tls.getsockname()[:2], flush=True)
digest = hashlib.sha256()
if mode == "send":
    data = bytes(i * 13 & 255 for i in range(256)) * (size // 256 + 1)
    sent = 0
    while sent < total:
        piece = data[: min(size, total - sent)]
        tls.sendall(piece)
        digest.update(piece)
        sent += len(piece)
    tls.recv(64)
elif mode == "receive":
    tls.sendall(b"%d %d" % (size, total))
    got = 0
    while got < total:
        data = tls.recv(65536)
        got += len(data)
        digest.update(data)
elif mode == "echo":
    for i in range(total):
        tls.sendall(b"%d:" % i + b"x" * size)
        left = len(b"%d:" % i) + size
        while left:
            left -= len(tls.recv(65536))
print(digest.hexdigest(), flush=True)
tls.unwrap() if mode == "echo" else tls.close()
"""

POSTGRES = r"""
import socket, ssl, struct, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
raw, _ = listener.accept()
assert raw.recv(8) == struct.pack("!II", 8, 80877103)   # SSLRequest
raw.sendall(b"S")
tls = context.wrap_socket(raw, server_side=True)
file = tls.makefile("rb")
def message(kind, body):
    return kind + struct.pack("!I", 4 + len(body)) + body
file.read(struct.unpack("!I", file.read(4))[0] - 4)     # StartupMessage
settings = {b"client_encoding": b"UTF8", b"server_version": b"15.0", b"standard_conforming_strings": b"on"}
tls.sendall(message(b"R", bytes(4))
            + b"".join(message(b"S", name + b"\0" + value + b"\0") for name, value in settings.items())
            + message(b"Z", b"I"))
while kind := file.read(1):
    file.read(struct.unpack("!I", file.read(4))[0] - 4)
    if kind == b"Q":
        tls.sendall(message(b"C", b"SELECT 0\0") + message(b"Z", b"I"))
"""
"""CERTIFICATE KEY: as much of a PostgreSQL server as libpq needs for a query."""

LIBPQ = r"""
import psycopg2, sys
connection = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="spliff", dbname="spliff",
                              sslmode="require", gssencmode="disable")
connection.autocommit = True
connection.cursor().execute("SELECT 'spliff'")
connection.close()
"""
