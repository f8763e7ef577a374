"""Every kind of frame, by every kind of hook: IPv6, extension headers, IPv4-mapped, VLAN, jumbo, GSO; older
connections; and addresses that two namespaces use at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.keepalive import KeepAlive
from tests.support.lab import wait_for
from tests.support.thread import FAR, FAR6, NEAR, NEAR6, Expected, Stage, check, on_wire, say, stage
from tests.support.vlan import tagged

HOOKS = {"tc": "TC", "clsact": "TC", "xdp": "XDP", "xdp-generic": "XDP"}
IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59
EACH = 7
BIG = 3_000_017
"""A body of this size makes segments of every size that TCP likes."""


@pytest.fixture(scope="module")
def frames() -> Iterator[Stage]:
    """One daemon for all hooks: which one an interface gets is taken over on reload."""
    with stage("frames", mtu=9000) as made:
        made.start('[interfaces]\nmode = "off"\n')
        made.servers = made.serve(), made.serve(mapped=True)
        made.servers[0].file("big.bin", bytes(BIG))
        made.daemon.wait_attached()
        yield made


def reload(golden: Stage, mode: str) -> None:
    """Has every interface on ``mode``, without a restart."""
    (golden.lab.folder / "spliffd.toml").write_text(f'[interfaces]\nmode = "{mode}"\n')
    golden.daemon.process.send_signal(signal.SIGHUP)

    def hooked() -> bool:
        listed = golden.daemon.stub().ListInterfaces(pb.ListInterfacesRequest()).interfaces
        wanted = {"tc": ("TC", "tcx"), "clsact": ("TC", "clsact"), "xdp": ("XDP", "native"),
                  "xdp-generic": ("XDP", "generic")}[mode]  # fmt: skip
        return any((one.name, one.hook, one.mode) == ("eth0", *wanted) for one in listed)

    wait_for(hooked, 30, f"eth0 on {mode}")


def fetched(golden: Stage, expected: Expected, url: str, *options: str) -> None:
    """A few fresh clients; all must be seen at both ends."""
    watch = golden.daemon.watch()
    clients = golden.fetch_each(EACH, url, *options)
    watch.wait_for(2 * EACH)
    watch.stop()
    check(watch.exchanges, clients, expected)


def client_end(exchanges: list[pb.Exchange], path: str) -> pb.Exchange:
    """What was seen of ``path`` at the client."""
    (found,) = (e for e in exchanges if e.connection.role == "client" and e.request.path == path)
    return found


def resent_segments(golden: Stage) -> int:
    """TCP segments sent more than once in both namespaces, by the kernel's own count (RFC 2013)."""
    total = 0
    for namespace in (golden.near, golden.far):
        command = namespace.enter("cat", "/proc/net/snmp")
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        total += int(values[names.index("RetransSegs")])
    return total


def big(golden: Stage, url: str, wire: str, mtu: int) -> str:
    """One large download: its bytes are counted at both ends, headers included, none twice."""
    watch = golden.daemon.watch()
    resent = resent_segments(golden)
    golden.fetch(url)
    watch.wait_for(2)
    watch.stop()
    resent = resent_segments(golden) - resent
    ends = {e.connection.role: e for e in watch.exchanges}
    for exchange in ends.values():
        assert on_wire(exchange) == (wire, "eth0", ("eth0",)), exchange
        assert exchange.response.body_size == BIG
    client, server = ends["client"].connection, ends["server"].connection
    # TLS adds 22 bytes to 16 KiB, Ethernet, IP and TCP 66 to each segment; what TCP sent again counts again.
    most = BIG * (1 + 100 / mtu) + 20_000 + resent * (mtu + 66)
    assert BIG < client.bytes_received < most
    assert 0 < server.bytes_sent < most  # what it has written may still be in the socket's buffer
    return f"{client.packets_received:,} packets, {client.bytes_received:,} bytes for {BIG:,}"


@pytest.mark.parametrize("mode", HOOKS)
def test_every_kind_of_frame(frames: Stage, mode: str):
    golden, wire = frames, HOOKS[mode]
    reload(golden, mode)
    for namespace in (golden.near, golden.far):
        namespace.ip("link set eth0 mtu 9000")
    server, mapped = golden.servers
    v4, v6 = Expected(wire=wire), Expected(wire=wire, near=NEAR6, far=FAR6)
    fetched(golden, v4, server.url("/hello?v4-{n}", host=FAR))
    fetched(golden, v6, server.url("/hello?v6-{n}", host=FAR6))
    fetched(golden, v4, mapped.url("/hello?mapped-server-{n}", host=FAR))
    fetched(golden, v4, server.url("/hello?mapped-both-{n}", host=f"::ffff:{FAR}"))
    jumbo = big(golden, server.url("/big.bin?jumbo", host=FAR), wire, 9000)
    for namespace in (golden.near, golden.far):
        namespace.ip("link set eth0 mtu 1500")
    gso = big(golden, server.url("/big.bin?gso", host=FAR), wire, 1500)

    watch = golden.daemon.watch()
    client = KeepAlive(golden.lab, golden.near, FAR6, server.port, ipv6_options=(IPV6_HOPOPTS, IPV6_DSTOPTS))
    client.ask("/hello?extension-headers")
    client.close()
    watch.wait_for(2)
    watch.stop()
    for exchange in watch.exchanges:
        assert on_wire(exchange) == (wire, "eth0", ("eth0",)), exchange
    assert client_end(watch.exchanges, "/hello?extension-headers").connection.socket_cookie == client.cookie

    with tagged(golden.near, "eth0", 7), tagged(golden.far, "eth0", 7):
        fetched(golden, v4, server.url("/hello?vlan-{n}", host=FAR))
        fetched(golden, v6, server.url("/hello?vlan6-{n}", host=FAR6))
    stats = golden.daemon.stats()
    assert stats[f'spliff_packets_total{{hook="{wire}",kind="malformed"}}'] == 0
    assert stats["spliff_deferred_failures_total"] == 0
    say(
        f"{mode}: IPv4, IPv6, mapped at one and both ends, extension headers, VLAN: all {wire}; "
        f"jumbo {jumbo}; MTU 1500 {gso}"
    )


@pytest.fixture(scope="module")
def golden() -> Iterator[Stage]:
    with stage("older") as made:
        yield made


def test_connections_older_than_the_daemon(golden: Stage):
    server = golden.serve()
    hosts = [(FAR, NEAR), (FAR6, NEAR6)] * 5 + [(FAR, NEAR)]
    clients = [KeepAlive(golden.lab, golden.near, host, server.port) for host, _ in hosts]
    for client in clients:
        client.ask("/hello?before")
    golden.start()
    golden.daemon.wait_attached()
    watch = golden.daemon.watch()
    for number, client in enumerate(clients):
        client.ask(f"/hello?after-{number}")
    watch.wait_for(2 * len(clients))
    watch.stop()

    for number, (client, (far, near)) in enumerate(zip(clients, hosts, strict=True)):
        both = [e for e in watch.exchanges if e.request.path == f"/hello?after-{number}"]
        assert len(both) == 2
        for exchange in both:
            assert on_wire(exchange) == ("TC", "eth0", ("eth0",)), exchange
            assert exchange.correlation.method == "SOCKET_NESTED"
        (mine,) = (e for e in both if e.process.pid == client.pid)
        assert mine.connection.socket_cookie == client.cookie
        assert (mine.connection.local.address, mine.connection.local.port) == (near, client.port)
        assert mine.connection.remote.address == far
    listed = golden.daemon.stub().ListFlows(pb.ListFlowsRequest(pids=[c.pid for c in clients])).flows
    say(
        f"older than the daemon: the next exchange of {len(clients)} connections is on TC eth0 at both ends; "
        f"{len(listed)} of them listed with their process"
    )
    assert {flow.connection.socket_cookie for flow in listed} == {client.cookie for client in clients}
    for client in clients:
        client.close()


def test_the_same_addresses_in_two_networks_are_never_mixed(golden: Stage):
    """Another pair of namespaces, same addresses, same ports, at the same time; nobody watches its wires."""
    if golden.daemon is None:
        golden.start()
    other_near, other_far = golden.network.namespace(), golden.network.namespace()
    golden.network.pair(other_near, other_far)
    server = golden.serve(port=4443)
    twin = Stage(golden.lab, golden.network, other_near, other_far, golden.daemon)
    other = twin.serve(port=4443)
    server.file("big.bin", bytes(BIG))
    golden.daemon.wait_attached()
    watch = golden.daemon.watch()
    ours, theirs = (
        KeepAlive(golden.lab, namespace, FAR, 4443, source_port=40009)
        for namespace in (golden.near, other_near)
    )
    for number in range(EACH):
        theirs.ask(f"/hello?theirs-{number}")
        assert ours.ask("/big.bin") == BIG
        theirs.ask(f"/hello?theirs-again-{number}")
    watch.wait_for(2 * 3 * EACH)
    watch.stop()
    cookies = {golden.near.cookie(): "ours", golden.far.cookie(): "ours", other_near.cookie(): "theirs",
               other_far.cookie(): "theirs"}  # fmt: skip
    tally: dict[tuple[str, str, str], int] = {}
    for exchange in watch.exchanges:
        whose = "theirs" if "theirs" in exchange.request.path else "ours"
        connection = exchange.connection
        assert cookies[connection.netns_cookie] == whose, exchange
        wire, interface, _ = on_wire(exchange)
        if whose == "theirs":
            # Their packets pass no interface of ours: whatever is told of them would be ours.
            assert (wire, interface, connection.bytes_sent, connection.bytes_received) == ("NONE", "", 0, 0)
        if connection.role == "client":
            client = ours if whose == "ours" else theirs
            assert (exchange.process.pid, connection.socket_cookie) == (client.pid, client.cookie)
            if whose == "ours":
                assert wire == "TC", exchange
        key = (whose, connection.role, wire)
        tally[key] = tally.get(key, 0) + 1
    assert sum(tally.values()) == 2 * 3 * EACH
    assert ours.cookie != theirs.cookie
    wait_for(lambda: golden.daemon.stats()["spliff_deferred_pending"] == 0, 30, "an empty retry queue")
    say(
        "same addresses and ports in two networks: "
        + ", ".join(f"{' '.join(k)} {n}" for k, n in sorted(tally.items()))
    )
    del other
    for client in (ours, theirs):
        client.close()
