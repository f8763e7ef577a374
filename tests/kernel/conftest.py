"""Kernel tests run in a lab of their own: root, real eBPF, private libraries, a cgroup that is removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dialogue import Dialogue
from tests.support.lab import Lab
from tests.support.net import Namespace, Network
from tests.support.tracer import Tracer
from tests.support.watched import Watched


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("kernel") as lab:
        yield lab


@pytest.fixture
def net() -> Iterator[Network]:
    with Network("if") as net:
        yield net


@pytest.fixture
def ns(net: Network) -> Namespace:
    return net.namespace()


# Of tests of demand, whose lab is that of the file.


@pytest.fixture(scope="module", params=[True, False], ids=["session", "two-links"])
def tracer(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Tracer]:
    with Tracer(lab, sessions=request.param) as tracer:
        yield tracer


@pytest.fixture
def kernel(tracer: Tracer) -> Watched:
    tracer.read()
    return Watched(tracer)


@pytest.fixture(params=["socket", "memory"])
def dialogue(lab: Lab, kernel: Watched, request: pytest.FixtureRequest) -> Iterator[Dialogue]:
    dialogue = Dialogue(lab, request.param)
    yield dialogue
    dialogue.close()
