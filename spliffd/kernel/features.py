"""What this kernel can do, found out by trying, for `spliffd doctor`.

Takes nothing; returns doctor checks. A feature is probed by loading the smallest program of its kind,
never concluded from the version number: distributions backport. Everything tried is closed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from spliffd.doctor import Check, State
from spliffd.kernel import bpf, netlinks
from spliffd.kernel.btf import Btf
from spliffd.kernel.compile import BTF_PATH, TYPED_TRACEPOINTS

_RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")
"""mov r0, 0; exit"""


def _loads(kind: int, attach_type: int) -> OSError | None:
    try:
        os.close(bpf.prog_load(kind, _RETURN_0, "spliff_probe", attach_type))
    except OSError as error:
        return error
    return None


def programs() -> Check:
    """Whether eBPF programs can be loaded at all."""
    error = _loads(bpf.PROG_KPROBE, bpf.ATTACH_NONE)
    if error is None:
        return Check("eBPF", State.OK, "tracing programs load")
    return Check(
        "eBPF",
        State.MISSING,
        f"the kernel refuses tracing programs: {error.strerror}",
        "run as root on the host, not in a container without CAP_BPF and CAP_PERFMON",
    )


def attach() -> Check:
    """Many probes with one link (6.6), or one perf event each."""
    if _loads(bpf.PROG_KPROBE, bpf.ATTACH_UPROBE_MULTI) is None:
        return Check("attach", State.OK, "uprobe_multi links")
    return Check("attach", State.DEGRADED, "perf event links (slower to attach)", "kernel 6.6 or newer")


def sockets() -> Check:
    """Whether socket operations inside TLS calls can be observed (6.3)."""
    try:
        btf = Btf(os.environ.get("SPLIFF_BTF", BTF_PATH))
        for name in TYPED_TRACEPOINTS:
            btf.tracepoint_id(name)
    except (LookupError, OSError):
        return Check(
            "sockets",
            State.DEGRADED,
            "no sock_send_length tracepoint: only SSL_set_fd names sockets",
            "kernel 6.3 or newer",
        )
    return Check("sockets", State.OK, "sock_send_length, sock_recv_length")


def packets() -> Check:
    """XDP programs, and TC with links (6.6) or clsact filters. Attaches to nothing."""
    programs: list[int] = []
    try:
        for kind in (bpf.PROG_XDP, bpf.PROG_SCHED_CLS):
            programs.append(bpf.prog_load(kind, _RETURN_0, "spliff_probe"))  # noqa: PERF401 - closed below
        tcx = netlinks.has_tcx(programs[1])
    except OSError as error:
        return Check(
            "packets",
            State.DEGRADED,
            f"the kernel refuses packet programs: {error.strerror}",
            "run as root, with CAP_NET_ADMIN; the rest works without packets",
        )
    finally:
        for fd in programs:
            os.close(fd)
    if tcx:
        return Check("packets", State.OK, "TCX links, XDP links")
    return Check(
        "packets",
        State.DEGRADED,
        "clsact filters, which stay behind a killed daemon until its next start",
        "kernel 6.6 or newer",
    )


CHECKS: tuple[Callable[[], Check], ...] = (programs, attach, sockets, packets)
"""For `doctor.main(extra=...)`."""
