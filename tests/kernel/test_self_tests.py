"""Relocated probes on trial: right ones pass, and one that sits in another function is found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliffd.kernel import links
from spliffd.kernel.links import Probe
from spliffd.kernel.maps import PROCESS_RING_BYTES
from spliffd.kernel.records import PROCESS_RECORD, PROCESS_TESTED
from spliffd.kernel.ring import Ring
from spliffd.stages.self_tests import ENOUGH, MISSED, SelfTests, Verdict
from tests.support.dialogue import Dialogue
from tests.support.lab import Lab
from tests.support.tracer import Tracer


class Trial:
    """A tracer's libssl, with witnesses and one probe beside the tracer's own."""

    def __init__(self, lab: Lab, tracer: Tracer) -> None:
        self._path = str(lab.libraries / "libssl.so.3")
        self._tracer = tracer
        self._sites = {site.op: site for site in tracer.inspection.sites if site.placement == "internal"}
        self.tests = SelfTests(tracer.maps)
        self.number = self.tests.begin()
        self._held: list[links.Attached] = []
        self._ring = Ring(tracer.maps.fd["processes"], PROCESS_RING_BYTES)
        self._told = 0

    def put(self, of: str, at: str | None) -> None:
        """Witnesses where calls of ``of`` begin; the probe that should see them where ``at`` is done, if any."""
        first = [
            Probe(offset, of, "none", returns=False, test=self.number) for offset in self._sites[of].witnesses
        ]
        self._held.append(links.attach_witnesses(self._tracer.programs, self._path, "openssl", first))
        if at is None:
            return
        probe = Probe(self._sites[at].offset, of, "pointer", returns=True, test=self.number)
        self._held.append(links.attach_library(self._tracer.programs, self._path, "openssl", [probe]))

    def told(self) -> int:
        """How often the kernel has said so far that a test can be judged."""
        positions = self._ring.drain(4096)
        flags = [PROCESS_RECORD.unpack_from(self._ring.data, at)[-1] for at in positions]
        self._ring.release()
        self._told += flags.count(PROCESS_TESTED)
        return self._told

    def close(self) -> None:
        for attached in self._held:
            attached.close()


@pytest.fixture
def trial(lab: Lab) -> Iterator[Trial]:
    with Tracer(lab) as tracer:
        trial = Trial(lab, tracer)
        yield trial
        trial.close()


@pytest.fixture
def talk(lab: Lab) -> Iterator[Dialogue]:
    dialogue = Dialogue(lab)
    yield dialogue
    dialogue.close()


def test_relocated_probes_see_what_first_instructions_see(trial: Trial, talk: Dialogue):
    assert trial.tests.verdict(trial.number) is Verdict.OPEN
    trial.put("write", "write")
    trial.put("read", "read")
    for _ in range(ENOUGH):
        talk.client(b"hello")

    assert trial.tests.verdict(trial.number) is Verdict.PASSED
    assert trial.tests.told(trial.number) == f"of {ENOUGH} calls {ENOUGH} were seen alike and 0 differently"


def test_the_kernel_tells_at_once_that_enough_was_seen(trial: Trial, talk: Dialogue):
    trial.put("write", "write")
    for _ in range(ENOUGH - 1):
        talk.client(b"hello")
    assert trial.told() == 0
    talk.client(b"hello")
    assert trial.told() == 1
    for _ in range(MISSED):
        talk.client(b"hello")
    assert trial.told() == 1


def test_the_kernel_tells_of_calls_that_do_not_pass_the_relocated_place(trial: Trial, talk: Dialogue):
    trial.put("write", None)
    for _ in range(MISSED - 1):
        talk.client(b"hello")
    assert trial.told() == 0
    talk.client(b"hello")
    assert trial.told() == 1
    assert trial.tests.verdict(trial.number) is Verdict.FAILED


def test_a_probe_in_another_function_is_found_out(trial: Trial, talk: Dialogue):
    trial.put("write", "read")
    for _ in range(MISSED):
        talk.client(b"hello")

    assert trial.tests.verdict(trial.number) is Verdict.FAILED


def test_a_test_that_has_ended_compares_nothing(trial: Trial, talk: Dialogue):
    trial.put("write", "write")
    trial.tests.end(trial.number)
    talk.client(b"hello")

    assert trial.tests.told(trial.number) == "of 0 calls 0 were seen alike and 0 differently"
