"""Fixtures for tests that share one lab, and one daemon in it, through a whole file.

lab, daemon = lab_of_the_file("streams"), daemon_of_the_file()
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import Lab


def lab_of_the_file(name: str) -> Any:
    """The fixture ``lab``."""

    @pytest.fixture(scope="module", name="lab")
    def lab() -> Iterator[Lab]:
        with Lab(name) as made:
            yield made

    return lab


def daemon_of_the_file() -> Any:
    """The fixture ``daemon``: one that needs no options."""

    @pytest.fixture(scope="module", name="daemon")
    def daemon(lab: Lab) -> Iterator[Daemon]:
        made = Daemon(lab)
        yield made
        made.stop()

    return daemon
