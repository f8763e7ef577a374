"""Loads compiled programs: map numbers become file descriptors, then the verifier sees them.

Takes ``Compiled`` instructions and ``Maps``; returns program fds by name. A program that the kernel
refuses raises HostError with the verifier's words. Nothing is attached here: ``links`` does that.
Source of the instruction format: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from spliffd.errors import HostError
from spliffd.kernel import bpf
from spliffd.kernel.compile import ITERATOR, STATE_TRACEPOINT, Compiled
from spliffd.kernel.maps import NUMBERS, Maps

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1

# program -> (type, attach type)
_KINDS = {
    "tls_enter": bpf.PROG_KPROBE,
    "tls_exit": bpf.PROG_KPROBE,
    "tls_set_fd": bpf.PROG_KPROBE,
    "tls_end": bpf.PROG_KPROBE,
    "socket_sent_raw": bpf.PROG_RAW_TRACEPOINT,
    "socket_received_raw": bpf.PROG_RAW_TRACEPOINT,
    "state_changed_raw": bpf.PROG_RAW_TRACEPOINT,
    "process_exec": bpf.PROG_RAW_TRACEPOINT,
    "process_exit": bpf.PROG_RAW_TRACEPOINT,
    "socket_ops": bpf.PROG_SOCK_OPS,
    "xdp_l2": bpf.PROG_XDP,
    "xdp_l3": bpf.PROG_XDP,
    "tc_ingress_l2": bpf.PROG_SCHED_CLS,
    "tc_ingress_l3": bpf.PROG_SCHED_CLS,
    "tc_egress_l2": bpf.PROG_SCHED_CLS,
    "tc_egress_l3": bpf.PROG_SCHED_CLS,
    "xdp_egress_l2": bpf.PROG_SCHED_CLS,
    "xdp_egress_l3": bpf.PROG_SCHED_CLS,
}


_SPARE = ("socket_sent_raw", "socket_received_raw", "state_changed_raw")
"""Needed only where the typed tracepoints cannot be had."""

LOADERS = 2
"""Threads that load: the daemon's own share of a large host at start, too."""


def relocate(code: bytes, maps: Maps) -> bytes:
    """Replaces the numbers of bpf/maps.h by fds in every 64-bit immediate load marked as a map."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        if out[at] == _LD_IMM64:
            if out[at + 1] >> 4 == _PSEUDO_MAP_FD:
                number = int.from_bytes(out[at + 4 : at + 8], "little")
                out[at + 4 : at + 8] = maps.fd[NUMBERS[number]].to_bytes(4, "little")
            at += 8  # the instruction is two slots long
        at += 8
    return bytes(out)


class Programs:
    """Loaded programs by name, and whether uprobes can be attached many at a time."""

    def __init__(self, compiled: Compiled, maps: Maps) -> None:
        self.fd: dict[str, int] = {}
        self.uprobe_multi = True
        self.typed_sockets = False
        self.typed_states = False
        self.seeding = ""
        """Why sockets older than the daemon cannot be found; empty when they can."""
        self._compiled = compiled
        self._maps = maps
        # The verifier takes up to 0.3 s for one, 1.2 s for all: two at a time, the largest first.
        with ThreadPoolExecutor(LOADERS) as loaders:
            seeding = loaders.submit(self._load_seeding)
            typed = loaders.submit(self._load_typed)
            largest = sorted(_KINDS, key=lambda name: -len(compiled.code[name]))
            plain = [loaders.submit(self._load_plain, name) for name in largest if name not in _SPARE]
            typed.result()
            spare = set() if self.typed_sockets else {"socket_sent_raw", "socket_received_raw"}
            spare |= set() if self.typed_states else {"state_changed_raw"}
            plain += [loaders.submit(self._load_plain, name) for name in spare]
            for each in (*plain, seeding):
                each.result()

    def _load_plain(self, name: str) -> None:
        kind = _KINDS[name]
        attach = bpf.ATTACH_NONE
        if kind == bpf.PROG_KPROBE and self.uprobe_multi:
            attach = bpf.ATTACH_UPROBE_MULTI
        elif kind == bpf.PROG_SOCK_OPS:
            attach = bpf.ATTACH_SOCK_OPS
        # Drivers take a program on a large MTU only when it says that it can read packets in pieces.
        flags = bpf.F_XDP_HAS_FRAGS if kind == bpf.PROG_XDP else 0
        try:
            self.fd[name] = self._load(name, kind, attach, flags=flags)
        except bpf.VerifierError as error:
            raise HostError(
                f"the kernel refused the eBPF program {name}: {error}: {error.log}",
                "run `spliffd doctor`; if it finds nothing, please report this",
            ) from None

    def _load(self, name: str, kind: int, attach: int, btf_id: int = 0, flags: int = 0) -> int:
        code = relocate(self._compiled.code[name], self._maps)
        return bpf.prog_load(kind, code, name, attach, btf_id, flags)

    def _load_typed(self) -> None:
        """Typed tracepoint programs, where the kernel has the tracepoints and allows them.

        Where it does not, the plain ones serve; `spliffctl status` shows which.
        """
        self.typed_sockets = all(
            [
                self._load_tracepoint("socket_sent", "sock_send_length"),
                self._load_tracepoint("socket_received", "sock_recv_length"),
            ]
        )
        self.typed_states = self._load_tracepoint("state_changed", STATE_TRACEPOINT)

    def _load_tracepoint(self, name: str, tracepoint: str) -> bool:
        btf_id = self._compiled.tracepoints.get(tracepoint)
        if btf_id is None:
            return False
        try:
            self.fd[name] = self._load(name, bpf.PROG_TRACING, bpf.ATTACH_RAW_TP, btf_id)
        except OSError:
            return False
        return True

    def _load_seeding(self) -> None:
        """The iterator over all descriptors, where the kernel has it and allows it."""
        btf_id = self._compiled.iterators.get(ITERATOR)
        if btf_id is None:
            self.seeding = f"this kernel has no iterator {ITERATOR}"
            return
        try:
            self.fd["seed_sockets"] = self._load("seed_sockets", bpf.PROG_TRACING, bpf.ATTACH_ITER, btf_id)
        except bpf.VerifierError as error:
            self.seeding = f"the kernel refuses the iterator {ITERATOR}: {error}: {error.log}"

    def load_perf_flavour(self) -> None:
        """Loads the uprobe programs anew for perf-event links (kernels without uprobe_multi)."""
        self.uprobe_multi = False
        for name, kind in _KINDS.items():
            if kind == bpf.PROG_KPROBE:
                os.close(self.fd[name])
                self.fd[name] = self._load(name, kind, bpf.ATTACH_NONE)

    def close(self) -> None:
        """Gives the programs back; what links hold stays until they go."""
        for fd in self.fd.values():
            os.close(fd)
