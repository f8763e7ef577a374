"""Records as the eBPF programs write them, built by hand, and an Engine that reads them."""

from __future__ import annotations

import copy
import mmap
import socket
import struct
from typing import Any

from spliffd import counters
from spliffd.correlation.connection import Connection, OnBody
from spliffd.correlation.engine import Engine
from spliffd.correlation.facts import ConnectionFacts
from spliffd.correlation.flows import Finished, Kernel
from spliffd.counters import Region
from spliffd.kernel import records
from spliffd.kernel.flows import Flow, Hop, RecordSide
from spliffd.kernel.hellos import Hello
from spliffd.protocols.messages import HttpExchange
from spliffd.protocols.websocket_message import WebSocketMessage

CLIENT, SERVER = 1, 2
OPENSSL = 1
NESTED = 1
BEGAN = 1_000_000
"""When the engine started; connections that began before it are joined in the middle."""


class Recorder:
    """A Receiver that writes down what it is told."""

    def __init__(self) -> None:
        self.exchanges: list[HttpExchange] = []
        self.facts: list[ConnectionFacts] = []
        self.protocols: list[str] = []
        self.joins: list[tuple[str, int, int]] = []
        """Wire hook, attempts, time waited."""
        self.handshakes: list[tuple[int, int, str]] = []
        """Start, end, and why it failed."""
        self.shaken: list[ConnectionFacts] = []
        """What was known of the connections then."""
        self.chunks: list[tuple[int, int, bytes, int]] = []
        self.announced: list[tuple[HttpExchange, str]] = []
        self.messages: list[WebSocketMessage] = []
        self.processes: list[tuple[int, int, int]] = []
        self.bodies: list[tuple[bool, bytes]] | None = None

    def deliver(self, finished: list[Finished]) -> None:
        for connection, exchange, attempts, waited in finished:
            self.exchange(connection, exchange)
            self.joins.append((connection.facts.wire, attempts, waited))

    def exchange(self, connection: Connection, exchange: HttpExchange) -> None:
        self.exchanges.append(exchange)
        self.facts.append(connection.facts)
        self.protocols.append(connection.protocol)

    def handshake(self, connection: Connection, start: int, end: int, reason: str) -> None:
        self.handshakes.append((start, end, reason))
        self.shaken.append(copy.copy(connection.facts))

    def chunk(
        self, connection: Connection, direction: int, offset: int, data: bytes, size: int, now: int
    ) -> None:
        self.chunks.append((direction, offset, data, size))

    def progress(self, connection: Connection, exchange: HttpExchange) -> None:
        if not exchange.announced:
            exchange.announced = True
            self.announced.append((exchange, connection.facts.wire))

    def message(self, connection: Connection, message: WebSocketMessage) -> None:
        self.messages.append(message)

    def process(self, pid: int, start_ns: int, exec_id: int, facts: ConnectionFacts) -> None:
        self.processes.append((pid, start_ns, exec_id))

    def on_body(self, connection: Connection) -> OnBody | None:
        bodies = self.bodies
        if bodies is None:
            return None
        return lambda exchange, is_response, data: bodies.append((is_response, data))


def flow(*hops: tuple[int, int, int], **more: Any) -> Flow:
    """A flow whose packets went through these interfaces: (ifindex, hook, packets each way)."""
    values: dict[str, Any] = {
        "first_ns": BEGAN, "last_ns": BEGAN, "closed_ns": 0, "netns_cookie": 3,
        "local": socket.inet_aton("127.0.0.1") + bytes(12), "remote": socket.inet_aton("192.0.2.1") + bytes(12),
        "local_port": 1025, "remote_port": 443, "family": 4, "role": CLIENT,
        "hops": tuple(Hop(index, hook, n, n, 100 * n, 1000 * n, BEGAN) for index, hook, n in hops),
        "flags": 0, "tgid": 0, "state": 1, "tcp_sent": 0, "tcp_received": 0,
    } | more  # fmt: skip
    return Flow(**values)


class Stage:
    """An engine, its recorder, its counters, the kernel's flows, and a clock."""

    def __init__(self) -> None:
        self.told = Recorder()
        self.flows: dict[int, Flow] = {}
        self.looks = 0
        self.asked: list[tuple[int, int, str]] = []
        """Flows of which process, not before when, for which end."""
        self.read = 1 << 63
        """When the flows were read."""
        self.now = 0
        self.counters = Region(counters.WORKER, memoryview(bytearray(counters.REGION_BYTES)).cast("Q"))
        self.hooked = False
        self.hellos: dict[int, Hello] = {}
        """How TLS began, by socket cookie."""
        self.sides = (RecordSide(0, 0, 0, 0, 0, 0, 0, 0, 0),) * 2
        """The TLS records of whatever socket is looked up: none were seen."""
        kernel = Kernel(
            self.look, self.flows_of, lambda: self.hooked, self.hellos.get, sides=lambda: self.sides
        )
        self.engine = Engine(self.told, self.counters, BEGAN, kernel)

    def look(self, cookie: int) -> tuple[Hop, ...]:
        self.looks += 1
        flow = self.flows.get(cookie)
        return flow.hops if flow else ()

    def flows_of(self, pid: int, not_before: int, role: str) -> list[tuple[int, Flow]] | None:
        self.asked.append((pid, not_before, role))
        if not_before > self.read:
            return None
        return [(cookie, flow) for cookie, flow in self.flows.items() if flow.tgid == pid]

    def handle(self, *records_: bytes, busy: bool = False) -> None:
        """One batch, in one piece of memory, as from the ring."""
        memory = mmap.mmap(-1, max(mmap.PAGESIZE, sum(len(r) + 16 for r in records_)))
        positions, at = [], 8
        for record in records_:
            memory[at : at + len(record)] = record
            positions.append(at)
            at += (len(record) + 7) // 8 * 8 + 8
        self.engine.handle(memory, positions)
        self.engine.hand_out(self.now, busy=busy)

    def count(self, name: str) -> int:
        return self.counters.get(name)

    def paths(self) -> list[str]:
        return [e.request.path if e.request else "-" for e in self.told.exchanges]

    def states(self) -> list[str]:
        return [e.state for e in self.told.exchanges]


class Tls:
    """One TLS object of one process; makes its records, counts its offsets."""

    def __init__(
        self, ssl: int = 0xABC, *, pid: int = 7, start: int = 70, generation: int = BEGAN, **conn: Any
    ) -> None:
        self.offsets = [0, 0]
        self.now = generation
        self.conn: dict[str, Any] = {
            "pid": pid, "exec_id": 1, "start": start, "ssl": ssl, "generation": generation, "cookie": 5, "netns": 3,
            "local": "127.0.0.1", "remote": "192.0.2.1", "local_port": 1025, "remote_port": 443, "method": NESTED,
            "role": CLIENT, "library": OPENSSL, "tid": pid, "ppid": 1, "uid": 1000, "flags": 3, "comm": b"curl",
            "handshake": generation + 1,
        } | conn  # fmt: skip

    def _conn(self, sent: int, received: int) -> bytes:
        c = self.conn
        family = 0 if not c["local"] else 6 if ":" in c["local"] else 4

        def packed(address: str) -> bytes:
            return (
                socket.inet_pton({4: socket.AF_INET, 6: socket.AF_INET6}[family], address) if address else b""
            )

        return struct.pack(
            "=IIQQQ QQ16s16sHHBBBB IIII16s QQQ",
            c["pid"], c["exec_id"], c["start"], c["ssl"], c["generation"], c["cookie"], c["netns"],
            packed(c["local"]), packed(c["remote"]), c["local_port"], c["remote_port"],
            family, c["method"], c["role"], c["library"], c["tid"], c["ppid"], c["uid"], c["flags"], c["comm"],
            c["handshake"], sent, received,
        )  # fmt: skip

    def record(
        self, kind: int, direction: int = 0, payload: bytes = b"", *, size: int | None = None, took: int = 1
    ) -> bytes:
        """A record of any kind; data moves this direction's offset on by ``size``."""
        size = len(payload) if size is None else size
        self.now += 10
        head = struct.pack(
            "=BBHIQQQQII", kind, direction, 0, len(payload), self.now, self.offsets[direction & 1], size,
            self.now - took, self.conn["tid"], 0,
        )  # fmt: skip
        self.offsets[direction & 1] += size
        return head + self._conn(*self.offsets) + payload

    def sent(self, payload: bytes, **more: int) -> bytes:
        return self.record(records.DATA, records.SENT, payload, **more)

    def received(self, payload: bytes, **more: int) -> bytes:
        return self.record(records.DATA, records.RECEIVED, payload, **more)

    def lose(self, direction: int, size: int) -> None:
        """So many bytes whose record never came."""
        self.offsets[direction] += size

    def handshake(self) -> bytes:
        return self.record(records.HANDSHAKE)

    def eof(self) -> bytes:
        return self.record(records.EOF, records.RECEIVED)

    def close(self) -> bytes:
        return self.record(records.CLOSE)

    def exit(self) -> bytes:
        """The process is gone; nothing but pid and start time is told."""
        head = struct.pack("=BBHIQQQQII", records.EXIT, 0, 0, 0, self.now, 0, 0, 0, 0, 0)
        return (
            head
            + struct.pack("=IIQ", self.conn["pid"], 0, self.conn["start"])
            + bytes(records.CONN_BYTES - 16)
        )


def get(path: str = "/", **headers: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: example.com\r\n{lines}\r\n".encode()


def ok(body: bytes = b"", *, length: bool = True, status: str = "200 OK") -> bytes:
    header = b"Content-Length: %d\r\n" % len(body) if length else b""
    return b"HTTP/1.1 " + status.encode() + b"\r\n" + header + b"\r\n" + body
