"""Questions to the kernel that are answered by trying, with a program that does nothing.

Returns whether the kernel can, or raises as the real thing would. Nothing stays behind. A version number
would not do: distributions backport.
"""

from __future__ import annotations

import errno
import os

from spliffd.kernel import bpf, ways
from spliffd.kernel.btf import Btf

RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")
"""mov r0, 0; exit"""


def has_uprobe_multi() -> bool:
    """Whether one link can attach many uprobes (6.6), asked by way of a file that cannot be probed.

    Raises OSError where not even the smallest program may be loaded.
    """
    fd = bpf.prog_load(bpf.PROG_KPROBE, RETURN_0, "spliff_probe", bpf.ATTACH_UPROBE_MULTI)
    try:
        bpf.uprobe_multi_link(fd, "/", [0], [0], returns=False)
    except OSError as error:
        return error.errno == errno.EBADF  # not a regular file; EINVAL where such links are not known
    finally:
        os.close(fd)
    return True


def try_way(way: ways.Way, types: Btf) -> None:
    """Loads and attaches a way to observe sockets; raises OSError, or LookupError for what is not there."""
    opened: list[int] = []
    try:
        for hook in way.hooks:
            btf_id = 0
            if way.attach == bpf.ATTACH_FEXIT:
                btf_id = types.function_id(hook.target)
            elif way.kind == bpf.PROG_TRACING:
                btf_id = types.tracepoint_id(hook.target)
            program = bpf.prog_load(way.kind, RETURN_0, "spliff_probe", way.attach, btf_id)
            opened.append(program)
            opened += ways.attach(way, hook, program)
    finally:
        for fd in reversed(opened):
            os.close(fd)
