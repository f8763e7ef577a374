"""What this kernel can do, found out by trying, for `spliffd doctor`.

Takes nothing; returns doctor checks. A feature is probed by loading the smallest program of its kind,
never concluded from the version number: distributions backport. Everything tried is closed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from spliffd.doctor import Check, State
from spliffd.kernel import bpf
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


CHECKS: tuple[Callable[[], Check], ...] = (programs, attach, sockets)
"""For `doctor.main(extra=...)`."""
