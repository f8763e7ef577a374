"""Compiles the eBPF programs with BCC, in a child process without privileges.

The supervisor calls ``compile_programs``; it starts this module as a process of its own, which drops to
the unprivileged user, imports BCC (the only import of it anywhere), reads offsets from the kernel's BTF,
compiles, and writes the *instructions* to its standard output. LLVM therefore never runs as root and
never stays in memory. Maps are named by numbers from bpf/maps.h; ``loader`` puts file descriptors in
their place, so the child needs no bpf() call at all.

Never loads a program, never reads a file of the project after dropping privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from spliffd import privileges
from spliffd.errors import HostError
from spliffd.kernel.btf import Btf, all_offsets

SOURCES = (
    "demand.bpf.c",
    "placement.bpf.c",
    "frames.bpf.c",
    "emit.bpf.c",
    "writes.bpf.c",
    "tls.bpf.c",
    "scope.bpf.c",
    "flows.bpf.c",
    "sockets.bpf.c",
    "adjacent.bpf.c",
    "go_sockets.bpf.c",
    "go_writes.bpf.c",
    "go.bpf.c",
    "facts.bpf.c",
    "record_lengths.bpf.c",
    "hellos.bpf.c",
    "packets.bpf.c",
    "processes.bpf.c",
    "mapped.bpf.c",
)
HEADERS = ("events.h", "maps.h", "flows.h", "common.bpf.h")
PROGRAMS = (
    "tls_enter",
    "tls_exit",
    "tls_call",
    "tls_witness",
    "tls_set_fd",
    "tls_end",
    "tls_error",
    "fact_enter",
    "fact_exit",
    "go_enter",
    "go_read",
    "go_wrote",
    "go_shook_hands",
    "go_end",
    "socket_sent",
    "socket_received",
    "socket_sent_raw",
    "socket_received_raw",
    "tcp_sent",
    "tcp_received",
    "tcp_entered",
    "tcp_sent_return",
    "tcp_received_return",
    "socket_ops",
    "state_changed",
    "state_changed_raw",
    "seed_sockets",
    "xdp_l2",
    "xdp_l3",
    "tc_ingress_l2",
    "tc_ingress_l3",
    "tc_egress_l2",
    "tc_egress_l3",
    "xdp_egress_l2",
    "xdp_egress_l3",
    "process_exec",
    "process_exit",
    "mapping_made_fentry",
    "mapping_made_kprobe",
    "pages_mapped",
    "page_faulted",
)
TYPED_TRACEPOINTS = (
    "sock_send_length",
    "sock_recv_length",
    "mm_filemap_map_pages",
    "mm_filemap_fault",
)
FUNCTIONS = ("tcp_sendmsg", "tcp_recvmsg", "perf_event_mmap")
STATE_TRACEPOINT = "inet_sock_set_state"
SESSION_IS_RETURN = "bpf_session_is_return"
"""The kernel's function by which a program of a uprobe session knows which end of the call it sees (6.13)."""
ITERATOR = "task_file"

TIMEOUT_SECONDS = 240
"""A compile takes 0.5 s, one under emulation 90 (seen), a host that swaps may need longer; a hung one must
not hang the start. Below TimeoutStartSec= of the unit."""

BTF_PATH = "/sys/kernel/btf/vmlinux"
BCC_REMEDY = (
    "sudo apt install python3-bpfcc, and a virtual environment made by /usr/bin/python3 "
    "with --system-site-packages"
)


class Compiled(msgspec.Struct):
    """What the child hands back; ``error``/``remedy`` when it could not."""

    code: dict[str, bytes] = {}
    offsets: dict[str, int] = {}
    tracepoints: dict[str, int] = {}
    """Type ids of typed tracepoints that this kernel has."""
    iterators: dict[str, int] = {}
    """The same of iterators."""
    functions: dict[str, int] = {}
    """And of functions."""
    bcc: str = ""
    error: str = ""
    remedy: str = ""


def source_folder() -> Path:
    """The bpf/ folder: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "bpf", package / "bpf"):
        if (folder / SOURCES[0]).is_file():
            return folder
    raise HostError("the eBPF sources are missing", "reinstall spliff")


def compile_programs(uid: int, gid: int, btf: str = BTF_PATH) -> Compiled:
    """Runs the child as ``uid``/``gid`` and returns its result; raises HostError with the remedy."""
    if not os.access(btf, os.R_OK):
        raise HostError(
            f"no kernel type information at {btf}", "run a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        )
    # -P -s and cwd: nothing is imported from the folder or home of whoever started us
    command = [sys.executable, "-P", "-s", "-m", "spliffd.kernel.compile", str(uid), str(gid), btf]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False, env=_environment(), cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise HostError(
            f"compiling the eBPF programs took over {TIMEOUT_SECONDS} s", "look at the host's load"
        ) from None
    try:
        result = msgspec.msgpack.decode(done.stdout, type=Compiled)
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise HostError(f"compiling the eBPF programs failed: {lines[-1]}", "run `spliffd doctor`") from None
    if result.error:
        raise HostError(result.error, result.remedy)
    return result


def _environment() -> dict[str, str]:
    """PATH and where our package lies; nothing else of the environment reaches the child."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _child(uid: int, gid: int, btf_path: str) -> Compiled:
    try:
        import bcc
    except ImportError:
        return Compiled(error="BCC for Python is not installed", remedy=BCC_REMEDY)
    if not hasattr(bcc, "BPF"):
        return Compiled(
            error='the module "bcc" is not the eBPF compiler (PyPI has another one of that name)',
            remedy="pip uninstall bcc; " + BCC_REMEDY,
        )
    folder = source_folder()
    text = "\n".join(
        f'#line 1 "{name}"\n{(folder / name).read_text(encoding="utf-8")}' for name in (*HEADERS, *SOURCES)
    )
    text = "#include <linux/types.h>\n#include <uapi/linux/ptrace.h>\n" + text.replace("#pragma once", "")
    # BCC changes into the header tree, so it must be readable to the user that compiles.
    work = Path(tempfile.mkdtemp(prefix="spliff-headers-"))
    try:
        shutil.copytree(folder / "include", work / "include")
        for path in (work, *work.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return _unprivileged(lambda: _compile(bcc, Btf(btf_path), text, work), uid, gid)
    except LookupError as error:
        return Compiled(error=str(error), remedy="this kernel is not supported; please report it")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unprivileged(work: Callable[[], Compiled], uid: int, gid: int) -> Compiled:
    """Runs ``work`` in a fork that has dropped everything; the parent keeps the right to clean up."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            privileges.drop(uid, gid)  # leaves us in /: BCC looks for headers in the working directory first
            result = work()
        except LookupError as error:
            result = Compiled(error=str(error), remedy="this kernel is not supported; please report it")
        except BaseException as error:  # whatever BCC raises, the supervisor must be told
            result = Compiled(error=f"compiling the eBPF programs failed: {error}", remedy="please report it")
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(msgspec.msgpack.encode(result))
        os._exit(0)  # BCC's atexit has nothing to clean up
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return msgspec.msgpack.decode(data, type=Compiled)


def _compile(bcc: Any, btf: Btf, text: str, headers: Path) -> Compiled:
    offsets = all_offsets(btf)
    tracepoints, iterators, functions = {}, {}, {}
    for name in (*TYPED_TRACEPOINTS, STATE_TRACEPOINT):
        with contextlib.suppress(LookupError):  # an older kernel: the loader takes another path
            tracepoints[name] = btf.tracepoint_id(name)
    with contextlib.suppress(LookupError):
        iterators[ITERATOR] = btf.iterator_id(ITERATOR)
    for name in (*FUNCTIONS, SESSION_IS_RETURN):
        with contextlib.suppress(LookupError):
            functions[name] = btf.function_id(name)
    flags = [f"-DOFF_{name}={value}" for name, value in offsets.items()]
    # A return probe sees the stack after the return address was popped (x86); arm64 pushes none.
    flags += [f"-DRETURN_SP_SHIFT={8 if os.uname().machine == 'x86_64' else 0}", "-Wno-macro-redefined"]
    os.environ["BCC_KERNEL_SOURCE"] = str(headers)
    compiled = bcc.BPF(text=text, cflags=flags)
    lib = bcc.lib
    code = {}
    for name in PROGRAMS:
        start = lib.bpf_function_start(compiled.module, name.encode())
        code[name] = ctypes.string_at(start, lib.bpf_function_size(compiled.module, name.encode()))
    return Compiled(
        code=code,
        offsets=offsets,
        tracepoints=tracepoints,
        iterators=iterators,
        functions=functions,
        bcc=str(bcc.__version__),
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(_child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
