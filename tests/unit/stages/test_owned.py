"""Own processes only: by who had the pid when the flow began, with real processes of two users."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from spliffd.attribution.processes import Processes
from spliffd.kernel.flows import Flow
from spliffd.stages.owned import Owned

NOBODY = 65534


@pytest.fixture
def theirs() -> Iterator[int]:
    """A process of another user."""
    if os.geteuid():
        pytest.fail("only root can have a process of another user")
    with subprocess.Popen(["setpriv", f"--reuid={NOBODY}", "sleep", "60"]) as process:
        while os.stat(f"/proc/{process.pid}").st_uid != NOBODY:
            time.sleep(0.005)
        yield process.pid
        process.kill()


@pytest.fixture
def owned() -> Owned:
    return Owned(Processes())


def flow(pid: int, began_ns: int) -> Flow:
    return Flow(
        first_ns=began_ns, last_ns=began_ns, closed_ns=0, netns_cookie=1, local=bytes(16), remote=bytes(16),
        local_port=1, remote_port=2, family=4, role=1, hops=(), flags=0, tgid=pid, state=1, tcp_sent=0,
        tcp_received=0,
    )  # fmt: skip


def test_flows_are_those_of_the_users_processes(owned, theirs):
    now = time.monotonic_ns()
    flows = [(1, flow(os.getpid(), now)), (2, flow(theirs, now)), (3, flow(0, now)), (4, flow(theirs, now))]
    assert [cookie for cookie, _ in owned.flows(NOBODY, flows)] == [2, 4]
    assert [cookie for cookie, _ in owned.flows(os.getuid(), flows)] == [1]
    assert owned.flows(4_000_007, flows) == []


def test_a_pid_that_was_somebody_elses_when_the_flow_began_gives_nothing(owned, theirs):
    before = time.monotonic_ns() - 3600 * 10**9  # long before this process has got the pid
    assert owned.flows(NOBODY, [(1, flow(theirs, before))]) == []


def test_only_own_pids_can_be_asked_for(owned, theirs):
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert owned.pids(NOBODY, [os.getpid(), theirs, gone.pid, 1]) == {theirs}
    assert owned.pids(4_000_007, [os.getpid(), theirs]) == frozenset()
