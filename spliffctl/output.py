"""Standard output, written in whole batches.

Takes text, writes it as UTF-8 to the file descriptor with as few system calls as it takes. A reader that
went away raises ``OutputClosedError``, which ends the program silently; nothing else is hidden. Never
buffers: what was rendered is out when ``write`` returns.
"""

from __future__ import annotations

import errno
import os
import select

from spliffctl.errors import ClientError

STDOUT = 1


class OutputClosedError(Exception):
    """Nobody reads any more (``| head``): not an error."""


class Output:
    """A file descriptor to write text to; standard output unless told otherwise."""

    def __init__(self, fd: int = STDOUT) -> None:
        self.fd = fd
        self.writing = False
        """Set while a write may block: then a signal has to break it."""

    def write(self, text: str | bytes) -> None:
        """Writes all of ``text``; waits for a slow reader, so that the daemon sees the pressure.

        Raises OutputClosedError when the reader is gone, ClientError when nothing can be written.
        """
        if isinstance(text, str):
            # Text from the contract holds no lone surrogates, but a command line may.
            text = text.encode("utf-8", "backslashreplace")
        rest = memoryview(text)
        self.writing = True
        try:
            while rest:
                rest = rest[self._write(rest) :]
        finally:
            self.writing = False

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            # Somebody else made our standard output non-blocking (shared terminal or pipe).
            select.select([], [self.fd], [])
            return 0
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            if error.errno == errno.ECONNRESET:
                raise OutputClosedError from None
            raise ClientError(f"cannot write to standard output: {error.strerror}") from error
