"""ListFlows: open connections of the kernel's flows map as messages of the contract.

Takes flows by cookie, interface names by index, and who owns which socket; returns one serialised response.
Flows that have closed are left out: the map keeps them only for their last exchange. Names of interfaces that
nobody knows are told by their index. A process is asked for once, however many flows it has.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping

from spliffd.attribution.processes import CMDLINE_BYTES, owners, parse_cgroup, user_name
from spliffd.kernel import records
from spliffd.kernel.flows import CLIENT_HELLO, HOOKS, Flow, address
from spliffd.pb import spliff_pb2 as pb

FAMILIES = {4: "ipv4", 6: "ipv6"}


def response(
    flows: Iterable[tuple[int, Flow]],
    names: Mapping[int, str],
    owner_of: Callable[[int, Flow], int],
    wanted: frozenset[int],
    clock_ns: int,
    mask: Callable[[str], str],
    proc: str = "/proc",
) -> bytes:
    """A serialised ListFlowsResponse.

    ``names``: interfaces by index; ``owner_of(cookie, flow)``: pid or 0; ``wanted``: only flows of these
    pids, empty for all; ``clock_ns``: what to add to ktime to get time since the epoch; ``mask`` masks
    secrets in a command line.
    """
    known: dict[int, pb.Process] = {}
    answer = pb.ListFlowsResponse()
    for cookie, flow in flows:
        if flow.closed_ns:
            continue
        pid = owner_of(cookie, flow)
        if wanted and pid not in wanted:
            continue
        if pid and pid not in known:
            known[pid] = read_process(pid, proc)
            known[pid].cmdline = mask(known[pid].cmdline)
        answer.flows.append(message(cookie, flow, names, clock_ns, known.get(pid)))
    return answer.SerializeToString()


def message(
    cookie: int, flow: Flow, names: Mapping[int, str], clock_ns: int, process: pb.Process | None
) -> pb.Flow:
    """One flow; its totals are those of the interface that saw it first."""
    hops = flow.hops
    connection = pb.Connection(
        local=pb.Endpoint(address=address(flow.local, flow.family), port=flow.local_port),
        remote=pb.Endpoint(address=address(flow.remote, flow.family), port=flow.remote_port),
        role=records.ROLES[flow.role] if flow.role < len(records.ROLES) else "",
        family=FAMILIES.get(flow.family, ""),
        netns_cookie=flow.netns_cookie,
        socket_cookie=cookie,
        path=[
            pb.PathHop(
                interface=_name(names, hop.ifindex),
                hook=HOOKS[hop.hook],
                packets=hop.packets_sent + hop.packets_received,
            )
            for hop in hops
        ],
    )
    if hops:
        first = hops[0]
        connection.interface = _name(names, first.ifindex)
        connection.packets_sent, connection.packets_received = first.packets_sent, first.packets_received
        connection.bytes_sent, connection.bytes_received = first.bytes_sent, first.bytes_received
    return pb.Flow(
        connection=connection,
        process=process,
        wire=flow.wire,
        first_time_ns=flow.first_ns + clock_ns,
        last_time_ns=flow.last_ns + clock_ns,
        client_hello=bool(flow.flags & CLIENT_HELLO),
    )


def _name(names: Mapping[int, str], index: int) -> str:
    return names.get(index) or f"if{index}"


def read_process(pid: int, proc: str = "/proc") -> pb.Process:
    """What /proc says of a process now; only the pid when it is gone. Source: proc(5)."""
    process = pb.Process(pid=pid)
    folder = f"{proc}/{pid}"
    try:
        with open(f"{folder}/stat", "rb") as file:
            stat = file.read()
        # The command name stands in brackets and may hold any byte.
        name, _, rest = stat.partition(b"(")[2].rpartition(b")")
        with open(f"{folder}/cmdline", "rb") as file:
            arguments = file.read(CMDLINE_BYTES).rstrip(b"\0").decode(errors="replace").split("\0")
        with open(f"{folder}/cgroup", "rb") as file:
            cgroup = parse_cgroup(file.read().decode(errors="replace"))
        uid = os.stat(folder).st_uid
        ppid = int(rest.split()[1])
    except (OSError, ValueError, IndexError):
        return process
    unit, container = owners(cgroup)
    process.comm, process.cmdline = (
        name.decode(errors="replace"),
        shlex.join(arguments) if arguments[0] else "",
    )
    process.ppid, process.uid, process.user = ppid, uid, user_name(uid)
    process.cgroup, process.unit, process.container_id = cgroup, unit, container
    with contextlib.suppress(OSError):  # a kernel thread has none
        process.exe = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")
    return process
