"""Imports without what the daemon has no use for.

``with without("rich"): import structlog`` makes ``rich`` look as if it were not installed, to libraries for
which it is optional. Afterwards it can be imported as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Hides a module that nobody has imported yet."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's word for "not to be found"
    try:
        yield
    finally:
        del sys.modules[name]
