"""spliffd in the foreground of a terminal, as `make run` and people have it."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import PYTHON
from tests.support.lab import REPOSITORY, Lab, refuse_unscoped, wait_for
from tests.support.terminal import Terminal


def children(pid: int) -> dict[int, str]:
    """State of each child of a process (proc(5), stat)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found[child] = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return found


@pytest.fixture
def terminal(lab: Lab) -> Iterator[Terminal]:
    """The daemon in a terminal that stops who writes to it from the background (stty(1), tostop)."""
    refuse_unscoped(lab)
    config, pid = lab.folder / "spliffd.toml", lab.folder / "pid"
    config.write_text('debug = true\n[interfaces]\ninclude = ["lo"]\nmode = "tc"\n')
    socket = str(lab.folder / "spliffd.sock")
    daemon = [PYTHON, "-m", "spliffd", "--socket", socket, "--config", str(config), "--metrics", "off"]
    # tmux has what runs in it ignore SIGTTOU; a shell has not.
    script = f"stty tostop; echo $$ >{pid}; exec env --default-signal {shlex.join([*daemon, *lab.scope])}"
    with Terminal(str(lab.folder), ["bash", "-c", script], cwd=str(REPOSITORY)) as terminal:
        yield terminal
        if not terminal.ended():
            os.kill(int(pid.read_text()), signal.SIGKILL)  # and its children die with it


def test_what_children_write_stops_none_of_them_and_ctrl_c_ends_all(lab: Lab, terminal: Terminal):
    terminal.until(lambda text: " ready" in text, "ready")
    # A line of the api's own, from its own process group.
    terminal.until(lambda text: "worker 0 is connected" in text, "a line of a child")
    before = children(int((lab.folder / "pid").read_text()))
    assert len(before) >= 2
    assert "T" not in before.values(), before

    terminal.press("C-c")
    wait_for(lambda: terminal.ended() != "", 20, "the end")
    assert terminal.ended() == "0", terminal.screen()
    assert not any(Path(f"/proc/{child}").exists() for child in before)
    assert not (lab.folder / "spliffd.sock").exists()
