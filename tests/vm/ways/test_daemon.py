"""The daemon as it is, on the ways that this kernel takes: exchanges named, tied to packets, and nothing left.

On 6.1 that is perf-event links, fexit of tcp_sendmsg and tcp_recvmsg, and clsact filters; with ``clsact`` asked for,
on newer kernels too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from spliffd.kernel import features, ways
from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab, wait_for
from tests.support.leftovers import existing, held, leftovers
from tests.support.servers import Nginx
from tests.support.swarm import swarm
from tests.vm.inside.guest import BY_KERNEL, doctor_figures, figure, in_use_figures

RUNS = 23
RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""For what is expected only; spliff itself never looks at it."""

HAS_TCX = RELEASE >= (6, 6)
"""And uprobe_multi, of the same kernel."""

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


def test_the_doctor_knows_the_ways():
    told = subprocess.run(
        [sys.executable, "-m", "spliffd", "doctor"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    doctor_figures(told.stdout, *BY_KERNEL)


@pytest.mark.parametrize("mode", ["tc", "clsact"] if HAS_TCX else ["tc"])
def test_every_first_request_is_named_and_has_its_packets(lab: Lab, mode: str):
    before = leftovers()
    server = Nginx(lab)
    server.file("slow.bin", bytes(4_000_000))
    older = [lab.start("curl", "-sk", "-o", "/dev/null", server.url(f"/slow.bin?{n}")) for n in range(3)]
    wait_for(lambda: connections(server.port) >= len(older), 30, "connections older than the daemon")
    daemon = start(lab, mode)
    assert all(one.poll() is None for one in older)
    tcx = mode == "tc" and HAS_TCX
    packets = f"interfaces: 1 on TC {'tcx' if tcx else 'clsact'}"
    # Filters first, links when there is time for them.
    wait_for(lambda: features_of(daemon)["packets"] == ("ok", packets), READY_SECONDS, packets)
    told = features_of(daemon)
    if mode == "tc":
        in_use_figures({name: detail for name, (_, detail) in told.items()})
    assert told["attach"] == ("ok", features.UPROBES[HAS_TCX])
    assert told["sockets"] == ("ok", (ways.TYPED if RELEASE >= (6, 3) else ways.FEXIT).text)
    assert int(told["older sockets"][1].partition(" ")[0]) >= 2 * len(older), told
    for one in older:
        one.kill()

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
    figure(
        f"first requests, {told['packets'][1]}",
        f"{2 * RUNS} of {2 * RUNS} ends of {RUNS} fresh processes named, with packets",
    )
    watch.stop()
    if tcx:
        daemon.stop()
        assert leftovers()["qdisc"] == before["qdisc"]
        return

    mine = {one for one in held(list(daemon.pids().values())) if one[0] == "link"}
    assert mine
    daemon.process.kill()
    daemon.process.wait()
    wait_for(lambda: not mine & existing(), 30, "links gone")
    assert "clsact" in leftovers()["qdisc"]
    for place in ("uprobe_events", "kprobe_events", "xdp"):
        assert leftovers().get(place) == before.get(place), place
    start(lab, mode).stop()
    assert leftovers()["qdisc"] == before["qdisc"]
    figure("a killed daemon's filters", "none left after the next daemon's life; links went with it")


def features_of(daemon: Daemon) -> dict[str, tuple[str, str]]:
    """State and detail of each, as it is now."""
    info = daemon.stub().GetInfo(spliff_pb2.GetInfoRequest())
    return {feature.name: (feature.state, feature.detail) for feature in info.features}


def connections(port: int) -> int:
    """Established connections to a port of this machine."""
    told = subprocess.run(
        ["ss", "-Htn", "state", "established", f"dport = :{port}"], capture_output=True, text=True, check=True
    )
    return len(told.stdout.splitlines())
