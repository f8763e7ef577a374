"""What this kernel can do, found out by trying, for `spliffd doctor`.

Takes nothing; returns doctor checks, each of which says the way that spliffd would take. A feature is probed
by loading the smallest program of its kind, and attaching it where that is another question; never concluded
from the version number: distributions backport. Everything tried is closed again, and reads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from spliffd.doctor import Check, State
from spliffd.kernel import bpf, netlinks, probes, ways
from spliffd.kernel.btf import Btf
from spliffd.kernel.compile import BTF_PATH, ITERATOR, STATE_TRACEPOINT

UPROBES = {
    True: "uprobe_multi links: one for all places of a file",
    False: "perf event links with cookie: one for each place",
}
"""How uprobes are attached, by whether the kernel has uprobe_multi."""


def _loads(kind: int, attach_type: int, btf_id: int = 0) -> OSError | None:
    try:
        os.close(bpf.prog_load(kind, probes.RETURN_0, "spliff_probe", attach_type, btf_id))
    except OSError as error:
        return error
    return None


def _types() -> Btf:
    """Type information of this kernel; raises LookupError."""
    return Btf(os.environ.get("SPLIFF_BTF", BTF_PATH))


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
    """Many probes with one link (6.6), or a perf event for each (5.15): slower to attach, else the same."""
    try:
        return Check("attach", State.OK, UPROBES[probes.has_uprobe_multi()])
    except OSError as error:
        return Check("attach", State.MISSING, f"uprobe programs are refused: {error.strerror}", "as for eBPF")


def sockets() -> Check:
    """How socket operations inside TLS calls are observed, if at all."""
    refusals: list[str] = []
    try:
        types = _types()
        for way in ways.SOCKET_WAYS:
            try:
                probes.try_way(way, types)
            except LookupError:
                refusals.append(f"{way.text}: not in this kernel")
            except OSError as error:
                refusals.append(f"{way.text}: {error.strerror}")
            else:
                return Check("sockets", State.OK, way.text)
    except LookupError as error:
        refusals.append(str(error))
    return Check(
        "sockets",
        State.DEGRADED,
        "only SSL_set_fd names sockets; " + "; ".join(refusals),
        "kernel 6.3 or newer, or one built with CONFIG_KPROBES=y",
    )


def states() -> Check:
    """How the end of connections is seen; the plain tracepoint cannot make the kernel give out a cookie."""
    try:
        kind = (bpf.PROG_TRACING, bpf.ATTACH_RAW_TP, _types().tracepoint_id(STATE_TRACEPOINT))
    except LookupError:
        return Check("flows", State.OK, f"raw tracepoint {STATE_TRACEPOINT}")
    flavour = "typed" if _loads(*kind) is None else "raw"
    return Check("flows", State.OK, f"{flavour} tracepoint {STATE_TRACEPOINT}")


def seeding() -> Check:
    """Whether connections that are older than the daemon can be found (5.8)."""
    try:
        refusal = _loads(bpf.PROG_TRACING, bpf.ATTACH_ITER, _types().iterator_id(ITERATOR))
    except LookupError:
        refusal = OSError(0, f"no iterator {ITERATOR} in this kernel")
    if refusal is None:
        return Check("older sockets", State.OK, f"iterator {ITERATOR}")
    return Check(
        "older sockets",
        State.DEGRADED,
        f"connections older than the daemon have no packets: {refusal.strerror}",
        "kernel 5.8 or newer; or restart the programs after spliffd",
    )


def packets() -> Check:
    """XDP programs, and TC with links (6.6) or clsact filters. Attaches to nothing."""
    programs: list[int] = []
    try:
        for kind in (bpf.PROG_XDP, bpf.PROG_SCHED_CLS):
            programs.append(bpf.prog_load(kind, probes.RETURN_0, "spliff_probe"))  # noqa: PERF401 - closed below
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


CHECKS: tuple[Callable[[], Check], ...] = (programs, attach, sockets, states, seeding, packets)
"""For `doctor.main(extra=...)`."""
