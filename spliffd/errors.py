"""What can stop spliffd, as exceptions that carry the exit code and the remedy.

Takes nothing, returns nothing: these classes are raised where a problem is found and turned into one
line on standard error and an exit code in ``__main__``. They never carry captured bytes.
Exit codes are the contract of ``spliffd`` (docs: README, "Exit codes").
"""

from __future__ import annotations


class SpliffError(Exception):
    """A problem that ends the daemon: ``message`` says what, ``remedy`` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: what is wrong, then what to do."""
        return f"{self.message} – {self.remedy}" if self.remedy else self.message


class FailedError(SpliffError):
    """Something failed while running (a port is taken, a process does not come up): exit 1."""

    exit_code = 1


class UsageError(SpliffError):
    """Wrong arguments or configuration: exit 2."""

    exit_code = 2


class HostError(SpliffError):
    """This host cannot run spliffd (no BTF, no BCC, not root): exit 3."""

    exit_code = 3


class AlreadyRunningError(SpliffError):
    """Another spliffd holds the socket: exit 4."""

    exit_code = 4
