"""Real TLS programs that shake hands, or fail to, in a lab; and tshark's word on what went over the wire."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Watch
from tests.support.lab import Lab, stop, wait_for
from tests.support.net import Namespace, inside
from tests.support.oracle import IN_ORDER, wait_written
from tests.support.servers import free_port

FIELDS = (
    "tcp.stream", "tcp.srcport", "tls.handshake.type", "tls.handshake.ciphersuite",
    "tls.handshake.extensions_server_name", "tls.handshake.extensions.supported_version",
    "tls.handshake.version", "tls.handshake.extension.type",
)  # fmt: skip

NOBODYS_PORT = 9
"""discard (RFC 863)"""


class Capture:
    """tshark on one interface of a namespace; ``hellos`` is what it has made of it."""

    def __init__(self, lab: Lab, namespace: Namespace, interface: str = "lo") -> None:
        self._namespace = namespace
        self.file = lab.folder / f"capture-{free_port()}.pcap"
        log = self.file.with_suffix(".log")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                namespace.enter("tshark", "-i", interface, "-w", str(self.file), "-q", "-F", "pcap", "tcp"),
                stderr=output,
                stdout=output,
            )
        lab.processes.append(self.process)
        wait_for(lambda: b"Capture started" in log.read_bytes(), 30, "tshark")
        wait_for(lambda: self.file.exists() and self.file.stat().st_size >= 24, 30, "tshark's file")

    def stop(self) -> Self:
        """Ends it when it has written all that came before."""
        with inside(self._namespace):
            wait_written(self.file, NOBODYS_PORT)
        stop(self.process)
        return self

    def hellos(self) -> list[dict[str, str]]:
        """Field by field of every packet with a ClientHello or ServerHello."""
        done = subprocess.run(
            ["tshark", "-r", self.file, "-o", IN_ORDER, "-Y", "tls.handshake.type == 1 || tls.handshake.type == 2", "-T", "fields",
             "-d", "tcp.port==1-65535,tls",
             *(part for field in FIELDS for part in ("-e", field))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


class Server:
    """``openssl s_server``, which shakes hands by SSL_accept and prints what it reads."""

    def __init__(self, lab: Lab, namespace: Namespace, *options: str | Path) -> None:
        self.port = free_port()
        self.log = lab.folder / f"s_server-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = lab.start(
                *namespace.enter("openssl", "s_server", "-accept", f"127.0.0.1:{self.port}",
                                 "-cert", lab.certificate, "-key", lab.key, *options),
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(lambda: b"ACCEPT" in self.log.read_bytes(), 30, "s_server")


def handshakes(watch: Watch, pid: int = 0, comm: str = "") -> list[pb.Handshake]:
    """Those of one process, or of all of one name, so far."""
    return [
        item.handshake
        for item in list(watch.items)
        if item.WhichOneof("kind") == "handshake"
        and (not pid or item.handshake.process.pid == pid)
        and (not comm or item.handshake.process.comm == comm)
    ]


def wait_handshakes(watch: Watch, count: int, **who) -> list[pb.Handshake]:
    """Until there are so many."""
    wait_for(
        lambda: len(handshakes(watch, **who)) >= count, 30, f"{count} handshakes of {who}: {watch.items}"
    )
    return handshakes(watch, **who)
