"""The daemon as it is, on the ways that this kernel takes: exchanges named, tied to packets, and nothing left.

On 6.1 that is perf-event links, fexit of tcp_sendmsg and tcp_recvmsg, and clsact filters; with ``clsact`` asked for,
on newer kernels too.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from spliffd.kernel import features, ways
from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.leftovers import existing, held, leftovers
from tests.support.servers import Nginx
from tests.support.swarm import swarm

RUNS = 23
RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""For what is expected only; spliff itself never looks at it."""

READY_SECONDS = 120
"""Longest start under emulation; 20 s on an idle machine."""


@pytest.fixture
def lab():
    with Lab("fallback") as lab:
        yield lab


def start(lab: Lab, mode: str) -> Daemon:
    daemon = Daemon(lab, wait=False, config=f'[interfaces]\ninclude = ["lo"]\nmode = "{mode}"\n')
    daemon.wait_ready(READY_SECONDS)
    return daemon


@pytest.mark.parametrize("mode", ["tc", "clsact"])
def test_every_first_request_is_named_and_has_its_packets(lab: Lab, mode: str, record_property):
    daemon = start(lab, mode)
    info = daemon.stub().GetInfo(spliff_pb2.GetInfoRequest())
    told = {feature.name: (feature.state, feature.detail) for feature in info.features}
    for name, (state, detail) in told.items():
        print(f"{name:15}{state:10}{detail}")
        record_property(name, detail)
    assert told["attach"] == ("ok", features.UPROBES[RELEASE >= (6, 6)])
    assert told["sockets"] == ("ok", (ways.TYPED if RELEASE >= (6, 3) else ways.FEXIT).text)
    assert told["older sockets"][0] == "ok"
    tcx = mode == "tc" and RELEASE >= (6, 6)
    assert any(("tcx" if tcx else "clsact") in detail for _, detail in told.values()), told

    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    runs = swarm(lab, RUNS, ["curl", "-sk", "-o", "/dev/null", server.url("/hello?n={n}")], parallel=2)
    watch.wait_for(2 * RUNS, 60)
    watch.settle()

    assert watch.losses == []
    assert len(watch.exchanges) == 2 * RUNS
    assert {e.correlation.method for e in watch.exchanges} == {"SOCKET_NESTED"}
    assert {(e.correlation.wire, e.connection.interface) for e in watch.exchanges} == {("TC", "lo")}
    clients = {e.request.path: e.process.pid for e in watch.exchanges if e.connection.role == "client"}
    assert clients == {f"/hello?n={n}": pid for n, (pid, _) in runs.items()}
    assert len({e.connection.socket_cookie for e in watch.exchanges}) == 2 * RUNS
    assert all(e.completeness.state == "complete" for e in watch.exchanges)
    watch.stop()
    daemon.stop()
    assert "spliff_" not in leftovers()["qdisc"]


def test_a_killed_daemon_leaves_filters_at_most_and_the_next_one_takes_them(lab: Lab):
    before = leftovers()
    daemon = start(lab, "clsact")
    Nginx(lab)
    daemon.wait_attached()
    mine = {one for one in held(list(daemon.pids().values())) if one[0] == "link"}
    assert mine
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait()
    wait_for(lambda: not mine & existing(), 20, "links gone")
    assert "clsact" in leftovers()["qdisc"]
    for place in ("uprobe_events", "kprobe_events", "xdp"):
        assert leftovers().get(place) == before.get(place), place

    start(lab, "clsact").stop()
    assert leftovers()["qdisc"] == before["qdisc"]


def test_connections_older_than_the_daemon_are_seeded(lab: Lab):
    server = Nginx(lab)
    server.file("slow.bin", bytes(200_000))
    held_open = [lab.start("curl", "-sk", "-o", "/dev/null", server.url(f"/slow.bin?{n}")) for n in range(3)]
    daemon = start(lab, "tc")
    info = daemon.stub().GetInfo(spliff_pb2.GetInfoRequest())
    (seeded,) = [feature.detail for feature in info.features if feature.name == "older sockets"]
    assert int(seeded.partition(" ")[0]) >= 2 * len(held_open), seeded
    daemon.stop()
