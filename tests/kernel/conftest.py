"""Kernel tests run in a lab of their own: root, real eBPF, private libraries, a cgroup that is removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("kernel") as lab:
        yield lab
