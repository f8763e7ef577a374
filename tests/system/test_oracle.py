"""Against an independent witness: tshark with the programs' keys sees the same exchanges, one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.http_programs import HttpServer, content, http_client
from tests.support.lab import Lab, say, wait_for
from tests.support.oracle import Oracle, Seen
from tests.support.servers import Nginx
from tests.support.swarm import swarm
from tests.support.websockets import WebSocketServer, websocket_client

SIZES = (0, 1, 16_384, 100_003)
FIXED = ("/hello", "/missing", "/moved", "/empty")
AT_LEAST = 499
LONG = ("_ext_16", "_ext_64")
"""tshark's names of a WebSocket frame's longer lengths, behind that of the short one."""


def of_spliff(exchange: spliff_pb2.Exchange) -> Seen:
    """What the oracle can know of an exchange, as spliff says it."""
    request, response = exchange.request, exchange.response
    return Seen(request.method, request.path, response.status, request.body_size, response.body_size)


def begun_ns(exchange: spliff_pb2.Exchange) -> int:
    """When the request began, in nanoseconds since 1970."""
    return exchange.start_time_ns


def by_connection(exchanges: list[spliff_pb2.Exchange], role: str) -> dict[tuple[int, int], list[Seen]]:
    """One end's exchanges by (client's port, server's port), in the order of their requests."""
    found: dict[tuple[int, int], list[Seen]] = {}
    for exchange in sorted(exchanges, key=begun_ns):
        connection = exchange.connection
        if connection.role == role:
            assert exchange.completeness.state == "complete"
            ports = (connection.local.port, connection.remote.port)
            found.setdefault(ports if role == "client" else ports[::-1], []).append(of_spliff(exchange))
    return found


def curls(lab: Lab, nginx: Nginx, keylog: str, number: int) -> int:
    """Several curls, each with many URLs on one connection; returns how many requests they made."""
    paths = [*(f"/{size}.bin" for size in SIZES), *FIXED]
    made = 0
    for options in (
        [], ["--tls-max", "1.2"], ["-I"], ["-d", "x" * 997], ["-X", "DELETE"],
        ["--data-binary", f"@{nginx.root}/16384.bin"], ["-H", "Connection: close"],
    ):  # fmt: skip
        urls = [argument for n, path in enumerate(paths) for argument in
                ("-o", "/dev/null", nginx.url(f"{path}?run={number}&n={n}"))]  # fmt: skip
        done = lab.run("curl", "-sk", *options, *urls, env={"SSLKEYLOGFILE": keylog})
        assert done.returncode == 0, done.stderr
        made += len(paths)
    return made


def python_steps(number: int) -> list[dict[str, Any]]:
    """One kept connection of a python client."""
    steps: list[dict[str, Any]] = []
    for size in SIZES:
        steps += [
            {"path": f"/down?run={number}&seed=3&total={size}&size=4099"},
            {"path": f"/down?run={number}&seed=3&total={size}&size=997&chunked=1"},
            {"path": f"/down?run={number}&seed=3&total={size}", "method": "HEAD"},
            {"path": f"/up?run={number}", "method": "PUT", "seed": 5, "total": size, "size": 16_385},
            {"path": f"/up?run={number}", "method": "POST", "seed": 5, "total": size, "size": 991,
             "chunked": True},
        ]  # fmt: skip
    return [*steps, {"path": "/empty"}, {"path": "/same"}, {"path": f"/plain/{number}"}]


def test_tshark_sees_the_same_exchanges(lab: Lab, daemon: Daemon):
    nginx = Nginx(lab, tls="ssl_protocols TLSv1.2 TLSv1.3;")
    server = HttpServer(lab)
    for size in SIZES:
        nginx.file(f"{size}.bin", content(size, size))
    oracle = Oracle(lab, [nginx.port, server.port])
    keylog = str(oracle.keylog)
    watch = daemon.watch()

    made = sum(curls(lab, nginx, keylog, number) for number in range(5))
    for number in range(7):
        steps = python_steps(number)
        http_client(lab, server.port, steps, keylog=keylog)
        made += len(steps)
    fresh = ["env", f"SSLKEYLOGFILE={keylog}", "curl", "-sk", "-o", "/dev/null", nginx.url("/hello?n={n}")]
    made += len(swarm(lab, 67, fresh))
    assert made >= AT_LEAST
    watch.wait_for(2 * made)
    watch.settle(0.3)

    assert watch.losses == []
    truth = oracle.exchanges()
    assert sum(map(len, truth.values())) == made
    for role in ("client", "server"):
        mine = by_connection(watch.exchanges, role)
        assert mine.keys() == truth.keys()
        for ports, exchanges in truth.items():
            assert mine[ports] == exchanges
    kinds = {(one.method, one.status) for exchanges in truth.values() for one in exchanges}
    assert {("GET", 200), ("GET", 404), ("GET", 302), ("GET", 204), ("HEAD", 200), ("POST", 200)} <= kinds
    say(f"tshark and spliff agree on {made:,} exchanges on {len(truth):,} connections, at both ends")


def test_tshark_counts_the_same_streams_and_messages(lab: Lab, daemon: Daemon):
    """HTTP/2 streams by their paths, WebSocket messages by type and size."""
    nginx, socket = Nginx(lab, http2=True), WebSocketServer(lab, deflate=False)
    oracle = Oracle(lab, [nginx.port, socket.port])
    keylog = str(oracle.keylog)
    watch = daemon.watch(messages=True)
    paths = [f"/hello?stream={number}" for number in range(53)]
    done = lab.run(
        "curl", "-sk", "--http2", "--parallel", *map(nginx.url, paths), env={"SSLKEYLOGFILE": keylog}
    )
    assert done.stdout == b"hello world\n" * len(paths)
    steps = [{"text": "x", "times": size} for size in (0, 1, 125, 126, 65_535, 65_536)]
    websocket_client(
        lab, socket.port, [*steps, {"text": "burst 31", "answers": 31}], deflate=False, keylog=keylog
    )
    sent = len(steps) + 1 + len(steps) + 31 + 2  # texts up and down, and both closes
    watch.wait_for(2 * (len(paths) + 1))
    wait_for(lambda: len(watch.items) >= 2 * sent, 30, f"{2 * sent} messages")
    watch.settle(0.5)
    watch.stop()
    oracle.stop()

    streams = Counter()
    for packet in oracle.packets("http2.headers.path", ("http2.headers.path",)):
        streams.update(packet["http2.headers.path"].split(","))
    messages = Counter()
    length = "websocket.payload_length"
    for packet in oracle.packets(
        "websocket", ("websocket.opcode", length, *(length + more for more in LONG))
    ):
        longer = {
            size: iter(packet[length + more].split(","))
            for size, more in zip(("126", "127"), LONG, strict=True)
        }
        short = packet[length].split(",")
        sizes = [int(next(longer[size]) if size in longer else size) for size in short]
        messages.update(zip(packet["websocket.opcode"].split(","), sizes, strict=True))
    opcodes = {"text": "1", "close": "8"}
    for role in ("client", "server"):
        seen = [one for one in watch.exchanges if one.connection.role == role and one.protocol == "http2"]
        assert Counter(one.request.path for one in seen) == streams
        told = [item.message for item in watch.items if item.message.connection.role == role]
        assert Counter((opcodes[one.type], one.size) for one in told) == messages
    assert (streams.total(), messages.total()) == (len(paths), sent)
    say(f"tshark and spliff agree on {streams.total()} streams and {messages.total()} messages, at both ends")
