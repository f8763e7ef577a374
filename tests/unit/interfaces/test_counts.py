"""How many processors the kernel copies a value for."""

import pytest

from spliffd.interfaces.counts import processors


@pytest.mark.parametrize(
    ("ranges", "count"), [("0\n", 1), ("0-1\n", 2), ("0-127", 128), ("0-3,8-11", 8), ("0,2,5-6\n", 4)]
)
def test_processors(ranges, count):
    assert processors(ranges) == count
