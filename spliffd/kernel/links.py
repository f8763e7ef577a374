"""Attaches programs, by bpf links only: what is held by a link goes when the link's fd goes.

Takes loaded ``Programs`` and, for uprobes, a path and a list of ``Probe`` places; returns ``Attached``,
whose ``close`` detaches. kill -9 of the supervisor therefore leaves nothing behind: no uprobe_events
entry, no cgroup program. Never uses BCC's attach functions (iovisor/bcc issue 5236: a garbage reference
counter offset that breaks other tracers).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import msgspec

from spliffd.counters import LIBRARIES
from spliffd.kernel import bpf, records, ways
from spliffd.kernel.compile import STATE_TRACEPOINT
from spliffd.kernel.loader import Programs


class Probe(msgspec.Struct):
    """A place in a file: ``offset`` is a file offset, ``op`` and ``flavour`` are names of records.py."""

    offset: int
    op: str
    flavour: str
    returns: bool
    zero_is_eof: bool = False
    placement: str = "entry"
    """"return": at a RET instruction."""
    known_only: bool = False
    test: int = 0
    """Number of the self-test that compares it with a witness; 0: none."""


def attach_cookie(probe: Probe, library: str) -> int:
    """What the probe tells its program: op, flavour, library."""
    number = LIBRARIES.index(library) + 1
    cookie = records.OPS[probe.op] | records.FLAVOURS[probe.flavour] << 8 | number << 16
    cookie |= records.COOKIE_KNOWN_ONLY if probe.known_only else 0
    cookie |= probe.test << 32
    return cookie | (records.COOKIE_ZERO_IS_EOF if probe.zero_is_eof else 0)


class Attached:
    """Links of one file, one tracepoint, or one cgroup."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def close(self) -> None:
        """Detaches."""
        for fd in self.let_go():
            os.close(fd)

    def let_go(self) -> list[int]:
        """Its descriptors, for somebody else to close."""
        fds, self.fds = self.fds, []
        return fds


CLOSERS = 256
"""Links that are taken away at a time: five hundred libraries have three thousand."""


def close_all(every: list[Attached]) -> None:
    """Detaches many at a time.

    Each link waits until no program runs that may be its own, 50 ms on a busy host; those that wait at the
    same time wait for the same moment.
    """
    fds = [fd for one in every for fd in one.let_go()]
    if fds:
        with ThreadPoolExecutor(min(CLOSERS, len(fds))) as closers:
            list(closers.map(os.close, fds))


_GO_RETURN = {"read": "go_read", "write": "go_wrote"}
_PROGRAMS = (
    *("go_read", "go_wrote", "go_shook_hands", "go_end", "go_enter"),
    *("tls_set_fd", "tls_end", "tls_enter", "tls_error", "fact_enter"),
)
"""In the order of attaching: ends before beginnings."""
_ENTER = {
    "set_fd": "tls_set_fd",
    "free": "tls_end",
    "clear": "tls_end",
    "error": "tls_error",
    "alpn": "fact_enter",
    "verified": "fact_enter",
}


def _enter_program(library: str, probe: Probe) -> str:
    if library != "go":
        return _ENTER.get(probe.op, "tls_enter")
    if probe.placement == "return":
        return _GO_RETURN.get(probe.op, "go_shook_hands")
    return "go_end" if probe.op == "free" else "go_enter"


def attach_library(programs: Programs, path: str, library: str, probes: list[Probe]) -> Attached:
    """Attaches all ``probes`` to the file at ``path``, for every process that maps it.

    The return programs are attached first: a call that begins in between is not seen at all, instead of
    being seen without its end. Raises OSError when the kernel refuses.
    """
    attached = Attached([])
    groups: list[tuple[str, bool, list[Probe]]] = []
    calls = [p for p in probes if p.returns and _enter_program(library, p) != "fact_enter"]
    groups.append(("fact_exit", True, [p for p in probes if _enter_program(library, p) == "fact_enter"]))
    if programs.sessions and calls:
        probes = [p for p in probes if p not in calls]
    else:
        groups.append(("tls_exit", True, calls))
    groups += [
        (program, False, [p for p in probes if _enter_program(library, p) == program])
        for program in _PROGRAMS
    ]
    try:
        if programs.sessions and calls:
            attached.fds.append(_attach_session(programs, path, library, calls))
        for program, at_return, members in groups:
            if members:
                attached.fds += _attach(programs, program, path, library, members, at_return=at_return)
    except OSError:
        attached.close()
        raise
    return attached


def attach_witnesses(programs: Programs, path: str, library: str, probes: list[Probe]) -> Attached:
    """Attaches what notes the arguments of calls at first instructions; raises OSError."""
    return Attached(_attach(programs, "tls_witness", path, library, probes, at_return=False))


def _attach_session(programs: Programs, path: str, library: str, probes: list[Probe]) -> int:
    cookies = [attach_cookie(p, library) for p in probes]
    offsets = [p.offset for p in probes]
    return bpf.uprobe_multi_link(programs.fd["tls_call"], path, offsets, cookies, returns=False, session=True)


def _attach(
    programs: Programs, program: str, path: str, library: str, probes: list[Probe], *, at_return: bool
) -> list[int]:
    offsets = [p.offset for p in probes]
    cookies = [attach_cookie(p, library) for p in probes]
    if programs.uprobe_multi:
        return [bpf.uprobe_multi_link(programs.fd[program], path, offsets, cookies, returns=at_return)]
    attached = Attached([])
    try:
        for offset, cookie in zip(offsets, cookies, strict=True):
            attached.fds += bpf.uprobe_perf_link(
                programs.fd[program], path, offset, cookie, returns=at_return
            )
    except OSError:
        attached.close()
        raise
    return attached.fds


def attach_processes(programs: Programs) -> Attached:
    """Start (exec) and end of processes."""
    return Attached(
        [
            bpf.raw_tracepoint_open(programs.fd["process_exit"], "sched_process_exit"),
            bpf.raw_tracepoint_open(programs.fd["process_exec"], "sched_process_exec"),
        ]
    )


def attach_sockets(programs: Programs) -> tuple[Attached, str]:
    """Socket operations inside TLS calls, in the first way that this kernel takes; returns also which.

    Raises OSError that says why it takes none.
    """
    return _first_way(programs, programs.socket_ways)


def attach_mappings(
    programs: Programs, choice: tuple[ways.Way, ...] = ways.MAPPING_WAYS
) -> tuple[Attached, str]:
    """New mappings of files, in the same manner."""
    return _first_way(programs, choice)


def _first_way(programs: Programs, choice: tuple[ways.Way, ...]) -> tuple[Attached, str]:
    refusals: list[str] = []
    for way in choice:
        attached = Attached([])
        try:
            programs.load_way(way)
            for hook in way.hooks:
                attached.fds += ways.attach(way, hook, programs.fd[hook.program])
        except OSError as error:
            attached.close()
            refusals.append(f"{way.text}: {error.strerror}")
            continue
        return attached, way.text
    raise OSError("; ".join(refusals))


def attach_states(programs: Programs) -> tuple[Attached, str]:
    """Changes of TCP states, which close flows; returns also which flavour it is."""
    if programs.typed_states:
        return Attached([bpf.raw_tracepoint_open(programs.fd["state_changed"])]), f"typed {STATE_TRACEPOINT}"
    fd = bpf.raw_tracepoint_open(programs.fd["state_changed_raw"], STATE_TRACEPOINT)
    return Attached([fd]), f"raw {STATE_TRACEPOINT}"


def attach_sock_ops(programs: Programs, cgroup_fds: list[int]) -> Attached:
    """sock_ops at each cgroup directory (the root, or the scope's)."""
    fds = [bpf.link_create(programs.fd["socket_ops"], fd, bpf.ATTACH_SOCK_OPS) for fd in cgroup_fds]
    return Attached(fds)
