"""Loads compiled programs: map numbers become file descriptors, then the verifier sees them.

Takes ``Compiled`` instructions and ``Maps``; returns program fds by name. A program that the kernel
refuses raises HostError with the verifier's words. Nothing is attached here: ``links`` does that.
Source of the instruction format: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor

from spliffd.errors import HostError
from spliffd.kernel import bpf, probes, ways
from spliffd.kernel.compile import ITERATOR, SESSION_IS_RETURN, STATE_TRACEPOINT, Compiled
from spliffd.kernel.maps import NUMBERS, Maps

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1

_KINDS = {
    "tls_enter": bpf.PROG_KPROBE,
    "tls_exit": bpf.PROG_KPROBE,
    "tls_witness": bpf.PROG_KPROBE,
    "tls_set_fd": bpf.PROG_KPROBE,
    "tls_end": bpf.PROG_KPROBE,
    "tls_error": bpf.PROG_KPROBE,
    "fact_enter": bpf.PROG_KPROBE,
    "fact_exit": bpf.PROG_KPROBE,
    "go_enter": bpf.PROG_KPROBE,
    "go_read": bpf.PROG_KPROBE,
    "go_wrote": bpf.PROG_KPROBE,
    "go_shook_hands": bpf.PROG_KPROBE,
    "go_end": bpf.PROG_KPROBE,
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


LOADERS = 2
"""Threads that load: the daemon's own share of a large host at start, too."""


_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2
_KFUNC_NUMBER = 9001
"""KFUNC_SESSION_IS_RETURN in bpf/common.bpf.h."""


def call_kernel(code: bytes, btf_id: int) -> bytes:
    """Makes calls of helper 9001 calls of the kernel function with that type id."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        if out[at] == _CALL and int.from_bytes(out[at + 4 : at + 8], "little") == _KFUNC_NUMBER:
            out[at + 1] = _PSEUDO_KFUNC_CALL << 4
            out[at + 4 : at + 8] = btf_id.to_bytes(4, "little")
        at += 16 if out[at] == _LD_IMM64 else 8
    return bytes(out)


def relocate(code: bytes, fds: dict[str, int]) -> bytes:
    """Replaces the numbers of bpf/maps.h by ``fds`` in every 64-bit immediate load marked as a map."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        if out[at] == _LD_IMM64:
            if out[at + 1] >> 4 == _PSEUDO_MAP_FD:
                number = int.from_bytes(out[at + 4 : at + 8], "little")
                out[at + 4 : at + 8] = fds[NUMBERS[number]].to_bytes(4, "little")
            at += 8  # the instruction is two slots long
        at += 8
    return bytes(out)


class Programs:
    """Loaded programs by name; what depends on the kernel is loaded in the first way that it takes.

    ``uprobe_multi`` and ``socket_ways`` are for tests of the ways that this kernel would not choose.
    """

    def __init__(
        self,
        compiled: Compiled,
        maps: Maps,
        *,
        uprobe_multi: bool | None = None,
        sessions: bool = True,
        socket_ways: tuple[ways.Way, ...] = ways.SOCKET_WAYS,
    ) -> None:
        self.fd: dict[str, int] = {}
        self.uprobe_multi = probes.has_uprobe_multi() if uprobe_multi is None else uprobe_multi
        """Whether one link attaches many uprobes; else there is a perf event for each."""
        self.sessions = sessions and self.uprobe_multi
        """Whether one program sees both ends of a call, and says at the first if it wants the second."""
        self.typed_states = False
        self.seeding = ""
        """Why sockets older than the daemon cannot be found; empty when they can."""
        self.socket_ways = socket_ways
        self._compiled = compiled
        self._maps = maps
        # The verifier takes up to 0.1 s for one: two at a time, the largest first.
        with ThreadPoolExecutor(LOADERS) as loaders:
            others = [
                loaders.submit(work)
                for work in (self._load_seeding, self._load_states, self._load_sockets, self._load_session)
            ]
            largest = sorted(_KINDS, key=lambda name: -len(compiled.code[name]))
            for each in (*[loaders.submit(self._load_plain, name) for name in largest], *others):
                each.result()

    def _load_session(self) -> None:
        """The program for uprobe sessions, where the kernel has them (6.13)."""
        btf_id = self._compiled.functions.get(SESSION_IS_RETURN)
        if btf_id is None or not self.sessions:
            self.sessions = False
            return
        code = call_kernel(relocate(self._compiled.code["tls_call"], self._maps.fd), btf_id)
        try:
            self.fd["tls_call"] = bpf.prog_load(bpf.PROG_KPROBE, code, "tls_call", bpf.ATTACH_UPROBE_SESSION)
        except OSError:
            self.sessions = False

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
        return bpf.prog_load(
            kind, relocate(self._compiled.code[name], self._maps.fd), name, attach, btf_id, flags
        )

    def _load_states(self) -> None:
        """The tracepoint of socket states, typed where the kernel has that and allows it, else plain."""
        btf_id = self._compiled.tracepoints.get(STATE_TRACEPOINT)
        if btf_id is not None:
            with contextlib.suppress(OSError):
                self.fd["state_changed"] = self._load(
                    "state_changed", bpf.PROG_TRACING, bpf.ATTACH_RAW_TP, btf_id
                )
                self.typed_states = True
                return
        self.fd["state_changed_raw"] = self._load(
            "state_changed_raw", bpf.PROG_RAW_TRACEPOINT, bpf.ATTACH_NONE
        )

    def _load_sockets(self) -> None:
        """The first way to observe sockets that can be loaded; ``links`` goes on if it cannot be attached."""
        for way in self.socket_ways:
            with contextlib.suppress(OSError):
                self.load_way(way)
                return

    def load_way(self, way: ways.Way) -> None:
        """Loads the programs of a way to observe sockets; raises OSError."""
        known = {**self._compiled.tracepoints, **self._compiled.functions}
        for hook in way.hooks:
            if hook.target not in known:
                raise OSError(errno.ENOENT, f"this kernel has no {hook.target}")
            if hook.program not in self.fd:
                btf_id = known[hook.target] if way.kind == bpf.PROG_TRACING else 0
                self.fd[hook.program] = self._load(hook.program, way.kind, way.attach, btf_id)

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
        """Loads the uprobe programs anew for perf-event links; what is attached stays as it is."""
        self.uprobe_multi = False
        for name, kind in _KINDS.items():
            if kind == bpf.PROG_KPROBE:
                os.close(self.fd[name])
                self.fd[name] = self._load(name, kind, bpf.ATTACH_NONE)

    def close(self) -> None:
        """Gives the programs back; what links hold stays until they go."""
        for fd in self.fd.values():
            os.close(fd)
