"""Watchers of units and containers: the kernel delivers what processes in their cgroups say, and no more."""

from __future__ import annotations

import pytest

from spliffd import ipc
from tests.support.dialogue import Dialogue
from tests.support.lab import Lab
from tests.support.shared import lab_of_the_file
from tests.support.watched import GET, OK, Watched, twice

lab = lab_of_the_file("cgroups")


ID = "5f" * 32


class Moved:
    """A dialogue whose process is put into cgroups of the lab by name."""

    def __init__(self, lab: Lab, dialogue: Dialogue) -> None:
        self._lab, self._pid = lab, dialogue.pid

    def to(self, name: str) -> None:
        folder = self._lab.cgroup / name
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").write_text(str(self._pid))


@pytest.fixture
def process(lab: Lab, dialogue: Dialogue) -> Moved:
    return Moved(lab, dialogue)


def unit(name: str) -> ipc.Whom:
    return ipc.Whom(units=[name])


@pytest.mark.parametrize(
    ("cgroup", "whom"),
    [
        ("shop.service", unit("shop.service")),
        ("shop.service", unit("sh*.service")),
        (f"docker-{ID}.scope", ipc.Whom(containers=[ID[:12]])),
        (f"cri-containerd-{ID}.scope", ipc.Whom(containers=["abcdef", ID])),
        ("shop.service", ipc.Whom(pids=[1], units=["shop.service"], containers=["abcdef"])),
    ],
    ids=["unit", "pattern", "docker", "containerd", "of-several"],
)
def test_a_watcher_of_a_unit_gets_all_of_it(
    kernel: Watched, dialogue: Dialogue, process: Moved, cgroup: str, whom: ipc.Whom
):
    process.to(cgroup)
    kernel.share(0)
    kernel.watch(whom)
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == twice(GET, OK)
    assert kernel.unjudged() == 0


@pytest.mark.parametrize(
    "whom", [unit("shop.service"), ipc.Whom(containers=[ID[:12]])], ids=["unit", "container"]
)
def test_of_another_unit_nothing_is_copied(
    kernel: Watched, dialogue: Dialogue, process: Moved, whom: ipc.Whom
):
    process.to("other.service")
    kernel.share(0)
    kernel.watch(whom)
    for _ in range(3):
        dialogue.client(GET)
        dialogue.server(OK)

    assert kernel.said() == []
    assert kernel.unsampled() == 2 * 3
    assert kernel.unjudged() == 0


def test_a_cgroup_that_was_just_made_is_wanted_until_it_is_judged(
    kernel: Watched, dialogue: Dialogue, process: Moved
):
    kernel.share(0)
    kernel.watch(unit("shop.service"))
    process.to(f"new{dialogue.pid}.service")
    dialogue.client(GET)
    dialogue.server(OK)
    assert kernel.said() == twice(GET, OK)
    assert kernel.unjudged() > 0
    kernel.judge()
    dialogue.server(OK)  # of an exchange that was delivered: to its end
    dialogue.client(GET)

    assert kernel.said() == twice(OK)


def test_a_process_that_is_moved_is_asked_anew(kernel: Watched, dialogue: Dialogue, process: Moved):
    process.to("shop.service")
    process.to("other.service")
    kernel.share(0)
    kernel.watch(unit("shop.service"))
    dialogue.client(GET)
    dialogue.server(OK)
    assert kernel.said() == []
    process.to("shop.service")
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == twice(GET, OK)


def test_watchers_of_units_come_and_go(kernel: Watched, dialogue: Dialogue, process: Moved):
    process.to("shop.service")
    kernel.share(0)

    def delivered() -> bool:
        kernel.judge()
        dialogue.client(GET)
        dialogue.server(OK)
        return bool(kernel.said())

    kernel.demands.wanted(0, 1, unit("other.service"))
    assert not delivered()
    kernel.demands.wanted(1, 1, unit("shop.service"))
    assert delivered()
    kernel.demands.wanted(1, 1, unit("mail.service"))
    assert not delivered()
    kernel.demands.wanted(1, 1, None)
    assert delivered()
    kernel.demands.wanted(1, 0, None)
    assert not delivered()
    kernel.demands.wanted(1, 1, ipc.Whom(pids=[dialogue.pid]))
    assert delivered()
    kernel.demands.wanted(1, 0, None)
    kernel.demands.wanted(0, 0, None)
    assert not delivered()
