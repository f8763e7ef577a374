"""Entry of a worker process: ``python -m spliffd.worker``, started by the supervisor as root.

Everything is imported and mapped first, then root is given up for good, and only then is the first
record read. The fds on the command line are the only things it has to do with the host.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import socket
import time

import setproctitle

from spliffd import ipc, privileges, resident, seccomp
from spliffd.correlation.flows import Kernel, Look
from spliffd.counters import Area
from spliffd.errors import UsageError
from spliffd.kernel.maps import open_armed, open_counters
from spliffd.kernel.ring import Ring
from spliffd.kernel.unwanted import Unwanted
from spliffd.worker import faults
from spliffd.worker.loop import Loop
from spliffd.worker.process_flows import ProcessFlows
from spliffd.worker.tables import Hooked, Tables


def main() -> int:
    """Runs the worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="spliffd: worker")
    for name in (
        "number",
        "ring-fd",
        "ring-bytes",
        "armed-fd",
        "shards",
        "control-fd",
        "counters-fd",
        "kernel-counters-fd",
        "conns-fd",
        "speakers-fd",
        "flows-fd",
        "hellos-fd",
        "unwanted-fd",
        "uid",
        "gid",
    ):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()

    setproctitle.setproctitle(f"spliffd: worker {args.number}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ring = Ring(args.ring_fd, args.ring_bytes)
    armed = open_armed(args.armed_fd, args.shards)
    unwanted = Unwanted(args.unwanted_fd)
    kernel = open_counters(args.kernel_counters_fd)
    area = Area(args.counters_fd)
    counters = area.workers[args.number]
    control = socket.socket(fileno=args.control_fd)
    control.setblocking(False)
    privileges.drop(args.uid, args.gid)

    tables = Tables(args.conns_fd, args.speakers_fd, args.flows_fd, args.hellos_fd)
    look: Look = tables.hops
    glance: Look = look
    if faults.FLOW_DELAY in os.environ:
        try:
            delay = faults.flow_delay(os.environ[faults.FLOW_DELAY])
            look, glance = faults.late(look, delay, time.monotonic_ns)
        except UsageError as error:
            control.send(ipc.encode(ipc.Failed(error.message, error.remedy)))
            return 1
        from spliffd import journal

        journal.configure()
        journal.logger("worker").warning(
            "a fault for tests is on: flow information comes late", milliseconds=os.environ[faults.FLOW_DELAY]
        )

    seccomp.worker()

    def ask_owners() -> None:
        with contextlib.suppress(BlockingIOError):  # the supervisor is busy: it is asked again
            control.send(ipc.encode(ipc.EnterOwners()))

    flows_of = ProcessFlows(args.flows_fd, time.monotonic_ns, ask_owners)
    looks = Kernel(look, flows_of, Hooked(area.supervisor), tables.hello, glance, tables.sides)
    loop = Loop(
        args.number, ring, armed, control, counters, kernel, tables, looks, flows_of.owners_entered,
        unwanted,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what was imported never becomes garbage: keep it out of every later collection
    resident.let_go()
    control.send(ipc.encode(ipc.Ready()))
    loop.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
