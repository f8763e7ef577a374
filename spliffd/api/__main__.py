"""``python -m spliffd.api``: started by the supervisor, as root, with its fds inherited.

Takes fds and ids on the command line; becomes the unprivileged user before it serves anything. Not for
people: without a supervisor on the other end of ``--control-fd`` it ends at once.
Exit codes: 0 stopped, 1 failed (the supervisor got ``ipc.Failed``), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import mmap
import os
import signal
import socket
import sys

import msgspec
import setproctitle

from spliffd import counters, privileges
from spliffd.api import server
from spliffd.config import Config
from spliffd.errors import FailedError


def main(arguments: list[str] | None = None) -> int:
    """Runs the process; returns its exit code."""
    options = _parser().parse_args(arguments)
    setproctitle.setproctitle("spliffd: api")
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGHUP):
        # A terminal sends these to the whole group; what they mean is the supervisor's decision.
        signal.signal(number, signal.SIG_IGN)
    control = _socket(options.control_fd)
    try:
        config = msgspec.json.decode(options.config_json, type=Config)
        logging.getLogger("spliffd").setLevel(logging.DEBUG if config.debug else logging.INFO)
        privileges.forbid_new_privileges()
        inputs = server.Inputs(
            control=control,
            area=_area(options.counters_fd),
            kernel=_kernel(options.kernel_counters_fd),
            metrics=None if options.metrics_fd is None else _socket(options.metrics_fd),
            path=options.socket,
            identity=server.Identity(options.uid, options.gid, options.socket_gid),
            config=config,
        )
        return asyncio.run(server.run(inputs))
    except FailedError as error:
        server.report_failure(control, error)
        print(f"spliffd: api: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spliffd.api", description="The api process of spliffd; started by spliffd itself."
    )
    parser.add_argument("--control-fd", required=True, help="socket to the supervisor", type=int, metavar="N")
    parser.add_argument("--counters-fd", required=True, help="shared counters", type=int, metavar="N")
    parser.add_argument(
        "--kernel-counters-fd", required=True, help="the kernel's counters", type=int, metavar="N"
    )
    parser.add_argument(
        "--metrics-fd", help="listening socket of the metrics endpoint", type=int, metavar="N"
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="gRPC socket to make")
    parser.add_argument("--uid", required=True, help="user to become", type=int, metavar="N")
    parser.add_argument("--gid", required=True, help="group to become", type=int, metavar="N")
    parser.add_argument(
        "--socket-gid", required=True, help="group that may use the socket", type=int, metavar="N"
    )
    parser.add_argument("--config-json", default="{}", metavar="JSON", help="the configuration")
    return parser


def _socket(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


def _area(fd: int) -> counters.Area:
    os.set_inheritable(fd, False)
    return counters.Area(fd)


def _kernel(fd: int) -> counters.Region:
    """Maps the kernel's counters for reading only, and lets go of the fd.

    Not through ``mmap.mmap``: that keeps a copy of the fd, and with a map's fd more can be done than read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = counters.kernel_bytes()
    address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    number = ctypes.get_errno()
    os.close(fd)
    if address in (None, ctypes.c_void_p(-1).value):
        raise FailedError(
            f"the kernel's counters cannot be mapped: {os.strerror(number)}",
            "the counters map must be an array map made with BPF_F_MMAPABLE",
        )
    page = (ctypes.c_char * size).from_address(address)
    return counters.kernel_region(memoryview(page).toreadonly().cast("B").cast("Q"))


if __name__ == "__main__":
    sys.exit(main())
