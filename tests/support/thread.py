"""The stage of the golden thread: a daemon in one network namespace, its peer in another.

``near`` is where the daemon, its interfaces and the clients are, ``far`` is where they call, over a veth pair
(or what a test puts on top of it). Both ends are in the lab's scope. Exchanges are compared with what the
programs themselves say: which process asked for which path from which port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab, say
from tests.support.net import Namespace, Network
from tests.support.servers import Nginx
from tests.support.swarm import swarm

NEAR, FAR = "10.91.0.1", "10.91.0.2"
NEAR6, FAR6 = "fd91::1", "fd91::2"


@dataclass
class Stage:
    """What a test plays on. Without a daemon until ``start``."""

    lab: Lab
    network: Network
    near: Namespace
    far: Namespace
    daemon: Daemon = None  # type: ignore[assignment] - set by start()
    servers: tuple[Nginx, ...] = ()

    def start(self, config: str = "", **options) -> Daemon:
        """Starts the daemon in ``near``; one that runs already is stopped."""
        if self.daemon is not None and self.daemon.process.poll() is None:
            self.daemon.stop()
        self.daemon = Daemon(self.lab, namespace=self.near, config=config, **options)
        return self.daemon

    def serve(self, address: str = "0.0.0.0", **options) -> Nginx:
        """A server in ``far``."""
        return Nginx(self.lab, namespace=self.far, address=address, **options)

    def fetch(self, url: str, *options: str) -> tuple[int, int]:
        """One curl in ``near``: its pid and its port."""
        ((pid, out),) = swarm(self.lab, 1, [*CURL, *options, url], namespace=self.near).values()
        return pid, int(out)

    def fetch_each(
        self, count: int, url: str, *options: str, parallel: int = 4
    ) -> dict[str, tuple[int, int]]:
        """``count`` fresh curls, each with a path of its own ("{n}" in the URL): path -> pid and port."""
        runs = swarm(self.lab, count, [*CURL, *options, url], parallel, namespace=self.near)
        start = url.index("/", len("https://"))
        return {url[start:].replace("{n}", str(n)): (pid, int(out)) for n, (pid, out) in runs.items()}


CURL = ["curl", "-sk", "-m", "20", "-o", "/dev/null", "-w", "%{local_port}"]
"""Says from which port it asked."""


@contextmanager
def stage(name: str, **pair) -> Iterator[Stage]:
    """Lab, two namespaces joined by a veth pair (``pair``: options of ``Network.pair``)."""
    with Lab(name) as lab, Network(name[:4]) as network:
        near, far = network.namespace(), network.namespace()
        network.pair(near, far, **pair)
        found = Stage(lab, network, near, far)
        yield found
        if found.daemon is not None and found.daemon.process.poll() is None:
            found.daemon.stop()


@dataclass
class Expected:
    """What every correlated exchange of a run has in common."""

    interface: str = "eth0"
    wire: str = "TC"
    path: tuple[str, ...] = ("eth0",)
    near: str = NEAR
    far: str = FAR
    method: str = "SOCKET_NESTED"


def check(
    exchanges: Iterable[pb.Exchange],
    clients: dict[str, tuple[int, int]],
    expected: Expected,
    *,
    ends: int = 2,
) -> Counter[str]:
    """Every path of ``clients`` was seen once at each of its ``ends``, complete, with its process, its
    tuple, a cookie of its own, and its packets on the wire; returns a tally for ``say``."""
    seen: dict[tuple[str, str], pb.Exchange] = {}
    for exchange in exchanges:
        path, role = exchange.request.path, exchange.connection.role
        if path in clients:
            assert (role, path) not in seen, f"{path} came twice from the {role}"
            seen[role, path] = exchange
    roles = ("client", "server")[:ends]
    missing = [(role, path) for role in roles for path in clients if (role, path) not in seen]
    assert not missing, f"{len(missing)} missed, such as {missing[:3]}"
    tally: Counter[str] = Counter()
    cookies = set()
    for (role, path), exchange in seen.items():
        pid, port = clients[path]
        connection = exchange.connection
        near, far = (connection.local, connection.remote)[:: 1 if role == "client" else -1]
        assert (near.address, near.port, far.address) == (expected.near, port, expected.far), (path, exchange)
        if role == "client":
            assert exchange.process.pid == pid
        assert exchange.completeness.state == "complete"
        assert exchange.response.status == 200
        assert exchange.correlation.method == expected.method
        assert connection.socket_cookie
        cookies.add(connection.socket_cookie)
        assert on_wire(exchange) == (expected.wire, expected.interface, expected.path), (path, exchange)
        sent, received = connection.packets_sent, connection.packets_received
        if role == "client":  # its handshake and the request went out, the answer came in
            assert (sent >= 4, received >= 3) == (True, True), exchange
            assert (connection.bytes_sent > 500, connection.bytes_received > 500) == (True, True), exchange
        else:  # a server's answer may be on its way to the interface still, and its client's hello behind it
            assert sent + received >= 1, exchange
        tally[role] += 1
    assert len(cookies) == len(seen), "a socket cookie stands for one socket"
    return tally


def on_wire(exchange: pb.Exchange) -> tuple[str, str, tuple[str, ...]]:
    """Hook, interface, and the path's interfaces."""
    connection = exchange.connection
    return exchange.correlation.wire, connection.interface, tuple(hop.interface for hop in connection.path)


def share(watch: Watch, wanted: int) -> str:
    """How many came with packets, in words."""
    with_wire = sum(1 for exchange in watch.exchanges if exchange.correlation.wire not in ("", "NONE"))
    return f"{with_wire:,} of {wanted:,} exchanges with packets ({with_wire / wanted:.2%})"


__all__ = [
    "CURL",
    "FAR",
    "FAR6",
    "NEAR",
    "NEAR6",
    "Expected",
    "Stage",
    "check",
    "on_wire",
    "say",
    "share",
    "stage",
]
