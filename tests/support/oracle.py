"""An independent witness: tshark, which sees only packets, decrypts them with the programs' own keys.

``Oracle`` captures a few ports on loopback from its construction on; ``exchanges`` ends the capture and
returns what tshark makes of it, by connection and in order. Shares no code with spliff.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.lab import Lab, wait_for

FIELDS = (
    "tcp.stream", "tcp.srcport", "tcp.dstport", "http.request.method",
    "http.request.uri", "http.response.code", "http.content_length", "data.len",
)  # fmt: skip

# With these off, the body of every message of an unknown type is plain "data", whose length is what was
# put together: chunks joined, framing removed.
PLAIN_BODIES = ("media", "data-text-lines", "urlencoded-form")

IN_ORDER = "tcp.reassemble_out_of_order:TRUE"
"""A sender that moves to the other processor overtakes its own last packet, still in the first one's backlog:
tshark then leaves out messages unless told to put segments in order (3 of 40 runs)."""


class Seen(NamedTuple):
    """One exchange, as far as two witnesses can agree: body sizes are without transfer coding."""

    method: str
    path: str
    status: int
    request_body: int
    response_body: int


class Oracle:
    """Programs write their TLS secrets to ``keylog`` (SSLKEYLOGFILE and the like)."""

    def __init__(self, lab: Lab, ports: list[int]) -> None:
        self._ports = ports
        self._capture = lab.folder / "oracle.pcapng"
        self.keylog = lab.folder / "keys.log"
        self.keylog.touch()
        wanted = " or ".join(f"tcp port {port}" for port in ports)
        self._dumpcap = subprocess.Popen(
            ["dumpcap", "-q", "-i", "lo", "-B", "64", "-w", self._capture, "-f", wanted],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        lab.processes.append(self._dumpcap)
        wait_for(lambda: self._capture.exists() and self._capture.stat().st_size > 0, 30, "dumpcap")

    def exchanges(self) -> dict[tuple[int, int], list[Seen]]:
        """By (client's port, server's port), in the order of the requests; the witness must be whole.

        Ports may be used by one connection after another: the kernel begins anew at a random one every 10 s.
        """
        self.stop()
        return _pair(self._messages())

    def stop(self) -> None:
        """Ends the capture; fails if anything was dropped."""
        wait_written(self._capture, self._ports[0])
        self._dumpcap.send_signal(signal.SIGINT)
        _, summary = self._dumpcap.communicate(timeout=60)
        counts = re.search(rb"received/dropped on interface .*: (\d+)/(\d+) ", summary)
        assert counts is not None, summary
        assert int(counts[2]) == 0, f"the oracle itself lost packets: {summary!r}"

    def _messages(self) -> Iterator[dict[str, str]]:
        return self.packets("http", FIELDS, PLAIN_BODIES)

    def packets(
        self, wanted: str, fields: Sequence[str], disabled: Sequence[str] = ()
    ) -> Iterator[dict[str, str]]:
        """Fields of each packet that a display filter lets through; several values are joined by commas."""
        command = ["tshark", "-r", str(self._capture), "-o", f"tls.keylog_file:{self.keylog}"]
        command += ["-o", IN_ORDER, "-Y", wanted]
        for port in self._ports:
            command += ["-d", f"tcp.port=={port},tls"]
        for protocol in disabled:
            command += ["--disable-protocol", protocol]
        command += ["-T", "fields", "-E", "separator=/t"]
        for field in fields:
            command += ["-e", field]
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
        for line in done.stdout.splitlines():
            yield dict(zip(fields, line.split("\t"), strict=True))


def wait_written(capture: Path, port: int) -> None:
    """Until all packets of before are in a capture: it hands them on in batches. A last connection to ``port``,
    or the attempt, stands behind them."""
    with socket.socket() as last:
        last.bind(("127.0.0.1", 0))
        mine = last.getsockname()[1]
        last.connect_ex(("127.0.0.1", port))
    mark = socket.inet_aton("127.0.0.1") * 2 + mine.to_bytes(2) + port.to_bytes(2)
    wait_for(lambda: mark in capture.read_bytes(), 30, "the last packet")


def _pair(messages: Iterator[dict[str, str]]) -> dict[tuple[int, int], list[Seen]]:
    # By order, as HTTP/1.1 says: tshark dates a message by its last packet, so an early answer (405 to an
    # upload) stands before its request and is not tied to it.
    requests: dict[str, list[dict[str, str]]] = {}
    responses: dict[str, list[dict[str, str]]] = {}
    for message in messages:
        kind = requests if message["http.request.method"] else responses
        kind.setdefault(message["tcp.stream"], []).append(message)
    found: dict[tuple[int, int], list[Seen]] = {}
    for stream, asked in requests.items():
        connection = (int(asked[0]["tcp.srcport"]), int(asked[0]["tcp.dstport"]))
        answered = responses.get(stream, [])
        assert len(asked) == len(answered), f"the oracle misses messages: {asked} {answered}"
        found.setdefault(connection, []).extend(
            _seen(request, response) for request, response in zip(asked, answered, strict=True)
        )
    return found


def _seen(request: dict[str, str], response: dict[str, str]) -> Seen:
    method, status = request["http.request.method"], int(response["http.response.code"])
    bodiless = method == "HEAD" or status in (204, 304)
    return Seen(
        method, request["http.request.uri"], status, _size(request), 0 if bodiless else _size(response)
    )


def _size(message: dict[str, str]) -> int:
    # tshark shows a message when all of Content-Length has come, so the header is as good as the bytes.
    return int(message["data.len"] or message["http.content_length"] or 0)
