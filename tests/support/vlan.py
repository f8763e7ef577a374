"""802.1Q tags on a veth pair without the kernel's VLAN module: two TC programs of four instructions.

``tagged`` pushes a tag on everything that an interface sends and takes it off everything that it receives,
as a switch's trunk port does, so that the frames in between are really tagged. Held by links (TCX): they go
with the test's process. Needs bpf_skb_vlan_push (helper 18) and bpf_skb_vlan_pop (helper 19).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from spliffd.kernel import bpf
from tests.support.net import Namespace, inside

SCHED_CLS = 3
TCX_INGRESS, TCX_EGRESS = 46, 47
ETH_P_8021Q = 0x8100

_MOV_IMM, _CALL, _EXIT = 0xB7, 0x85, 0x95


def _instruction(code: int, register: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, register, 0, immediate)


def _program(*instructions: bytes) -> bytes:
    # TCX_NEXT: whatever else is attached sees the packet too.
    return b"".join(instructions) + _instruction(_MOV_IMM, 0, -1) + _instruction(_EXIT, 0, 0)


@contextmanager
def tagged(namespace: Namespace, interface: str, tag: int) -> Iterator[None]:
    """Frames on the wire carry VLAN ``tag`` for as long as the block lasts; programs attached earlier on
    this interface see incoming frames tagged, later ones outgoing frames."""
    protocol = ETH_P_8021Q.to_bytes(2, "big")
    push = _program(
        _instruction(_MOV_IMM, 2, int.from_bytes(protocol, "little")),
        _instruction(_MOV_IMM, 3, tag),
        _instruction(_CALL, 0, 18),
    )
    pop = _program(_instruction(_CALL, 0, 19))
    fds = []
    try:
        index = namespace.index(interface)
        for code, hook in ((push, TCX_EGRESS), (pop, TCX_INGRESS)):
            fds.append(bpf.prog_load(SCHED_CLS, code, "vlan"))
            with inside(namespace):
                fds.append(bpf.link_create(fds[-1], index, hook))
        yield
    finally:
        for fd in reversed(fds):
            os.close(fd)
