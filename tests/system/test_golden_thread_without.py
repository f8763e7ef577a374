"""What is left without packet hooks, and without looking at socket operations: less evidence, and it says so.

Without hooks a socket is still named (``SOCKET_*``). Where no socket is named either (socket observation off,
and curl never calls SSL_set_fd), a process's only fitting flow is claimed as ``PROCESS_TIMING`` with low
confidence. What is claimed is compared with the port that curl itself says it had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.swarm import swarm
from tests.support.thread import FAR, NEAR, Stage, on_wire, say, stage

COUNT = 211
PARALLEL = 53
"""Processes with two connections at once."""
RIGHT = 0.95

OFF = '[interfaces]\nmode = "off"\n'
UNOBSERVED = "[capture]\nsocket_observation = false\n"


@pytest.fixture(scope="module")
def golden() -> Iterator[Stage]:
    with stage("without") as made:
        made.servers = (made.serve(), made.serve())
        yield made


def outcome(exchange: pb.Exchange, ports: dict[str, int]) -> str:
    """right, wrong, or unclaimed."""
    connection = exchange.connection
    if exchange.correlation.method == "NONE":
        assert not connection.socket_cookie, exchange
        assert connection.local.port == 0, exchange
        return "unclaimed"
    assert (exchange.correlation.method, exchange.correlation.confidence) == ("PROCESS_TIMING", "low"), (
        exchange
    )
    right = (NEAR, ports[exchange.request.path], FAR) == (
        connection.local.address,
        connection.local.port,
        connection.remote.address,
    )
    return "right" if right and connection.socket_cookie else "wrong"


def test_without_packet_hooks_the_socket_is_named(golden: Stage):
    daemon = golden.start(OFF)
    daemon.wait_attached()
    watch = daemon.watch()
    clients = golden.fetch_each(COUNT, golden.servers[0].url("/hello?off{n}", FAR))
    watch.wait_for(2 * COUNT)
    watch.settle(0.2)
    stats = daemon.stats()
    watch.stop()

    ports = {path: port for path, (_, port) in clients.items()}
    for exchange in watch.exchanges:
        connection = exchange.connection
        near, _ = (connection.local, connection.remote)[:: 1 if connection.role == "client" else -1]
        assert near.port == ports[exchange.request.path]
        assert connection.socket_cookie
        assert on_wire(exchange) == ("NONE", "", ())
        assert exchange.correlation.attempts == 0  # nobody waits for packets that nobody sees
    methods = Counter(exchange.correlation.method for exchange in watch.exchanges)
    assert methods == {"SOCKET_NESTED": 2 * COUNT}
    assert stats["spliff_deferred_failures_total"] == 0
    out, _ = daemon.client("status").communicate()
    assert "packet hooks are switched off in the configuration" in out.decode()
    daemon.stop()
    say(f"packet hooks off: {dict(methods)} of {2 * COUNT} exchanges at both ends, right tuple and cookie")


@pytest.mark.parametrize(("hooks", "wire"), [(OFF, "NONE"), ("", "TC")], ids=["hooks off", "hooks on"])
def test_without_a_socket_the_only_fitting_flow_is_claimed(golden: Stage, hooks: str, wire: str):
    daemon = golden.start(UNOBSERVED + hooks)
    daemon.wait_attached()
    watch = daemon.watch(filter=pb.Filter(comms=["curl"]))
    clients = golden.fetch_each(COUNT, golden.servers[0].url("/hello?one{n}", FAR))
    watch.wait_for(COUNT)
    watch.settle(0.2)
    single = list(watch.exchanges)

    # Two connections at once, same server program, same sizes: what cannot be told apart is nobody's.
    urls = [server.url(f"/hello?{name}{{n}}", FAR) for name, server in zip("ab", golden.servers, strict=True)]
    say_port = ["curl", "-sk", "-m", "20", "-Z", "-w", "%{local_port} %{url_effective}\n"]
    quiet = [word for url in urls for word in ("-o", "/dev/null", url)]
    runs = swarm(golden.lab, PARALLEL, [*say_port, *quiet], namespace=golden.near)
    watch.wait_for(COUNT + 2 * PARALLEL)
    watch.settle(0.2)
    watch.stop()
    daemon.stop()

    ports = {path: port for path, (_, port) in clients.items()}
    tally = Counter(outcome(exchange, ports) for exchange in single)
    for exchange in single:
        assert exchange.process.pid == clients[exchange.request.path][0]
        if exchange.correlation.method == "PROCESS_TIMING":
            assert on_wire(exchange)[0] == wire, exchange
    double_ports = {}
    for _, out in runs.values():
        for line in out.splitlines():
            port, url = line.split()
            double_ports["/" + url.split("/", 3)[3]] = int(port)
    doubles = [e for e in watch.exchanges if e.request.path in double_ports]
    assert len(doubles) == 2 * PARALLEL
    double = Counter(outcome(exchange, double_ports) for exchange in doubles)
    say(
        f"no socket named, hooks {'on' if wire == 'TC' else 'off'}: {COUNT} processes with one flow: {dict(tally)} "
        f"({tally['right'] / COUNT:.1%} right); {PARALLEL} with two at once: {dict(double)}"
    )
    assert (tally["wrong"], double["wrong"]) == (0, 0)
    assert tally["right"] >= RIGHT * COUNT
