"""Loads compiled programs: map numbers become file descriptors, then the verifier sees them.

Takes ``Compiled`` instructions and ``Maps``; returns program fds by name. A program that the kernel
refuses raises HostError with the verifier's words. Nothing is attached here: ``links`` does that.
Source of the instruction format: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import os

from spliffd.errors import HostError
from spliffd.kernel import bpf
from spliffd.kernel.compile import Compiled
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
    "process_exec": bpf.PROG_RAW_TRACEPOINT,
    "process_exit": bpf.PROG_RAW_TRACEPOINT,
    "socket_ops": bpf.PROG_SOCK_OPS,
}


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
        self._compiled = compiled
        self._maps = maps
        for name, kind in _KINDS.items():
            attach = bpf.ATTACH_NONE
            if kind == bpf.PROG_KPROBE and self.uprobe_multi:
                attach = bpf.ATTACH_UPROBE_MULTI
            elif kind == bpf.PROG_SOCK_OPS:
                attach = bpf.ATTACH_SOCK_OPS
            try:
                self.fd[name] = self._load(name, kind, attach)
            except bpf.VerifierError as error:
                raise HostError(
                    f"the kernel refused the eBPF program {name}: {error}: {error.log}",
                    "run `spliffd doctor`; if it finds nothing, please report this",
                ) from None
        self._load_typed()

    def _load(self, name: str, kind: int, attach: int, btf_id: int = 0) -> int:
        code = relocate(self._compiled.code[name], self._maps)
        return bpf.prog_load(kind, code, name, attach, btf_id)

    def _load_typed(self) -> None:
        """Typed socket tracepoints, where the kernel has them (6.3) and allows them."""
        wanted = {"socket_sent": "sock_send_length", "socket_received": "sock_recv_length"}
        ids = self._compiled.tracepoints
        if not all(name in ids for name in wanted.values()):
            return
        try:
            for name, tracepoint in wanted.items():
                self.fd[name] = self._load(name, bpf.PROG_TRACING, bpf.ATTACH_RAW_TP, ids[tracepoint])
        except OSError:
            return  # the plain ones serve; `spliffd doctor` shows which
        self.typed_sockets = True

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
