"""The ways in which something can be observed, best first: socket operations inside TLS calls, new mappings.

Takes nothing; ``SOCKET_WAYS`` and ``MAPPING_WAYS`` are tables. Which one a kernel takes is found out by
loading and attaching (``loader``, ``links``; ``features`` for the doctor), never from its version. All ways
to a socket name that of the same call by the same evidence (SOCKET_NESTED); they differ in what they cost
and in what the cookie is: read, or made by the kernel when nobody has asked for it yet. See
bpf/sockets.bpf.c, bpf/mapped.bpf.c.
"""

from __future__ import annotations

from typing import NamedTuple

from spliffd.kernel import bpf


class Hook(NamedTuple):
    """One program and where it hangs."""

    program: str
    target: str
    """Tracepoint or function of the kernel."""
    returns: bool = False
    """Of a kprobe: at the function's return."""


class Way(NamedTuple):
    """One way: all of its hooks, or none."""

    text: str
    """What `spliffctl status` and the doctor call it."""
    kind: int
    """Program type."""
    attach: int
    """Expected attach type."""
    hooks: tuple[Hook, ...]


TYPED = Way(
    "typed tracepoints sock_send_length, sock_recv_length",
    bpf.PROG_TRACING,
    bpf.ATTACH_RAW_TP,
    (Hook("socket_sent", "sock_send_length"), Hook("socket_received", "sock_recv_length")),
)
RAW = Way(
    "raw tracepoints sock_send_length, sock_recv_length",
    bpf.PROG_RAW_TRACEPOINT,
    bpf.ATTACH_NONE,
    (Hook("socket_sent_raw", "sock_send_length"), Hook("socket_received_raw", "sock_recv_length")),
)
FEXIT = Way(
    "fexit of tcp_sendmsg, tcp_recvmsg",
    bpf.PROG_TRACING,
    bpf.ATTACH_FEXIT,
    (Hook("tcp_sent", "tcp_sendmsg"), Hook("tcp_received", "tcp_recvmsg")),
)
KPROBE = Way(
    "kprobes on tcp_sendmsg, tcp_recvmsg",
    bpf.PROG_KPROBE,
    bpf.ATTACH_NONE,
    # Returns first: a call that begins in between is not seen at all.
    (
        Hook("tcp_sent_return", "tcp_sendmsg", returns=True),
        Hook("tcp_received_return", "tcp_recvmsg", returns=True),
        Hook("tcp_entered", "tcp_sendmsg"),
        Hook("tcp_entered", "tcp_recvmsg"),
    ),
)
SOCKET_WAYS = (TYPED, RAW, FEXIT, KPROBE)

MAPPING_WAYS = (
    Way(
        "fentry of perf_event_mmap",
        bpf.PROG_TRACING,
        bpf.ATTACH_FENTRY,
        (Hook("mapping_made_fentry", "perf_event_mmap"),),
    ),
    Way(
        "kprobe on perf_event_mmap",
        bpf.PROG_KPROBE,
        bpf.ATTACH_NONE,
        (Hook("mapping_made_kprobe", "perf_event_mmap"),),
    ),
    Way(
        "typed tracepoints mm_filemap_map_pages, mm_filemap_fault",
        bpf.PROG_TRACING,
        bpf.ATTACH_RAW_TP,
        (Hook("pages_mapped", "mm_filemap_map_pages"), Hook("page_faulted", "mm_filemap_fault")),
    ),
)


def attach(way: Way, hook: Hook, prog_fd: int) -> list[int]:
    """Attaches one hook's program; returns the fds to keep. Raises OSError."""
    if way.kind == bpf.PROG_TRACING:
        return [bpf.raw_tracepoint_open(prog_fd)]
    if way.kind == bpf.PROG_RAW_TRACEPOINT:
        return [bpf.raw_tracepoint_open(prog_fd, hook.target)]
    return bpf.kprobe_perf_link(prog_fd, hook.target, returns=hook.returns)
