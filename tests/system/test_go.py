"""Go programs, both ends: stripped, many goroutines, stacks that move, HTTP/1.1 and HTTP/2, no socket at all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2
from tests.support import golang
from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab, say, wait_for
from tests.support.servers import Nginx
from tests.support.shared import lab_of_the_file

REQUESTS = 211
SIZE = 9001
RAW = 101
LARGE = 4 << 20
DEPTHS = 211
"""Frames of some 50 bytes: more than a young stack of 8 KiB takes."""
TOOLCHAINS = golang.toolchains()

pytestmark = pytest.mark.skipif(not TOOLCHAINS, reason=golang.WITHOUT)


lab = lab_of_the_file("go")


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = Daemon(lab)
    yield daemon
    statistics = daemon.stop()
    assert "Traceback" not in statistics


class Program:
    """A Go program that the daemon knows, and its server."""

    def __init__(self, lab: Lab, daemon: Daemon, version: str) -> None:
        self.version = version
        self.name = f"go{version}"
        self.path = golang.build(TOOLCHAINS[version], lab.folder, self.name, "-ldflags=-s -w")
        self.process = lab.start(self.path, "server", lab.certificate, lab.key, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.url = f"https://127.0.0.1:{int(self.process.stdout.readline())}"
        self.library = wait_attached(daemon, self.path)


def wait_attached(daemon: Daemon, path: Path) -> spliff_pb2.Library:
    """Until the program is probed; a process of it must run."""
    found: list[spliff_pb2.Library] = []

    def attached() -> bool:
        listed = daemon.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
        found[:] = [one for one in listed if one.path == str(path)]
        return bool(found) and found[0].state == "attached"

    wait_for(attached, 30, f"{path} attached")
    return found[0]


@pytest.fixture(scope="module", params=sorted(TOOLCHAINS))
def program(lab: Lab, daemon: Daemon, request: pytest.FixtureRequest) -> Program:
    return Program(lab, daemon, request.param)


def by_role(watch: Watch, role: str) -> list[spliff_pb2.Exchange]:
    return [one for one in watch.exchanges if one.connection.role == role]


def ends(one: spliff_pb2.Exchange) -> tuple[str, str]:
    local, remote = one.connection.local, one.connection.remote
    return f"{local.address}:{local.port}", f"{remote.address}:{remote.port}"


def lost(daemon: Daemon) -> dict[str, float]:
    """What the kernel side lost; the worker's queue of exchanges that wait for their socket is its own."""
    prefix = 'spliff_lost_total{stage="kernel"'
    return {name: value for name, value in daemon.stats().items() if name.startswith(prefix) and value}


def test_a_stripped_program_is_listed_with_its_sites(program: Program):
    assert program.library.library == "go"
    sites = {(site.symbol, site.placement) for site in program.library.sites}
    for name in ("Read", "Write", "clientHandshake", "serverHandshake"):
        assert {(f"crypto/tls.(*Conn).{name}", where) for where in ("entry", "return")} <= sites
    assert ("crypto/tls.(*Conn).Close", "entry") in sites


@pytest.mark.parametrize("keep", ["close", "keep"])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_every_request_of_many_goroutines(
    lab: Lab, daemon: Daemon, program: Program, protocol: str, keep: str
):
    every_request_of_many_goroutines(lab, daemon, program, protocol, keep)


def every_request_of_many_goroutines(
    lab: Lab, daemon: Daemon, program: Program, protocol: str, keep: str
) -> None:
    """All requests at once: each is seen at both ends, once and whole, over the connection that the program says."""
    watch = daemon.watch(bodies=True)
    which = "h2" if protocol == "http2" else "h1"
    done = lab.run(program.path, "client", program.url, str(REQUESTS), str(SIZE), which, keep)
    assert done.returncode == 0, done.stderr.decode()
    truth = {}
    for line in done.stdout.decode().splitlines():
        number, local, remote = line.split()
        truth[f"/n/{number}?size={SIZE}"] = (local, remote)
    assert len(truth) == REQUESTS
    watch.wait_for(2 * REQUESTS)
    watch.settle()

    assert watch.losses == []
    assert lost(daemon) == {}
    clients, servers = by_role(watch, "client"), by_role(watch, "server")
    assert sorted(one.request.path for one in clients) == sorted(truth)  # the first request included
    assert sorted(one.request.path for one in servers) == sorted(truth)
    for one in (*clients, *servers):
        local, remote = truth[one.request.path]
        assert ends(one) == ((local, remote) if one.connection.role == "client" else (remote, local))
        assert (one.protocol, one.request.method, one.response.status) == (protocol, "POST", 200)
        assert (one.completeness.state, one.correlation.method) == ("complete", "SOCKET_FD")
        assert (one.tls.library, one.process.comm) == ("go", program.name[:15])
        assert (one.process.pid == program.process.pid) == (one.connection.role == "server")
        number = one.request.path.split("/")[2].split("?")[0]
        assert watch.body(one, response=False) == f"{number},".encode() * (SIZE // 4)
        assert watch.body(one, response=True).endswith(b" " + b"s" * SIZE)
    connections = {ends(one) for one in clients}
    say(f"Go {program.version}, {protocol}: {REQUESTS} requests over {len(connections)} connections")
    watch.stop()


@pytest.mark.parametrize("mode", ["plain", "stack", "dropped", "tunnel", "pipe", "wrapped"])
def test_connections_without_net_http(lab: Lab, daemon: Daemon, program: Program, mode: str):
    """Buffers that move with the stack, objects that are collected unclosed, TLS in TLS, no known socket."""
    watch = daemon.watch(bodies=True)
    done = lab.run(program.path, "raw", mode, lab.certificate, lab.key, str(RAW))
    assert done.returncode == 0, done.stderr.decode()
    truth = {
        int(n): (local, remote) for n, local, remote in map(str.split, done.stdout.decode().splitlines())
    }
    watch.wait_for(2 * RAW)
    watch.settle()

    assert watch.losses == []
    assert lost(daemon) == {}
    for one in watch.exchanges:
        assert one.request.path, one
    assert sorted(one.request.path for one in watch.exchanges) == sorted(
        f"/raw/{n}" for n in range(RAW) for _ in range(2)
    )
    for one in watch.exchanges:
        assert watch.body(one, response=True) == b"x" * 800
        number = int(one.request.path.rpartition("/")[2])
        if mode == "pipe":
            assert (one.correlation.method, one.connection.local.port) == ("NONE", 0)
        elif mode == "wrapped":  # no evidence in the kernel: found by timing, or not, but never a wrong one
            assert one.correlation.method in ("NONE", "PROCESS_TIMING")
            assert ends(one) in ((":0", ":0"), truth[number], truth[number][::-1])
        else:
            assert one.correlation.method == "SOCKET_FD"
            assert ends(one) in (truth[number], truth[number][::-1])
    generations = {(one.connection.socket_cookie, one.connection.role) for one in watch.exchanges}
    assert mode in ("pipe", "wrapped") or len(generations) == 2 * RAW
    watch.stop()


def test_a_stack_that_grows_in_write_itself_hides_no_end(lab: Lab, daemon: Daemon, program: Program):
    """Write is entered twice then: it is one call, and when it is over the connection can end."""
    watch = daemon.watch()
    before = daemon.stats()["spliff_connections"]
    arguments = (program.path, "raw", "deep", lab.certificate, lab.key, str(DEPTHS))
    process = lab.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    while process.stdout.readline() != b"closed\n":
        assert process.poll() is None
    watch.wait_for(2 * DEPTHS)
    watch.settle()

    wanted = sorted(f"/raw/{n}" for n in range(DEPTHS) for _ in range(2))
    assert sorted(one.request.path for one in watch.exchanges) == wanted
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert lost(daemon) == {}
    assert daemon.stats()["spliff_connections"] == before  # though the program still runs
    process.stdin.close()
    assert process.wait(10) == 0
    watch.stop()


WAYS = {
    "with symbols": ((), False),
    "position-independent": (("-buildmode=pie",), False),
    "position-independent, stripped": (("-buildmode=pie", "-ldflags=-s -w"), False),
    "linked by gcc": ((), True),
    "linked by gcc, position-independent": (("-buildmode=pie",), True),
}


def test_curl_asks_it_over_http2(lab: Lab, daemon: Daemon, program: Program):
    Nginx(lab)
    daemon.wait_attached()  # to the library that nginx and curl share
    watch = daemon.watch()
    paths = [f"/curl/{n}?size=3" for n in range(101)]
    done = lab.run("curl", "-sk", "--http2", "--parallel", *(program.url + path for path in paths))
    assert done.stdout.count(b" sss") == len(paths)
    watch.wait_for(2 * len(paths))
    watch.settle()

    assert watch.losses == []
    for role in ("client", "server"):
        seen = by_role(watch, role)
        assert sorted(one.request.path for one in seen) == sorted(paths)
        assert {(one.protocol, one.response.status, one.completeness.state) for one in seen} == {
            ("http2", 200, "complete")
        }
    watch.stop()


def test_large_bodies_that_nobody_wants_keep_their_sizes(lab: Lab, daemon: Daemon, program: Program):
    """Up and down at once, several streams of a connection at a time."""
    watch = daemon.watch()
    before = daemon.stats()["spliff_unwanted_bytes_total"]
    done = lab.run(program.path, "client", program.url, "5", str(LARGE), "h2", "keep")
    assert done.returncode == 0, done.stderr.decode()
    watch.wait_for(2 * 5)
    watch.settle()
    watch.stop()
    spared = daemon.stats()["spliff_unwanted_bytes_total"] - before

    assert watch.losses == []
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert {(one.request.body_size, one.response.body_size) for one in watch.exchanges} == {
        (LARGE // 4 * 2, 65 + LARGE)
    }
    share = spared / (2 * 5 * 1.5 * LARGE)
    say(f"Go {program.version}: {share:.1%} was not copied")
    assert share > 0.05


@pytest.mark.parametrize("version", sorted(TOOLCHAINS))
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_build(lab: Lab, daemon: Daemon, version: str, way: str):
    options, cgo = WAYS[way]
    name = f"{version}-{way.replace(', ', '-').replace(' ', '-')}"
    program = golang.build(TOOLCHAINS[version], lab.folder, name, *options, cgo=cgo)
    running = lab.start(program, "server", lab.certificate, lab.key, stdout=subprocess.PIPE)
    assert running.stdout is not None
    port = int(running.stdout.readline())
    library = wait_attached(daemon, program)
    if way == "with symbols":
        symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
        for line in symbols.splitlines():
            name = line.split(maxsplit=2)[2]
            for site in library.sites:
                if site.placement == "entry" and site.symbol == name:
                    assert 0 < site.offset - (int(line.split()[0], 16) - 0x400000) < 32
    watch = daemon.watch()
    done = lab.run("curl", "-sk", f"https://127.0.0.1:{port}/built?size=3")
    assert done.stdout.endswith(b" sss")
    wait_for(lambda: by_role(watch, "server"), 30, "the server's exchange")
    (one,) = by_role(watch, "server")
    assert (one.tls.library, one.request.path, one.response.status) == ("go", "/built?size=3", 200)
    assert one.correlation.method == "SOCKET_FD"
    watch.stop()
    running.terminate()
    running.wait()
    program.unlink()
