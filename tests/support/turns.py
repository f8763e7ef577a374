"""The machine is shared with virtual machines that ``make test-vm`` runs beside: tests marked ``quiet`` wait for them.

A lock in the checkout's build folder: machines hold it together, a quiet test waits until nobody does. It is the
kernel's (flock), so whoever dies lets go of it.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from tests.support.lab import REPOSITORY

PLACE = REPOSITORY / "build/machines.lock"


@contextlib.contextmanager
def noisy() -> Iterator[None]:
    """Held while virtual machines run."""
    PLACE.parent.mkdir(exist_ok=True)
    with PLACE.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait_until_quiet() -> None:
    """Returns when no virtual machine of this checkout runs; at once where none was ever made."""
    with contextlib.suppress(FileNotFoundError), PLACE.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
