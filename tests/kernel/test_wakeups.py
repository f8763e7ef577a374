"""Which records wake a worker: none that works, the first for one that sleeps, much for one that rests."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from spliffd.kernel.maps import open_armed
from spliffd.worker.rests import much
from spliffd.worker.waits import Waits
from tests.support.dialogue import Dialogue
from tests.support.lab import Lab
from tests.support.shared import lab_of_the_file
from tests.support.tracer import Tracer

lab = lab_of_the_file("wakeups")

SOON = 300
"""Milliseconds within which a wake-up comes."""

RING_MIB = 1
PIECE = b"p" * 4000


class Sleeper:
    """A worker's side: the flag that it arms, and what it waits with."""

    def __init__(self, tracer: Tracer) -> None:
        self.ring = tracer.ring
        self.armed = open_armed(tracer.maps.fd["armed"], 1)
        self._control, self._other = socket.socketpair()
        self._waits = Waits(self._control, tracer.ring.fd)
        self.woken(0)  # what was there when the ring was registered

    def woken(self, milliseconds: int = SOON) -> bool:
        return self.ring.fd in [fd for fd, _ in self._waits.for_much(milliseconds)]

    def told(self) -> bool:
        """Whether the supervisor's message ends the wait."""
        self._other.send(b"!")
        return [fd for fd, _ in self._waits.for_much(SOON)] == [self._control.fileno()]

    def close(self) -> None:
        self.armed.release()
        self._control.close()
        self._other.close()


@pytest.fixture
def tracer(lab: Lab) -> Iterator[Tracer]:
    with Tracer(lab, ring_mib=RING_MIB) as tracer:
        yield tracer


@pytest.fixture
def talk(lab: Lab, tracer: Tracer) -> Iterator[Dialogue]:
    talk = Dialogue(lab)
    tracer.read()
    yield talk
    talk.close()


@pytest.fixture
def sleeper(tracer: Tracer, talk: Dialogue) -> Iterator[Sleeper]:
    sleeper = Sleeper(tracer)
    yield sleeper
    sleeper.close()


def test_who_has_not_armed_is_left_alone(talk: Dialogue, sleeper: Sleeper):
    talk.client(PIECE)
    assert sleeper.ring.pending() > len(PIECE)
    assert not sleeper.woken()
    assert sleeper.told()


def test_the_first_record_wakes_who_sleeps_and_no_other_does(
    talk: Dialogue, tracer: Tracer, sleeper: Sleeper
):
    sleeper.armed[0] = 1
    assert not sleeper.woken()
    talk.client(b"x")
    assert sleeper.woken()
    assert sleeper.armed[0] == 0
    tracer.read()
    talk.client(b"x")
    assert not sleeper.woken()


def test_who_rests_is_woken_when_much_waits_and_not_before(talk: Dialogue, tracer: Tracer, sleeper: Sleeper):
    least = much(RING_MIB << 20)
    for _ in range(2):  # a wake-up is for once
        sleeper.armed[0] = least
        said = 0
        while sleeper.armed[0]:
            assert not sleeper.woken(0)
            assert sleeper.ring.pending() < least, f"nothing has woken after {said} calls"
            talk.client(PIECE)
            said += 1
        assert sleeper.woken()
        assert least <= sleeper.ring.pending() < least + 4 * len(PIECE)
        assert said > 5
        talk.client(PIECE)
        assert not sleeper.woken()
        tracer.read()
