"""Connections that nobody watches are left out under load, counted, and there again for whoever comes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.keepalive import KeepAlive
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx

ASKED = 53
LARGE = 31 << 20


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = Daemon(lab, config="[capture]\nunwatched_rate = 1\n")
    yield daemon
    daemon.stop()


def counted(daemon: Daemon) -> tuple[int, int]:
    """Exchanges taken apart, and those only counted."""
    stats = daemon.stats()
    seen = sum(n for key, n in stats.items() if key.startswith("spliff_exchanges_total"))
    return int(seen), int(stats["spliff_unsampled_exchanges_total"])


def test_a_watcher_finds_connections_that_were_left_out(lab: Lab, daemon: Daemon, server: Nginx):
    first, second = (KeepAlive(lab, None, "127.0.0.1", server.port) for _ in range(2))
    made = 0

    def left_out(client: KeepAlive) -> bool:
        """Neither end of its next exchange is taken apart."""
        nonlocal made
        before = counted(daemon)[1]
        client.ask("/hello")
        made += 1
        wait_for(lambda: sum(counted(daemon)) >= 2 * made, 30, "the exchange")
        return counted(daemon)[1] == before + 2

    for client in (first, second):
        wait_for(lambda client=client: left_out(client), 60, "a connection left out")
    watch = daemon.watch(filter=spliff_pb2.Filter(pids=[first.pid]))
    unsampled = counted(daemon)[1]
    for number in range(ASKED):
        first.ask(f"/hello?n={number}")
        second.ask("/hello")
    watch.wait_for(ASKED)
    watch.settle(0.3)
    watch.stop()
    made += 2 * ASKED
    wait_for(lambda: left_out(first), 60, "a connection left out again")

    assert [one.request.path for one in watch.exchanges] == [f"/hello?n={n}" for n in range(ASKED)]
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert {one.connection.role for one in watch.exchanges} == {"client"}
    assert watch.losses == []
    assert counted(daemon)[1] > unsampled  # of the other client and of the server, some
    assert sum(counted(daemon)) == 2 * made
    losses = {key: n for key, n in daemon.stats().items() if key.startswith("spliff_lost_total") and n}
    assert losses == {}
    for client in (first, second):
        client.close()


@pytest.mark.parametrize("by", ["container", "unit"])
def test_watchers_of_a_container_or_unit_get_it_and_the_others_are_left_out(
    lab: Lab, daemon: Daemon, server: Nginx, by: str
):
    number = "5f" * 32
    inside = lab.cgroup / f"system.slice/docker-{number}.scope"
    inside.mkdir(parents=True)

    def ask(name: str, cgroup: Path | None) -> None:
        urls = [server.url(f"/hello?{name}={n}") for n in range(ASKED)]
        done = lab.start("curl", "-sk", "-o", "/dev/null", *urls, cgroup=cgroup, stdout=subprocess.DEVNULL)
        assert done.wait(60) == 0

    wanted = {"container": spliff_pb2.Filter(containers=[number[:12]]),
              "unit": spliff_pb2.Filter(units=["docker-5f*.scope"])}[by]  # fmt: skip
    watch = daemon.watch(filter=wanted)

    def left_out() -> bool:
        """Cgroups are judged while others go on: until then nobody is left out for them."""
        before = counted(daemon)[1]
        ask("outside", None)
        return counted(daemon)[1] >= before + ASKED

    wait_for(left_out, 60, "connections left out")
    ask("inside", inside)
    watch.wait_for(ASKED)
    watch.settle(0.3)
    watch.stop()

    assert [one.request.path for one in watch.exchanges] == [f"/hello?inside={n}" for n in range(ASKED)]
    assert {one.process.container_id for one in watch.exchanges} == {number}
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert watch.losses == []


def test_http2_is_taken_apart_whoever_watches(lab: Lab, daemon: Daemon):
    server = Nginx(lab, http2=True)
    daemon.wait_attached()
    urls = [server.url(f"/hello?n={n}") for n in range(ASKED)]
    done = lab.run("curl", "-sS", "--http2", "-k", *urls)
    assert done.returncode == 0, done.stderr

    def seen() -> int:
        stats = daemon.stats()
        return sum(
            int(n)
            for key, n in stats.items()
            if key.startswith("spliff_exchanges_total") and '"http2"' in key
        )

    wait_for(lambda: seen() == 2 * ASKED, 30, "every exchange")
    assert counted(daemon) == (2 * ASKED, 0)


def test_a_large_body_that_nobody_wants_is_counted_and_not_copied(lab: Lab, daemon: Daemon, server: Nginx):
    server.file("large.bin", bytes(LARGE))
    heads = daemon.watch()
    done = lab.run(
        "curl",
        "-sSk",
        "--limit-rate",
        "16M",
        "-o",
        "/dev/null",
        server.url("/large.bin"),
        server.url("/hello"),
    )
    assert done.returncode == 0, done.stderr
    heads.wait_for(4)
    stats = daemon.stats()
    heads.stop()

    assert heads.losses == []
    assert {one.completeness.state for one in heads.exchanges} == {"complete"}
    assert sorted(one.response.body_size for one in heads.exchanges) == [12, 12, LARGE, LARGE]
    captured = sum(n for key, n in stats.items() if key.startswith("spliff_captured_bytes_total"))
    assert captured + stats["spliff_unwanted_bytes_total"] > 2 * LARGE
    assert stats["spliff_unwanted_bytes_total"] > 0
    assert stats['spliff_lost_total{stage="worker",reason="gap"}'] == 0


def test_relocated_probes_prove_themselves_on_the_first_calls(lab: Lab, daemon: Daemon, server: Nginx):
    client = KeepAlive(lab, None, "127.0.0.1", server.port)

    def passed() -> bool:
        client.ask("/hello")
        return daemon.stats()['spliff_placements_total{result="passed"}'] >= 1

    wait_for(passed, 60, "enough calls")
    client.close()

    assert daemon.stats()['spliff_placements_total{result="taken_back"}'] == 0
    path = str(lab.libraries / "libssl.so.3")
    (library,) = [
        one
        for one in daemon.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
        if one.path == path
    ]
    proofs = {site.symbol: site.proof for site in library.sites}
    for symbol in ("ssl_read_internal", "ssl_write_internal"):
        assert "self-test passed: of " in proofs[symbol]
        assert proofs[symbol].endswith(" and 0 differently")


def in_cgroup(lab: Lab, name: str) -> Path:
    folder = lab.cgroup / name
    folder.mkdir()
    return folder


def test_a_watcher_of_a_unit_gets_a_service_that_starts_later_from_its_first_request_on(
    lab: Lab, daemon: Daemon, server: Nginx
):
    other = in_cgroup(lab, "other.service")
    outside = KeepAlive(lab, None, "127.0.0.1", server.port)
    outside.ask("/hello")  # the library is probed
    before = counted(daemon)[1]
    watch = daemon.watch(filter=spliff_pb2.Filter(units=["shop.service"]))
    shop = in_cgroup(lab, "shop.service")
    for number in range(7):
        for folder, path in ((shop, f"shop?n={number}"), (other, "other")):
            client = lab.start("curl", "-sSk", server.url(f"/hello?{path}"), cgroup=folder)
            assert client.wait(30) == 0
    for _ in range(ASKED):
        outside.ask("/hello")
    watch.wait_for(7)
    watch.settle(0.3)
    watch.stop()

    assert [one.request.path for one in watch.exchanges] == [f"/hello?shop?n={n}" for n in range(7)]
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert {one.process.unit for one in watch.exchanges} == {"shop.service"}
    assert watch.losses == []
    assert counted(daemon)[1] > before  # of the others, some are counted only
    outside.close()
