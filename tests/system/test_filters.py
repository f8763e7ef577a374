"""Filters in the daemon against an offline evaluation of everything it has shown."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

from spliffd.pb import spliff_pb2
from tests.support.client import exchanges, interrupted, printing, watchers
from tests.support.daemon import Daemon
from tests.support.lab import PYTHON as SYSTEM_PYTHON
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx
from tests.support.swarm import FRESH_PYTHON, swarm

Keep = Callable[[dict], bool]


def path_like(pattern: str) -> Keep:
    return lambda e: fnmatch.fnmatchcase(e["request"]["path"], pattern)


def status_in(first: int, last: int) -> Keep:
    return lambda e: first <= e["response"]["status"] <= last


def method(name: str) -> Keep:
    return lambda e: e["request"]["method"] == name


def comm(pattern: str) -> Keep:
    return lambda e: fnmatch.fnmatchcase(e["process"]["comm"], pattern)


def host(name: str) -> Keep:
    return lambda e: e["request"]["authority"].rpartition(":")[0] == name


FILTERS: list[tuple[list[str], Keep]] = [
    (["--comm", "curl"], comm("curl")),
    (["--comm", "pyth*", "--comm", "ngi?x"], lambda e: comm("python*")(e) or comm("nginx")(e)),
    (["--host", "localhost"], host("localhost")),
    (["--host", "local*", "--method", "POST"], lambda e: host("localhost")(e) and method("POST")(e)),
    (["--path", "/hello*"], path_like("/hello*")),
    (["--path", "*x=[13]"], path_like("*x=[13]")),
    (["--method", "head", "--method", "POST"], lambda e: method("HEAD")(e) or method("POST")(e)),
    (["--status", "2xx"], status_in(200, 299)),
    (["--status", "404", "--status", "300-399"], lambda e: status_in(404, 404)(e) or status_in(300, 399)(e)),
    (["--status", "5xx"], status_in(500, 599)),
    (
        ["--comm", "curl", "--path", "/oth?r", "--method", "GET", "--status", "200"],
        lambda e: comm("curl")(e) and path_like("/oth?r")(e) and method("GET")(e) and status_in(200, 200)(e),
    ),
    (["--library", "openssl", "--protocol", "h1", "--comm", "nginx"], comm("nginx")),
    (["--user", "nobody"], lambda e: e["process"].get("uid") == 65534),
]


def test_filters_agree_with_an_offline_evaluation(lab: Lab, daemon: Daemon, server: Nginx):
    filters = [
        *FILTERS,
        (["--pid", str(server.pid)], lambda e: e["process"]["pid"] == server.pid),
        (["--pid", str(server.pid), "--comm", "curl"], lambda _: False),
        (["--port", str(server.port)], lambda _: True),
    ]
    files = [lab.folder / f"watched-{n}" for n in range(1 + len(filters))]
    clients = [
        printing(daemon, file, "watch", "-o", "json", *options)
        for file, options in zip(files, ([], *(options for options, _ in filters)), strict=True)
    ]
    watchers(daemon, len(clients))
    server.file("other", b"another\n")
    asked = 0
    for name in ("127.0.0.1", "localhost"):
        for n, path in enumerate(("/hello?x=1", "/missing?x=2", "/moved", "/empty?x=3", "/other")):
            url = f"https://{name}:{server.port}{path}"
            more = (["-I"], ["-d", "a=b"], [], ["-X", "DELETE"], [])[n]
            assert lab.run("curl", "-4sk", "-o", "/dev/null", *more, url).returncode == 0
            asked += 1
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for command in ([], nobody):
        program = [SYSTEM_PYTHON, "-c", FRESH_PYTHON, "127.0.0.1", str(server.port), "/hello?x=3"]
        assert lab.run(*command, *program).returncode == 0
        asked += 1

    def printed(file: Path) -> int:
        text = file.read_text()
        return len(exchanges(text[: text.rfind("\n") + 1]))

    wait_for(lambda: printed(files[0]) >= 2 * asked, 30, "all exchanges")
    interrupted(clients[0])
    population = exchanges(files[0].read_text())
    assert len(population) == 2 * asked
    for (options, keep), client, file in zip(filters, clients[1:], files[1:], strict=True):
        wanted = [e["id"] for e in population if keep(e)]
        wait_for(
            lambda file=file, wanted=wanted: printed(file) >= len(wanted), 30, f"{len(wanted)} for {options}"
        )
        _, err = interrupted(client)
        assert [e["id"] for e in exchanges(file.read_text())] == wanted, options
        assert f"{len(wanted)} exchange" in err or not wanted, err
    kept = [sum(map(keep, population)) for _, keep in filters]
    print(f"{len(population)} exchanges; kept by {len(filters)} filters: {kept}")


def test_a_filter_on_the_executable_misses_no_fresh_process(lab: Lab, daemon: Daemon, server: Nginx):
    """The process is over before anybody asks who it was; the filter must know all the same."""
    watch = daemon.watch(filter=spliff_pb2.Filter(exes=["*/curl"], users=["root"]))
    runs = swarm(lab, 101, ["curl", "-sk", "-o", "/dev/null", server.url("/hello?{n}")])
    watch.wait_for(101)
    watch.settle(0.5)
    assert sorted(e.process.pid for e in watch.exchanges) == sorted(pid for pid, _ in runs.values())
    for exchange in watch.exchanges:
        assert exchange.process.cmdline.startswith("curl -sk")
        assert exchange.process.cgroup == f"/{lab.cgroup.name}"
