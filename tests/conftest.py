"""For all tests: no compiled module may hide an edited source; SPLIFF_PURE=1 tests the sources themselves."""

from __future__ import annotations

import hypothesis
import pytest

from tests.support import pure

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
