"""A client that keeps one TLS connection and asks when it is told to: what its socket is, it says itself."""

from __future__ import annotations

import json
import subprocess

from tests.support.lab import PYTHON, Lab
from tests.support.net import Namespace

# 57: SO_COOKIE. IPv6 options are set before the connection is made, so that every segment carries them
# (RFC 3542; hop-by-hop and destination options: one PadN of four bytes).
PROGRAM = r"""
import http.client, json, socket, ssl, sys
spec = json.loads(sys.argv[1])
family, kind, protocol, _, address = socket.getaddrinfo(spec["host"], spec["port"], type=socket.SOCK_STREAM)[0]
raw = socket.socket(family, kind, protocol)
if spec["source_port"]:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    raw.bind(("", spec["source_port"]))
for option in spec["ipv6_options"]:
    raw.setsockopt(socket.IPPROTO_IPV6, option, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
raw.settimeout(60)
raw.connect(address)
sock = ssl._create_unverified_context().wrap_socket(raw)
connection = http.client.HTTPSConnection(spec["host"], spec["port"])
connection.sock = sock
cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
print(json.dumps({"cookie": cookie, "port": sock.getsockname()[1]}), flush=True)
for line in sys.stdin:
    connection.request("GET", line.strip())
    response = connection.getresponse()
    print(json.dumps({"status": response.status, "size": len(response.read())}), flush=True)
"""


class KeepAlive:
    """Connects at once; ``cookie`` (SO_COOKIE), ``port`` (local) and ``pid`` are the kernel's own words."""

    def __init__(
        self,
        lab: Lab,
        namespace: Namespace | None,
        host: str,
        port: int,
        *,
        source_port: int = 0,
        ipv6_options: tuple[int, ...] = (),
    ) -> None:
        spec = {"host": host, "port": port, "source_port": source_port, "ipv6_options": ipv6_options}
        command = (PYTHON, "-c", PROGRAM, json.dumps(spec))
        self._process = lab.start(
            *(namespace.enter(*command) if namespace else command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        said = self._read()
        self.cookie, self.port, self.pid = said["cookie"], said["port"], self._process.pid

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client ended with {self._process.wait(10)}"
        return json.loads(line)

    def ask(self, path: str) -> int:
        """One request; the size of what came."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        said = self._read()
        assert said["status"] == 200, said
        return said["size"]

    def close(self) -> None:
        """Ends the connection and the process."""
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0
