"""Who is raised: the process, and its session only where that is its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.stages.priority import set_priority


@pytest.fixture(params=[True, False], ids=["own session", "a shell's session"])
def process(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    with subprocess.Popen(["sleep", "100"], start_new_session=request.param) as started:
        yield started.pid, request.param
        started.kill()


def session_nice(pid: int) -> int | None:
    """The nice value of the session's group; None without autogroup scheduling."""
    try:
        text = Path(f"/proc/{pid}/autogroup").read_text("ascii")
    except OSError:
        return None
    return int(text.rsplit(" ", 1)[1]) if "nice" in text else None


def test_only_an_own_session_is_changed(process: tuple[int, bool]):
    pid, own = process
    before = session_nice(pid)

    set_priority(pid, 7)  # a lower priority, which nobody needs to be allowed

    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    if before is not None:
        assert session_nice(pid) == (7 if own else before)
