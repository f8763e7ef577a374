"""K2, tunnels and virtual networks: the packets of an exchange are found on the interface that carries them.

WireGuard (wireguard-go), GRE, IP in IP, VXLAN, a bridge in front of an interface, and containers behind a
bridge. What counts is the inner connection, on the tunnel's own interface; none of them exists when the
daemon starts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.keepalive import KeepAlive
from tests.support.lab import wait_for
from tests.support.thread import FAR, Expected, Stage, check, on_wire, say, stage
from tests.support.tunnels import encapsulation, wireguard

BATCH = 166
"""Requests through a fresh tunnel, through a re-keyed one, through one that restarts: 499 with the last."""
EACH = 53


@pytest.fixture(scope="module")
def golden() -> Iterator[Stage]:
    with stage("tunnel") as made:
        made.start()
        made.servers = (made.serve(),)
        made.daemon.wait_attached()
        yield made


def through(golden: Stage, expected: Expected, count: int, name: str) -> str:
    """``count`` fresh clients over a network; what was seen of them, in words."""
    watch = golden.daemon.watch()
    clients = golden.fetch_each(count, golden.servers[0].url(f"/hello?{name}{{n}}", host=expected.far))
    watch.wait_for(2 * count)
    watch.settle(0.3)
    watch.stop()
    check(watch.exchanges, clients, expected)
    assert watch.losses == []
    return f"{2 * count} of {2 * count} exchanges at both ends on {expected.wire} {','.join(expected.path)}"


def test_wireguard_is_seen_inside(golden: Stage):
    near, _far = wireguard(golden.network, golden.near, golden.far)
    expected = Expected("wg0", "TC", ("wg0",), "10.92.0.1", "10.92.0.2")
    said = [through(golden, expected, BATCH, "up")]
    near.rekey()
    said.append(through(golden, expected, BATCH, "rekeyed"))

    # One that restarts while it is in use: the interface goes, and another comes in its name.
    watch = golden.daemon.watch()
    clients: dict[str, tuple[int, int]] = {}
    # A connection that breaks is made anew by curl: the path is the same, so what broke is told apart below.
    retry = ("--retry", "20", "--retry-all-errors", "--retry-delay", "1", "--connect-timeout", "2")
    url = golden.servers[0].url("/hello?restarted{n}", host=expected.far)
    fetching = threading.Thread(
        target=lambda: clients.update(golden.fetch_each(BATCH + 1, url, *retry, parallel=2))
    )
    fetching.start()
    watch.wait_for(BATCH // 2)
    old = golden.near.index("wg0")
    near.restart()
    assert golden.near.index("wg0") != old
    fetching.join(120)
    watch.settle(0.5)
    watch.stop()
    assert len(clients) == BATCH + 1
    whole = [e for e in watch.exchanges if e.completeness.state == "complete"]
    seen = {(e.connection.role, e.request.path) for e in whole}
    assert seen == {(role, path) for role in ("client", "server") for path in clients}
    survivors = 0
    for exchange in whole:
        # One that lived through the restart has been on two interfaces of that name.
        assert on_wire(exchange) in [("TC", "wg0", ("wg0",)), ("TC", "wg0", ("wg0", "wg0"))], exchange
        survivors += len(exchange.connection.path) - 1
        assert {exchange.connection.local.address, exchange.connection.remote.address} == {
            "10.92.0.1",
            "10.92.0.2",
        }
    say(
        f"wireguard-go: {2 * BATCH + len(clients)} requests: up after the daemon {said[0]}; re-keyed {said[1]}; "
        f"restarted in use {len(whole)} complete, all on TC wg0, {survivors} of them on the old and the new one"
    )


@pytest.mark.parametrize("kind", ["gre", "ipip"])
def test_ip_tunnels_are_seen_inside(golden: Stage, kind: str):
    encapsulation(golden.network, golden.near, golden.far, kind)
    name = f"{kind}0"
    expected = Expected(name, "TC", (name,), "10.94.0.1", "10.94.0.2")
    try:
        say(f"{kind}: {through(golden, expected, EACH, kind)}")
    finally:
        for namespace in (golden.near, golden.far):
            namespace.ip(f"addr flush dev {name}")  # the next one has the same


def test_vxlan_is_seen_inside(golden: Stage):
    golden.network.vxlan(golden.near, golden.far)
    expected = Expected("vxlan0", "TC", ("vxlan0",), "10.93.0.1", "10.93.0.2")
    say(f"vxlan: {through(golden, expected, EACH, 'vxlan')}")


def test_a_bridge_and_its_port_are_a_path(golden: Stage):
    golden.network.bridge(golden.near, "eth0", addresses=("10.91.0.1/24",))
    expected = Expected("br0", "TC", ("br0", "eth0"))
    say(f"bridge: {through(golden, expected, EACH, 'bridge')}")


def test_a_container_behind_the_bridge(golden: Stage):
    """Both ends are in namespaces whose interfaces nobody watches; the host between them forwards."""
    container = golden.network.namespace()
    golden.network.pair(golden.near, container, (), names=("veth7", "eth0"))
    golden.near.ip("link set veth7 master br0")
    container.ip("addr add 10.91.0.7/24 dev eth0")
    watch = golden.daemon.watch()
    inside = Stage(golden.lab, golden.network, container, golden.far, golden.daemon)
    clients = inside.fetch_each(EACH, golden.servers[0].url("/hello?container{n}", host=FAR))
    watch.wait_for(2 * EACH)
    watch.settle(0.3)
    watch.stop()

    expected = Expected("veth7", "TC", ("veth7", "eth0"), near="10.91.0.7")
    check((e for e in watch.exchanges if e.connection.role == "client"), clients, expected, ends=1)
    for exchange in watch.exchanges:
        # The server's first packet comes the other way; or the client's second is its first, whichever is first.
        assert set(on_wire(exchange)[2]) == {"veth7", "eth0"}, exchange
    say(f"container behind a bridge: {2 * EACH} exchanges, clients on TC veth7,eth0")


def test_what_the_client_lists(golden: Stage):
    """A connection through the tunnel, as `spliffctl flows` and `spliffctl watch` tell it."""
    if "wg0" not in golden.near.ip("link show"):
        wireguard(golden.network, golden.near, golden.far)
    port = golden.servers[0].port
    follower = golden.daemon.client("watch", "--count", "2")
    wait_for(lambda: golden.daemon.stats()["spliff_subscribers"] == 1, 30, "a watcher")
    client = KeepAlive(golden.lab, golden.near, "10.92.0.2", port)
    client.ask("/hello?listed")
    shown, _ = follower.communicate(timeout=60)  # both ends are known from here on
    near, far = f"10.92.0.1:{client.port}", f"10.92.0.2:{port}"
    rows: list[str] = []

    def flow_at_both_ends() -> bool:
        table, _ = golden.daemon.client("flows", "--interface", "wg0").communicate(timeout=60)
        rows[:] = table.decode().splitlines()
        return len(rows) == 3  # flows of before are closed one after the other

    wait_for(flow_at_both_ends, 30, "one flow at both ends")
    lines, _ = golden.daemon.client("flows", "--tls", "-o", "json").communicate(timeout=60)
    assert max(map(len, rows)) <= 80, rows
    assert any(f"python3 ({client.pid})" in row and row.endswith(f"{near} → {far}") for row in rows), rows
    assert any("nginx (" in row and row.endswith(f"{far} ← {near}") for row in rows), rows
    flows = [json.loads(line)["flow"] for line in lines.decode().splitlines()]
    (mine,) = (flow for flow in flows if flow["process"].get("pid") == client.pid)
    assert int(mine["connection"]["socket_cookie"]) == client.cookie
    assert (mine["wire"], mine["connection"]["interface"]) == ("TC", "wg0")
    assert [line for line in shown.decode().splitlines() if "← 200" in line and line.endswith("  tc:wg0")]
    client.close()
    say("flows and watch tell of it:\n    " + "\n    ".join([*rows, *shown.decode().splitlines()[-2:]]))


def test_what_the_daemon_tells_of_all_this(golden: Stage):
    """Hooks on every interface, and nothing that looks like trouble."""
    listed = golden.daemon.stub().ListInterfaces(pb.ListInterfacesRequest()).interfaces
    hooks = {one.name: (one.hook, one.mode) for one in listed}
    assert {"lo", "eth0", "wg0", "gre0", "ipip0", "vxlan0", "br0", "veth7"} <= hooks.keys()
    assert set(hooks.values()) == {("TC", "tcx")}
    stats = golden.daemon.stats()
    wait_for(lambda: golden.daemon.stats()["spliff_deferred_pending"] == 0, 30, "an empty retry queue")
    assert stats["spliff_deferred_failures_total"] == 0
    text = golden.daemon.text()
    assert not [line for line in text.splitlines() if "error" in line.lower() or "warning" in line], text
