"""Takes system calls away from the processes that parse: they cannot reach out, load or start anything.

Called once by each process after ``privileges.drop``, when everything that it needs is open; applies to all
of its threads and cannot be undone. Refused calls fail with EPERM, as any other lack of permission does, so
that a library that only tries (gRPC looks for IPv6) goes on. What the unit's SystemCallFilter= refuses stays
refused: the kernel takes the stricter answer. On machines other than x86-64 and arm64 nothing is done, and
``False`` returned.

Three kinds of process, each with the least: a ``worker`` makes no socket, no process, no file, and of bpf(2)
only looks values up; the ``inspector`` starts a child for each file; the ``api`` makes Unix sockets.
Sources: seccomp(2), linux/seccomp.h, linux/filter.h, asm/unistd_64.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
"""BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_JMP|JGE|K, BPF_RET|K."""

_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; arguments are eight bytes each, the low half first."""

_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_SET_MODE_FILTER, _TSYNC = 1, 1
_X32 = 0x40000000
"""Calls of x86-64's other ABI have this bit: they would be the same calls by other numbers."""

_CLONE_THREAD = 0x00010000
_BPF_COMMANDS = (1, 2, 3, 4, 24, 26)
"""Elements of maps: look up, update, delete, next key, and batches of looking up and updating. All need the
map's fd, and what the fd may (bpf_map_f_flags) is the kernel's to judge."""
_AF_UNIX = 1

_CALLS = {
    # name: (x86-64, arm64); None where the architecture has none
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "mkdirat": (258, 34),
    "mkdir": (83, None),
    "mknodat": (259, 33),
    "symlinkat": (266, 36),
    "linkat": (265, 37),
    "creat": (85, None),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of ``_CALLS``, and AUDIT_ARCH_* of linux/audit.h."""

_NOBODY = (
    *("execve", "execveat", "perf_event_open", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("pidfd_getfd", "mount", "unshare", "setns", "io_uring_setup", "userfaultfd", "keyctl", "add_key"),
    *("init_module", "finit_module", "mkdirat", "mkdir", "mknodat", "symlinkat", "linkat", "creat"),
)
_NETWORK = ("socket", "connect", "bind", "listen", "accept", "accept4")
_PROCESSES = ("fork", "vfork")


def worker() -> bool:
    """For a process that reads a ring: the fds it has are all that it will ever have."""
    return _install(
        [*_refuse(*_NOBODY, *_NETWORK, "socketpair", *_PROCESSES), *_threads_only(), *_elements_only()]
    )


def inspector() -> bool:
    """For the process that reads ELF files: its children do, and inherit this."""
    return _install(_refuse(*_NOBODY, *_NETWORK, "bpf"))


def api() -> bool:
    """For the process that serves: sockets of the host's own, no other process, nothing of the kernel's."""
    return _install([*_refuse(*_NOBODY, *_PROCESSES, "bpf"), *_threads_only(), *_unix_only()])


Rule = tuple[str, bytes]
"""A call, and the instructions that decide about it; when they end, later rules do."""


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _refuse(*names: str) -> list[Rule]:
    return [(name, _step(_RETURN, _REFUSE)) for name in names]


def _threads_only() -> list[Rule]:
    """clone(2) makes threads and nothing else; of clone3 its flags cannot be seen: libc then uses clone."""
    thread = _step(_LOAD, _ARGUMENT) + _step(_ANY_BIT, _CLONE_THREAD, yes=1) + _step(_RETURN, _REFUSE)
    return [("clone", thread), ("clone3", _step(_RETURN, _UNKNOWN))]


def _unix_only() -> list[Rule]:
    return [("socket", _step(_LOAD, _ARGUMENT) + _step(_EQUAL, _AF_UNIX, yes=1) + _step(_RETURN, _REFUSE))]


def _elements_only() -> list[Rule]:
    code = _step(_LOAD, _ARGUMENT)
    for left, command in reversed(list(enumerate(reversed(_BPF_COMMANDS)))):
        code += _step(_EQUAL, command, yes=left + 1)
    return [("bpf", code + _step(_RETURN, _REFUSE))]


def program(rules: list[Rule], column: int, architecture: int) -> bytes:
    """The classic BPF program: struct sock_filter, one after the other. What no rule names is allowed."""
    code = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, architecture, yes=1) + _step(_RETURN, _REFUSE)
    code += _step(_LOAD, _NUMBER)
    if column == 0:
        code += _step(_AT_LEAST, _X32, no=1) + _step(_RETURN, _REFUSE)
    for name, decide in rules:
        number = _CALLS[name][column]
        if number is None:
            continue
        block = decide + _step(_LOAD, _NUMBER)
        code += _step(_EQUAL, number, no=len(block) // 8) + block
    return code + _step(_RETURN, _ALLOW)


def _install(rules: list[Rule]) -> bool:
    """Applies to all threads at once (TSYNC); needs no_new_privs, which ``privileges.drop`` has set."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    code = program(rules, *machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the length in instructions, padding, a pointer.
    head = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    call = 317 if os.uname().machine == "x86_64" else 277
    failed = libc.syscall(call, _SET_MODE_FILTER, _TSYNC, head)
    if failed:
        number = ctypes.get_errno() if failed < 0 else errno.EBUSY  # a positive one is a thread that differs
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return True
