"""The kernel is kept ready to take probes while files are expected, and nothing of that stays."""

from __future__ import annotations

import os
import threading

from spliffd.kernel import links, standby
from spliffd.kernel.links import Attached, Probe
from spliffd.kernel.standby import Standby
from tests.support.lab import Lab, wait_for
from tests.support.leftovers import held
from tests.support.tracer import Tracer


def test_probes_change_while_files_are_expected_and_no_longer(lab: Lab, monkeypatch):
    monkeypatch.setattr(standby, "KEEP_SECONDS", 0.2)
    touched = []
    with Tracer(lab) as tracer:
        before = held([os.getpid()])

        def attach(path: str, library: str, probes: list[Probe]) -> Attached:
            touched.append(path)
            return links.attach_library(tracer.programs, path, library, probes)

        ready = Standby(attach)
        assert not touched
        for burst in (1, 2):
            so_far = len(touched)
            ready.expect()
            ready.expect()
            wait_for(lambda so_far=so_far: len(touched) > so_far + 3, 30, f"changes in burst {burst}")
            wait_for(lambda: not running(), 30, "the end of the burst")
        ready.expect()
        ready.close()
        assert not running()
        assert held([os.getpid()]) == before
    assert all(path.startswith("/proc/self/fd/") for path in touched)


def test_a_kernel_that_refuses_is_asked_again_for_a_while(monkeypatch):
    monkeypatch.setattr(standby, "KEEP_SECONDS", 0.05)
    asked = threading.Event()

    def refuse(_path: str, _library: str, _probes: list[Probe]) -> Attached:
        asked.set()
        raise OSError("no")

    ready = Standby(refuse)
    ready.expect()
    assert asked.wait(30)
    wait_for(lambda: not running(), 30, "the end of it")
    ready.close()


def running() -> bool:
    return any(thread.name == "standby" for thread in threading.enumerate())
