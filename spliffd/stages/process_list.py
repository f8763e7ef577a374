"""ListProcesses: lines of the coverage ledger as messages of the contract.

Takes the entries of ``ledger``, and what is known of each process; returns one serialised response.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from spliffd.attribution.coverage import TlsFile
from spliffd.ipc import ProcessFacts
from spliffd.kernel import records
from spliffd.kernel.flows import Flow, address
from spliffd.pb import spliff_pb2 as pb
from spliffd.stages.flow_list import FAMILIES
from spliffd.stages.ledger import Entry

Facts = Callable[[int, int], ProcessFacts]
"""What is known of the process with a pid and a start time (ns since boot)."""


def response(entries: Iterable[Entry], facts: Facts, mask: Callable[[str], str]) -> bytes:
    """A serialised ListProcessesResponse; ``mask`` masks secrets in a command line."""
    boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return pb.ListProcessesResponse(
        processes=[
            message(entry, facts(entry.book.pid, entry.book.start_ns), mask, boot_ns) for entry in entries
        ]
    ).SerializeToString()


def message(
    entry: Entry, known: ProcessFacts, mask: Callable[[str], str], boot_ns: int
) -> pb.ProcessCoverage:
    """One line. ``boot_ns``: when the host booted, since the epoch."""
    files = entry.evidence.files or ()
    start = entry.book.start_ns
    return pb.ProcessCoverage(
        process=pb.Process(
            pid=known.pid, start_time_ns=start + boot_ns if start else 0, comm=known.comm, exe=known.exe,
            ppid=known.ppid, uid=known.uid, user=known.user, cgroup=known.cgroup, unit=known.unit,
            container_id=known.container, cmdline=mask(known.cmdline),
        ),
        covered=entry.verdict.covered,
        reason=entry.verdict.reason,
        detail=entry.verdict.detail,
        libraries=sorted({file.library for file in files if file.state == "attached"}),
        tls_flows=entry.tls_flows,
        captured_connections=entry.evidence.captured,
        ended=bool(entry.book.ended_ns),
        files=[file_message(file) for file in files if file.named and file.state != "skipped"],
        missed=[connection(miss.flow) for miss in entry.missed],
    )  # fmt: skip


def file_message(file: TlsFile) -> pb.Library:
    """A file of the process."""
    return pb.Library(path=file.path, library=file.library, state=file.state, reason=file.detail)


def connection(flow: Flow) -> pb.Connection:
    """The two ends of a connection."""
    return pb.Connection(
        local=pb.Endpoint(address=address(flow.local, flow.family), port=flow.local_port),
        remote=pb.Endpoint(address=address(flow.remote, flow.family), port=flow.remote_port),
        role=records.ROLES[flow.role] if flow.role < len(records.ROLES) else "",
        family=FAMILIES.get(flow.family, ""),
        netns_cookie=flow.netns_cookie,
    )
