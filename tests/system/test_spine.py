"""From a TLS call to an exchange: every fresh process, first request included, with process and socket."""

from __future__ import annotations

import os
import subprocess

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab
from tests.support.servers import Nginx
from tests.support.swarm import FRESH_PYTHON, swarm

FRESH = int(os.environ.get("FRESH", "1009"))


def by_path(exchanges: list[spliff_pb2.Exchange], pid: int, *, own: bool) -> dict[str, spliff_pb2.Exchange]:
    """Exchanges of process ``pid`` (or of all others) by path; asserts that none came twice."""
    found: dict[str, spliff_pb2.Exchange] = {}
    for exchange in exchanges:
        if (exchange.process.pid == pid) == own:
            assert exchange.request.path not in found, f"{exchange.request.path} came twice"
            found[exchange.request.path] = exchange
    return found


def check_both_ends(
    exchanges: list[spliff_pb2.Exchange], server: Nginx, clients: dict[str, int], comm: str
) -> dict[str, spliff_pb2.Exchange]:
    """Every path once at the client (right pid) and once at the server, with mirrored five-tuples."""
    at_server = by_path(exchanges, server.pid, own=True)
    at_client = by_path(exchanges, server.pid, own=False)
    assert at_server.keys() == clients.keys()
    assert at_client.keys() == clients.keys()
    cookies = set()
    for path, pid in clients.items():
        mine, theirs = at_client[path], at_server[path]
        assert mine.process.pid == pid
        assert (mine.process.comm, theirs.process.comm) == (comm, "nginx")
        assert (mine.connection.role, theirs.connection.role) == ("client", "server")
        for side in (mine, theirs):
            assert (side.request.method, side.response.status) == ("GET", 200)
            assert side.completeness.state == "complete"
            assert side.correlation.method == "SOCKET_NESTED"
            assert side.connection.socket_cookie
            cookies.add(side.connection.socket_cookie)
        assert mine.connection.local == theirs.connection.remote
        assert mine.connection.remote == theirs.connection.local
        assert mine.connection.remote.port == server.port
    assert len(cookies) == 2 * len(clients), "a socket cookie stands for one socket"
    return at_client


def test_every_fresh_curl_is_seen_at_both_ends(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    runs = swarm(lab, FRESH, ["curl", "-sk", "-o", "/dev/null", server.url("/hello?n={n}")])
    watch.wait_for(2 * FRESH)
    watch.settle()

    assert watch.losses == []
    check_both_ends(watch.exchanges, server, {f"/hello?n={n}": pid for n, (pid, _) in runs.items()}, "curl")


def test_every_fresh_python_is_seen_with_the_kernels_cookie(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    command = [PYTHON, "-c", FRESH_PYTHON, "127.0.0.1", str(server.port), "/hello?n={n}"]
    runs = swarm(lab, FRESH, command)
    watch.wait_for(2 * FRESH)
    watch.settle()

    assert watch.losses == []
    clients = {f"/hello?n={n}": pid for n, (pid, _) in runs.items()}
    found = check_both_ends(watch.exchanges, server, clients, "python3")
    for number, (_, out) in runs.items():
        cookie, port, status = map(int, out.split())
        exchange = found[f"/hello?n={number}"]
        assert exchange.connection.socket_cookie == cookie
        assert exchange.connection.local.port == port
        assert exchange.response.status == status


def test_curls_cookie_is_what_ss_says(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    server.file("slow.bin", bytes(20_000))
    watch = daemon.watch()
    held = [lab.start("curl", "-sk", "-o", "/dev/null", server.url(f"/slow.bin?{n}")) for n in range(7)]
    cookies: dict[int, int] = {}
    while len(cookies) < len(held):
        listing = subprocess.run(
            ["ss", "-tnpeH", "dst", f"127.0.0.1:{server.port}"], capture_output=True, text=True, check=True
        ).stdout
        for line in listing.splitlines():
            if "pid=" in line and " sk:" in line:
                pid = int(line.split("pid=")[1].split(",")[0])
                cookies[pid] = int(line.split(" sk:")[1].split()[0], 16)
    for process in held:
        assert process.wait(30) == 0
    watch.wait_for(2 * len(held))

    found = {e.process.pid: e.connection.socket_cookie for e in watch.exchanges if e.process.comm == "curl"}
    assert found == {process.pid: cookies[process.pid] for process in held}


def test_who_and_where_is_told(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    done = lab.run("curl", "-sk", "-H", "X-Prime: 7", server.url("/hello"))
    assert done.stdout == b"hello world\n"
    watch.wait_for(2)

    exchange = next(e for e in watch.exchanges if e.connection.role == "client")
    assert exchange.process.exe == "/usr/bin/curl"
    assert exchange.process.cmdline.startswith("curl -sk -H 'X-Prime: 7'")
    assert (exchange.process.uid, exchange.process.user) == (0, "root")
    assert exchange.process.cgroup == f"/{lab.cgroup.name}"
    assert exchange.request.authority == f"127.0.0.1:{server.port}"
    assert ("X-Prime", "7") in [(h.name, h.value) for h in exchange.request.headers]
    assert (exchange.response.reason, exchange.response.body_size) == ("OK", 12)
    assert exchange.tls.library == "openssl"
    assert exchange.tls.handshake_ns > 100_000
    assert exchange.connection.family == "ipv4"
    assert 0 < exchange.start_time_ns <= exchange.first_byte_time_ns <= exchange.end_time_ns
    assert exchange.duration_ns == exchange.end_time_ns - exchange.start_time_ns
