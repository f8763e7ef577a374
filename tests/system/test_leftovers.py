"""However spliffd ends, nothing of it stays: no process, link, program, map, filter or socket in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.leftovers import existing, held, leftovers
from tests.support.servers import Nginx
from tests.system.test_restarts import descendants

ALONE = ("net", "xdp", "qdisc", "uprobe_events")
"""What nobody else on this host changes meanwhile; links, programs and maps are compared by id."""


def at_cgroup(lab: Lab) -> str:
    done = subprocess.run(
        ["bpftool", "cgroup", "show", lab.cgroup], capture_output=True, text=True, check=False
    )
    return done.stdout


def alive(pid: int) -> bool:
    """Whether it runs; what has ended and waits for some init to take note of it does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(lab: Lab, number: signal.Signals):
    server = Nginx(lab)
    before = {name: text for name, text in leftovers().items() if name in ALONE}
    daemon = Daemon(lab)
    watch = daemon.watch()
    assert lab.run("curl", "-sk", server.url()).returncode == 0
    watch.wait_for(2)
    family = {daemon.process.pid, *descendants(daemon.process.pid)}
    mine = held(list(family))
    kinds = {kind: sum(1 for k, _ in mine if k == kind) for kind in ("link", "prog", "map")}
    assert len(family) >= 4  # supervisor, worker, api, inspector
    assert kinds["link"] >= 4
    assert mine <= existing()
    assert "sock_ops" in at_cgroup(lab)

    began = time.monotonic()
    os.kill(daemon.process.pid, number)
    daemon.process.wait(30)
    ended = time.monotonic()
    wait_for(lambda: not any(alive(pid) for pid in family), 30, "all children gone")
    children = time.monotonic() - ended
    wait_for(lambda: not (mine & existing()), 30, "all links, programs and maps gone")
    gone = time.monotonic() - began
    assert at_cgroup(lab).strip() == ""
    assert {name: text for name, text in leftovers().items() if name in ALONE} == before
    print(f"{number.name}: {kinds}; children gone {children:.3f} s later, everything after {gone:.2f} s")


def test_the_socket_of_a_dead_daemon_is_in_nobodys_way(lab: Lab):
    server = Nginx(lab)
    dead = Daemon(lab)
    dead.process.kill()
    dead.process.wait()
    assert dead.socket.exists()  # nobody was there to remove it
    client = dead.client("status")
    assert client.wait(30) == 69

    daemon = Daemon(lab)
    watch = daemon.watch()
    assert lab.run("curl", "-sk", server.url()).returncode == 0
    watch.wait_for(2)
    daemon.stop()
    assert not daemon.socket.exists()


def test_starts_and_ends_add_nothing_up(lab: Lab):
    """Three lives of a worker in one daemon: the supervisor's descriptors stay what they were."""
    daemon = Daemon(lab)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    daemon.stats()
    # What it opens for a moment, as it starts, is closed again: the fewest of a second.
    first = min(descriptors() for _ in range(20) if not time.sleep(0.05))
    for _ in range(2):
        pids = daemon.pids()
        os.kill(pids["worker 0"], signal.SIGKILL)
        gone = (0, pids["worker 0"])
        wait_for(lambda gone=gone: daemon.pids()["worker 0"] not in gone, 30, "another worker")
    wait_for(lambda: descriptors() == first, 30, f"{first} descriptors, not {descriptors()}")
    daemon.stop()
