"""System tests: the real daemon, scoped to a lab of its own, with real clients and servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import Lab
from tests.support.servers import Nginx


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("system") as lab:
        yield lab


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = Daemon(lab)
    yield daemon
    daemon.stop()


@pytest.fixture
def server(lab: Lab, daemon: Daemon) -> Nginx:
    """A server whose library is probed: what comes next is seen from its first byte on."""
    server = Nginx(lab)
    daemon.wait_attached()
    return server
