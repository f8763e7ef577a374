"""The process that reads ELF files of strangers, so that root does not have to.

Started by ``client`` as ``python -m spliffd.targets.inspector FD UID GID``; FD is a SOCK_SEQPACKET
socket. It imports everything, gives up every privilege for good, sends one empty-handed "ready"
datagram, and then answers each request (a ``Request`` and one fd) with one ``Inspection``.
Each file is read in a forked child of its own: a file that makes the child crash, run out of memory or
truncates itself under it (SIGBUS) costs one answer, and nothing that it does outlives the answer.
Never opens a path, never writes anywhere but to the socket; exits when the socket closes, or after
``IDLE_SECONDS`` without a request.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from typing import NoReturn

from spliffd import privileges, seccomp
from spliffd.targets import recognise
from spliffd.targets.elf import MAX_FILE, Image, NarrowError, UnreadableError
from spliffd.targets.sites import MAX_ANSWER, READY, Inspection, Request, decode_request, encode_inspection

IDLE_SECONDS = 20.0
"""Library scans come in bursts; between them 20 MiB are better given back."""

MAX_REQUEST = 4096
CPU_SECONDS = 5
"""For one file; 0.2 s are needed for 100 MB. The child is killed by SIGXCPU beyond it."""

ADDRESS_SPACE = MAX_FILE + (512 << 20)
"""The largest file mapped, Python with capstone (0.1 GiB), and room for symbol tables."""

OPEN_FILES = 32


def limit_resources() -> None:
    """Bounds what a hostile file can cost: memory, files written (none), descriptors."""
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))


def inspect_fd(fd: int, relocate: bool) -> Inspection:
    """Reads one file. Never raises for anything that a file can contain."""
    try:
        with Image(fd) as image:
            return recognise.inspect(image, relocate)
    except UnreadableError as error:
        cause = "32bit" if isinstance(error, NarrowError) else "unreadable"
        return Inspection("refused", reason=str(error), cause=cause)
    except Exception as error:  # a hostile file may find a way that the bounds do not close
        return Inspection(
            "refused", reason=f"cannot be inspected: {type(error).__name__}", cause="unreadable"
        )


def _unreadable(reason: str) -> Inspection:
    return Inspection("refused", reason=reason, cause="unreadable")


def _child(request: Request, fd: int, answer: int, link: socket.socket) -> NoReturn:
    """Reads the file and writes the answer to a pipe. The parent's socket is out of its reach."""
    link.close()
    privileges.die_with_parent()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    os.write(answer, encode_inspection(inspect_fd(fd, request.relocate)))
    os._exit(0)


def _answer(data: bytes, fds: list[int], link: socket.socket) -> bytes:
    """One answer to one request: the child's, or what became of the child."""
    if len(fds) != 1:
        return encode_inspection(Inspection("refused", reason="the request came without its file"))
    request = decode_request(data)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _child(request, fds[0], writing, link)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read(MAX_ANSWER + 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return encode_inspection(
            Inspection("refused", reason=f"reading it ended with {name}", cause="unreadable")
        )
    if status != 0 or not 0 < len(answer) <= MAX_ANSWER:
        return encode_inspection(
            Inspection("refused", reason="reading it ended without an answer", cause="unreadable")
        )
    return answer


def serve(link: socket.socket) -> None:
    """Answers requests until the socket closes or nobody asks any more."""
    link.settimeout(IDLE_SECONDS)
    link.send(READY)
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(link, MAX_REQUEST, 4, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            return
        try:
            answer = _answer(data, fds, link) if data else b""
        finally:
            for fd in fds:
                os.close(fd)
        if not data:
            return
        link.send(answer)


def main() -> None:
    """Entry point: FD UID GID."""
    fd, uid, gid = (int(argument) for argument in sys.argv[1:4])
    with socket.socket(fileno=fd) as link:
        try:
            privileges.drop(uid, gid)
            limit_resources()
            seccomp.inspector()
        except OSError as error:
            # Said before the socket closes: the supervisor kills whoever closes it without a word.
            print(f"spliffd inspector: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        try:
            serve(link)
        except (BrokenPipeError, ConnectionResetError):
            return  # the supervisor is gone or tired of waiting


if __name__ == "__main__":
    main()
    os._exit(0)  # taking the interpreter down in order costs as much CPU as the idle daemon in half a minute
