"""Kernel tests run in a lab of their own: root, real eBPF, private libraries, a cgroup that is removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab
from tests.support.net import Namespace, Network


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
