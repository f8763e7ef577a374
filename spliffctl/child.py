"""The command of ``spliffctl watch -- COMMAND``: forked early, executed late.

Takes a command line, returns a process whose pid is known while it still waits at a gate, so that the watch
is in place before the command's first instruction. ``release`` opens the gate and says whether the
command could be executed. If the client dies before that, the waiting process ends by itself.

Must be made before gRPC is imported: gRPC has threads, and a fork copies only one of them.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence

EXIT_NOT_FOUND = 127
"""As shells say it: there is no such command."""

EXIT_NOT_EXECUTABLE = 126
"""As shells say it: it is there, but cannot be executed."""

ERRNO_BYTES = 4


class Child:
    """A process that waits at its gate, then becomes the command."""

    def __init__(self, command: Sequence[str], *, stdout_to_stderr: bool) -> None:
        gate_read, self._gate = os.pipe()
        self._report, report_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # From here on this is the child: it must never return into the client's code.
            try:
                os.close(self._gate)
                os.close(self._report)
                _become(command, gate_read, report_write, stdout_to_stderr=stdout_to_stderr)
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)
        os.close(gate_read)
        os.close(report_write)
        self.pidfd = os.pidfd_open(self.pid)
        self._status: int | None = None

    def release(self) -> OSError | None:
        """Lets the command start; returns why it could not be executed."""
        os.write(self._gate, b"!")
        os.close(self._gate)
        self._gate = -1
        # Ends at once when the command is executed: the other end closes on exec.
        answer = os.read(self._report, ERRNO_BYTES)
        if not answer:
            return None
        number = int.from_bytes(answer, "little")
        return OSError(number, os.strerror(number))

    def cancel(self) -> int:
        """Ends the process if it still waits at the gate, then waits for its end."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        return self.wait()

    def wait(self) -> int:
        """Waits for the end; returns the exit status as a shell says it."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self._status = code if code >= 0 else 128 - code
            os.close(self.pidfd)
        return self._status

    def cancel_or_end_within(self, seconds: float) -> int:
        """Ends it: at the gate at once, else SIGTERM unless it ends within ``seconds`` by itself.

        A terminal's Ctrl-C reached the command too, so most end by themselves.
        """
        if self._gate < 0 and self._status is None and not select.select([self.pidfd], [], [], seconds)[0]:
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        return self.cancel()


def _become(command: Sequence[str], gate: int, report: int, *, stdout_to_stderr: bool) -> None:
    """In the child: waits for the gate, then executes the command; returns only to fail."""
    # Python ignores these two, and ignored signals stay ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not os.read(gate, 1):
        os._exit(0)
    if stdout_to_stderr:
        os.dup2(2, 1)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - the operator's own command, without a shell
    except OSError as error:
        os.write(report, (error.errno or 0).to_bytes(ERRNO_BYTES, "little"))
        os._exit(EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE)
