"""HTTP/1.1 over real TLS in the lab: a server and a client whose every write call has a chosen size.

Both are programs (text), run by the system's python3 inside the lab. Bodies are pseudo-random bytes of a
seed, so two pieces that change places, or one that comes twice, change the digest.

The server prints its port, then serves by path (query: ``size`` of a write call, ``total`` bytes, ``seed``):
``/down`` a body with Content-Length, or chunked with ``chunked=1``; ``/last`` a body that lasts until
close_notify, or with ``rude=1`` until the mere end of the connection; ``/up`` answers the SHA-256 of the
request's body; ``/empty`` 204, ``/same`` 304; ``/refuse`` 413 before the body was read; ``/reset`` half of
a body, then a TCP reset; ``/die`` half of a body, then SIGKILL of itself; anything else 200 and the path.

The client gets a JSON list of steps, all on one connection; a step is one request, or a list of requests
that leave in one write. It prints one JSON object: its cookie and port, and status, length and digest of
every response.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from typing import Any

from tests.support.lab import PYTHON, Lab
from tests.support.net import Namespace

COMMON = r"""
import hashlib, json, os, random, signal, socket, ssl, struct, sys, time

def body(seed, total):
    return random.Random(seed).randbytes(total)

def send(tls, data, size):
    view = memoryview(data)
    for at in range(0, len(view), size):
        tls.sendall(view[at : at + size])

def send_chunked(tls, data, size):
    view = memoryview(data)
    for at in range(0, len(view), size):
        piece = view[at : at + size]
        tls.sendall(b"%x;name=value\r\n" % len(piece) + piece + b"\r\n")
    tls.sendall(b"0\r\nX-Trailer: 11\r\n\r\n")

def read_head(file):
    start = file.readline().decode().split(None, 2)
    fields = {}
    while (line := file.readline().strip()):
        name, _, value = line.decode().partition(":")
        fields[name.lower()] = value.strip()
    return start, fields

def read_body(file, fields):
    digest, total = hashlib.sha256(), 0
    def take(left):
        nonlocal total
        while left and (data := file.read(min(left, 65536))):
            left -= len(data)
            total += len(data)
            digest.update(data)
    if fields.get("transfer-encoding") == "chunked":
        while size := int(file.readline().split(b";")[0], 16):
            take(size)
            file.readline()
        while file.readline().strip():
            pass
    elif fields.get("connection") == "until-close":
        take(1 << 62)
    else:
        take(int(fields.get("content-length", 0)))
    return total, digest.hexdigest()
"""

SERVER = (
    COMMON
    + r"""
import threading, urllib.parse
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)

def answer(tls, file, method, target, fields):
    path, _, query = target.partition("?")
    asked = {key: int(value) for key, value in urllib.parse.parse_qsl(query)}
    size, total = asked.get("size", 16384), asked.get("total", 0)
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    if path == "/refuse":
        tls.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig\n")
        tls.settimeout(5)
        while tls.recv(65536):  # until the client has seen it
            pass
        return False
    if fields.get("expect") == "100-continue":
        tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    _, digest = read_body(file, fields)
    if path == "/down":
        data = body(asked["seed"], total)
        if asked.get("chunked"):
            tls.sendall(ok + b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n")
            send_chunked(tls, data, size)
        else:
            tls.sendall(ok + b"Content-Length: %d\r\n\r\n" % total)
            if method != "HEAD":
                send(tls, data, size)
    elif path == "/last":
        tls.sendall(ok + b"Connection: until-close\r\n\r\n")
        send(tls, body(asked["seed"], total), size)
        if not asked.get("rude"):
            tls.unwrap()
        return False
    elif path == "/empty":
        tls.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    elif path == "/same":
        tls.sendall(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 4711\r\n\r\n')
    elif path in ("/reset", "/die"):
        tls.sendall(ok + b"Content-Length: %d\r\n\r\n" % total)
        send(tls, body(asked["seed"], total)[: total // 2], size)
        if path == "/die":
            time.sleep(0.2)  # the client has read it
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    else:
        text = digest.encode() if path == "/up" else target.encode()
        tls.sendall(ok + b"Content-Length: %d\r\n\r\n" % len(text) + (b"" if method == "HEAD" else text))
    return True

def serve(raw):
    try:
        tls = context.wrap_socket(raw, server_side=True)
    except OSError:
        return
    file = tls.makefile("rb", 65536)
    try:
        while True:
            start, fields = read_head(file)
            if not start or not answer(tls, file, start[0], start[1], fields):
                break
    except OSError:
        pass
    file.close()
    tls.close()

while True:
    raw, _ = listener.accept()
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(raw,), daemon=True).start()
"""
)

CLIENT = (
    COMMON
    + r"""
port, steps, keylog = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
context = ssl._create_unverified_context()
if keylog:
    context.keylog_filename = keylog
raw = socket.create_connection(("127.0.0.1", port))
raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
tls = context.wrap_socket(raw, server_hostname="localhost")
file = tls.makefile("rb", 65536)
cookie = int.from_bytes(tls.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
result = {"cookie": cookie, "port": tls.getsockname()[1], "responses": []}

def head(one, length):
    lines = ["%s %s HTTP/1.1" % (one.get("method", "GET"), one["path"]), "Host: localhost"]
    lines += ["%s: %s" % pair for pair in one.get("headers", {}).items()]
    if one.get("chunked"):
        lines.append("Transfer-Encoding: chunked")
    elif length is not None:
        lines.append("Content-Length: %d" % length)
    return "\r\n".join([*lines, "", ""]).encode()

def receive(one):
    start, fields = read_head(file)
    interim = []
    while start and start[1][0] == "1":
        interim.append(int(start[1]))
        start, fields = read_head(file)
    bodiless = one.get("method") == "HEAD" or start[1] in ("204", "304")
    total, digest = (0, "") if bodiless else read_body(file, fields)
    result["responses"].append(
        {"status": int(start[1]), "length": total, "sha256": digest, "interim": interim}
    )

for step in steps:
    if isinstance(step, list):
        tls.sendall(b"".join(head(one, None) for one in step))
        for one in step:
            receive(one)
        continue
    data = body(step["seed"], step["total"]) if "total" in step else None
    announced = step.get("announced", None if data is None else len(data))
    tls.sendall(head(step, announced))
    if step.get("expect"):
        assert read_head(file)[0][1] == "100"
    if data is not None:
        (send_chunked if step.get("chunked") else send)(tls, data, step["size"])
    try:
        receive(step)
    except (OSError, IndexError) as error:
        result["error"] = type(error).__name__
        break
print(json.dumps(result), flush=True)
file.close()
tls.close()
"""
)


def content(seed: int, total: int) -> bytes:
    """The bytes of a body, as both programs make them."""
    return random.Random(seed).randbytes(total)


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


class HttpServer:
    """The server program in the lab."""

    def __init__(self, lab: Lab, namespace: Namespace | None = None) -> None:
        command = [PYTHON, "-c", SERVER, str(lab.certificate), str(lab.key)]
        self.process = lab.start(
            *(namespace.enter(*command) if namespace else command),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def http_client(
    lab: Lab, port: int, steps: list[Any], *, keylog: str = "", seconds: float = 120
) -> dict[str, Any]:
    """Runs the client program to its end; returns what it printed, and its ``pid``."""
    process = lab.start(
        PYTHON, "-c", CLIENT, str(port), json.dumps(steps), keylog,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err.decode()
    return {"pid": process.pid, **json.loads(out)}
