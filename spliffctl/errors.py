"""What ends spliffctl early, as exceptions that carry the exit code.

Takes a sentence that says what to do; ``__main__`` prints it as one line on standard error and exits.
Never carries captured bytes. The codes are the contract (README, "Exit codes"): 69, 74 and 77 are those of
sysexits.h, so scripts can tell "not running" from "not allowed".
"""

from __future__ import annotations

EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE: the daemon is not there, went away, or cannot serve the request."""

EXIT_FILE = 74
"""EX_IOERR: a file cannot be written: the disk is full, the folder is not there or closed."""

EXIT_NO_PERMISSION = 77
"""EX_NOPERM: the socket or the daemon refuses this user."""

EXIT_USAGE = 2
"""What click exits with for wrong arguments; also for arguments that the daemon refuses."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""

EXIT_TERMINATED = 143
"""128 + SIGTERM."""


class ClientError(Exception):
    """A problem that ends the command: one sentence that says what is wrong and what to do."""

    exit_code = 1


class UnavailableError(ClientError):
    """The daemon cannot be reached, does not answer, or broke the stream: exit 69."""

    exit_code = EXIT_UNAVAILABLE


class PreconditionError(UnavailableError):
    """The daemon is not set up for that, or the kernel refused: exit 69."""


class NotPermittedError(ClientError):
    """This user may not do that: exit 77."""

    exit_code = EXIT_NO_PERMISSION


class RefusedError(ClientError):
    """The daemon refuses the arguments (a filter that it cannot evaluate): exit 2."""

    exit_code = EXIT_USAGE


class FileError(ClientError):
    """The file of ``-w`` cannot be written (disk full, no such folder): exit 74."""

    exit_code = EXIT_FILE
