"""Short-lived processes of a library copy that nobody has ever seen, started at full speed: nearly all first requests
are captured, and the ledger has every other one, with the reason."""

from __future__ import annotations

import os
import shutil

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx
from tests.support.swarm import swarm

FRESH = int(os.environ.get("FRESH", "101"))
"""Processes; 2,003 were run for the figures in the commit."""

SHARE = 0.99
"""Of them whose request is captured. The first few speak before there can be probes in a file that is new."""

FIRST = 5
"""More than one in a hundred of a small number: what may be too early in any case, on any host."""


def test_short_lived_processes_of_a_library_never_seen(lab: Lab, daemon: Daemon, server: Nginx):
    libraries = shutil.copytree(lab.libraries, lab.folder / "never-seen")
    watch = daemon.watch(filter=pb.Filter(comms=["curl"]))
    command = [
        "env",
        f"LD_LIBRARY_PATH={libraries}",
        "curl",
        "-sk",
        "-o",
        "/dev/null",
        server.url("/hello?{n}"),
    ]
    runs = swarm(lab, FRESH, command)
    watch.settle(1.0)
    captured = {exchange.request.path.partition("?")[2]: exchange.process.pid for exchange in watch.exchanges}
    missed = {pid for number, (pid, _) in runs.items() if str(number) not in captured}
    print(f"{len(captured)} of {FRESH} captured; missed {sorted(missed)}")
    assert all(captured[str(number)] == pid for number, (pid, _) in runs.items() if str(number) in captured)
    assert len(missed) <= max(FIRST, (1 - SHARE) * FRESH)

    def told() -> dict[int, str]:
        found = daemon.stub().ListProcesses(pb.ListProcessesRequest()).processes
        return {one.process.pid: one.reason for one in found if one.covered == "not"}

    wait_for(lambda: missed <= told().keys(), 30, f"{sorted(missed)} in the ledger, which has {told()}")
    assert {told()[pid] for pid in missed} <= {"attached_late", "not_inspected", "probes_silent"}
    assert not told().keys() & {pid for number, (pid, _) in runs.items() if str(number) in captured}
