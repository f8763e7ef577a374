"""Figures go into the JUnit file, beside the test that found them."""

from __future__ import annotations

import pytest

from tests.vm.inside import guest


@pytest.fixture(autouse=True)
def figures(record_property):
    guest.record = record_property
    yield
    guest.record = None
