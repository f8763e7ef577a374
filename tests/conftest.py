"""For all tests: no compiled module may hide an edited source; SPLIFF_PURE=1 tests the sources themselves.

Tests marked ``quiet`` go last and wait for the virtual machines that run beside.
"""

from __future__ import annotations

import hypothesis
import pytest

from tests.support import pure, turns

# A shared machine may stop any example for a while; speed lives in bench/.
hypothesis.settings.register_profile("spliff", deadline=None)
hypothesis.settings.load_profile("spliff")

if pure.wanted():
    pure.sources_only()


def pytest_configure() -> None:
    """Refuses to test compiled code of other sources than these."""
    from spliffd import compiled

    if not pure.wanted() and compiled.state() == compiled.STALE:
        pytest.exit(
            "compiled modules are older than their sources: `make compiled`, or `make plain`", returncode=2
        )


QUIET_SECONDS = 1200
"""Limit of a quiet test: it may have to wait for most of what virtual machines do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quiet ones last, in their order."""
    for item in items:
        if item.get_closest_marker("quiet"):
            item.add_marker(pytest.mark.timeout(QUIET_SECONDS))
    items.sort(key=lambda item: item.get_closest_marker("quiet") is not None)


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("quiet"):
        turns.wait_until_quiet()
