"""``spliffd doctor``: can this host run spliffd, and what to do if not.

Takes nothing but the host (paths are parameters so that tests can plant another one); returns a list of
``Check``. ``missing`` means that the daemon cannot run, ``degraded`` that it runs and sees less. ``require``
is the same list used at the daemon's start: the first missing check becomes a HostError (exit code 3).

Never changes the host, never loads a program, never imports BCC into this process (it brings 60 MiB of LLVM):
an interpreter of its own is asked. What needs a probe in the kernel is handed in as ``extra``.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from spliffd.errors import HostError

WIDTH = 79
"""Longest line of the report: it is read on consoles and pasted into issues."""

BCC_SECONDS = 30.0
"""Longest wait for the interpreter that imports BCC: 0.1 s usually, 1 s cold, more under emulation."""

OLDEST_KERNEL = (5, 15)
"""Attach cookies of uprobes came with it; older kernels may have them backported, so it only warns."""

BTF_MAGIC = b"\x9f\xeb"
"""First bytes of BTF data on a little-endian machine (linux/btf.h: BTF_MAGIC 0xeB9F)."""

BCC_REMEDY = (
    "sudo apt install python3-bpfcc; run spliffd from a virtual environment made by "
    "/usr/bin/python3 -m venv --system-site-packages"
)

CAPABILITIES = {
    # capability(7): the number, and what cannot be done without it.
    "CAP_BPF": 39,  # load eBPF programs
    "CAP_PERFMON": 38,  # attach uprobes, read memory in programs
    "CAP_NET_ADMIN": 12,  # attach XDP, TC and sock_ops
    "CAP_SYS_PTRACE": 19,  # find libraries through /proc/PID/root and maps
    "CAP_DAC_READ_SEARCH": 2,  # read libraries in other users' folders
    "CAP_SETUID": 7,  # workers become user spliff
    "CAP_SETGID": 6,
}
CAP_SYS_ADMIN = 21
"""Stands for CAP_BPF and CAP_PERFMON on every kernel. perf_event_open demands it for uprobes again since
2025 (seen on 6.18); a uprobe_multi link does not."""

ASK_PYTHON = """
import ctypes, json
facts = {}
try:
    import bcc
    facts["bcc"] = bool(getattr(bcc, "BPF", None)) and getattr(bcc, "__version__", "of unknown version")
except Exception as error:
    facts["bcc_error"] = f"{type(error).__name__}: {error}"
try:
    ctypes.CDLL("libbpf.so.1")
    facts["libbpf"] = True
except OSError as error:
    facts["libbpf"] = False
print(json.dumps(facts))
"""


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


class Check(NamedTuple):
    """One line of the report: ``detail`` says what was found, ``remedy`` what to do (empty when ok)."""

    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Host:
    """Where the facts are read; the defaults are this host."""

    btf: str = "/sys/kernel/btf/vmlinux"
    proc: str = "/proc"
    sysfs: str = "/sys"
    python: str = sys.executable
    """The interpreter that will compile the eBPF programs."""
    user: str = "spliff"
    group: str = "spliff"

    @classmethod
    def here(
        cls, user: str = "spliff", group: str = "spliff", environ: Mapping[str, str] = os.environ
    ) -> Host:
        """This host. SPLIFF_BTF names another BTF file: tests of the daemon plant a missing one."""
        return cls(btf=environ.get("SPLIFF_BTF") or cls.btf, user=user, group=group)


Probe = Callable[[], Check]
"""A check that the kernel itself must answer; supplied by ``spliffd.kernel``."""


def checks(host: Host | None = None, extra: Iterable[Probe] = ()) -> list[Check]:
    """All checks, in the order in which they stop the daemon. Takes 0.1 to 1 s (BCC's import)."""
    host = host or Host.here()
    found = [
        root(),
        capabilities(_read(f"{host.proc}/self/status")),
        kernel(_read(f"{host.proc}/sys/kernel/osrelease")),
        btf(host.btf),
        *python_facts(host.python),
        uprobes(host.sysfs),
        cgroup2(_read(f"{host.proc}/self/mountinfo")),
        lockdown(_read(f"{host.sysfs}/kernel/security/lockdown"), _read(f"{host.proc}/self/mountinfo")),
        account(host.user, host.group),
        memlock(*resource.getrlimit(resource.RLIMIT_MEMLOCK), _read(f"{host.proc}/sys/kernel/osrelease")),
        sysctls(host.proc),
    ]
    return found + [probe() for probe in extra]


def require(host: Host | None = None, extra: Iterable[Probe] = ()) -> None:
    """Raises HostError for the first check without which spliffd cannot run."""
    for check in checks(host, extra):
        if check.state is State.MISSING:
            raise HostError(f"{check.name}: {check.detail}", check.remedy)


def main(host: Host | None = None, extra: Iterable[Probe] = ()) -> int:
    """Prints the report; returns 0, or 1 when something is missing."""
    found = checks(host, extra)
    print("\n".join(report(found)))
    return int(any(check.state is State.MISSING for check in found))


def report(found: Iterable[Check]) -> list[str]:
    """The report's lines, each at most WIDTH columns: one a check, remedies below their check."""
    lines = []
    for name, state, detail, remedy in found:
        head = f"{state:<10}{name:<15}"
        lines += textwrap.wrap(head + detail, WIDTH, subsequent_indent=" " * 25)
        if remedy:
            lines += textwrap.wrap(f"{'':<25}-> {remedy}", WIDTH, subsequent_indent=" " * 28)
    return lines


def root() -> Check:
    """Whether this process is root: it creates /run/spliff and hands processes to another user."""
    if os.geteuid() == 0:
        return Check("root", State.OK, "running as root")
    return Check("root", State.MISSING, f"running as user {os.geteuid()}", "sudo spliffd doctor")


def capabilities(status: str) -> Check:
    """The effective set in ``status``, the text of /proc/self/status."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if not match:
        return Check("capabilities", State.MISSING, "/proc/self/status cannot be read", "mount /proc")
    effective = int(match[1], 16)
    powerful = bool(effective >> CAP_SYS_ADMIN & 1)
    if powerful:
        effective |= 1 << CAPABILITIES["CAP_BPF"] | 1 << CAPABILITIES["CAP_PERFMON"]
    lacking = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if not lacking and not powerful:
        return Check(
            "capabilities",
            State.DEGRADED,
            "no CAP_SYS_ADMIN: enough from kernel 6.6 on (uprobe_multi), too little before",
            "add CAP_SYS_ADMIN to CapabilityBoundingSet= on an older kernel",
        )
    if not lacking:
        return Check("capabilities", State.OK, "all that are needed")
    return Check(
        "capabilities",
        State.MISSING,
        f"no {', '.join(lacking)}",
        "run as root outside a container, or add them to CapabilityBoundingSet=",
    )


def release_of(text: str) -> tuple[int, int] | None:
    """(major, minor) of a kernel release such as "6.1.0-35-amd64", or None."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def kernel(release: str) -> Check:
    """The release; what it can do is found out by probing, not from the number."""
    release = release.strip()
    version = release_of(release)
    if version is not None and version >= OLDEST_KERNEL:
        return Check("kernel", State.OK, release)
    wanted = ".".join(map(str, OLDEST_KERNEL))
    return Check(
        "kernel",
        State.DEGRADED,
        f"{release or 'unknown'}: older than {wanted}, probes may be refused",
        f"boot a kernel {wanted} or newer",
    )


def btf(path: str) -> Check:
    """The running kernel's type information: offsets of kernel structures are taken from it."""
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        size = os.stat(path).st_size
    except OSError as error:
        return Check(
            "BTF",
            State.MISSING,
            f"{path}: {error.strerror}",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian's own are",
        )
    if magic != BTF_MAGIC:
        return Check("BTF", State.MISSING, f"{path} is not BTF", "unset SPLIFF_BTF, or boot another kernel")
    return Check("BTF", State.OK, f"{path} ({size / (1 << 20):.1f} MiB)")


def python_facts(python: str) -> list[Check]:
    """BCC and libbpf, as ``python`` finds them, run isolated in / as the compiling child is."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", ASK_PYTHON],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BCC_SECONDS,
            check=True,
        )
        facts = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = f"{python} cannot be asked: {type(error).__name__}"
        return [Check("BCC", State.MISSING, why, BCC_REMEDY)]
    if facts.get("bcc"):
        bcc = Check("BCC", State.OK, f"{facts['bcc']}, imported by {python}")
    elif "bcc" in facts:
        bcc = Check(
            "BCC",
            State.MISSING,
            "the package called bcc is another one (PyPI's, about lattices)",
            f"pip uninstall bcc; {BCC_REMEDY}",
        )
    else:
        bcc = Check("BCC", State.MISSING, facts["bcc_error"], BCC_REMEDY)
    if facts["libbpf"]:
        return [bcc, Check("libbpf", State.OK, "libbpf.so.1")]
    return [bcc, Check("libbpf", State.MISSING, "libbpf.so.1 not found", "sudo apt install libbpf1")]


def uprobes(sysfs: str) -> Check:
    """Whether the kernel has uprobes at all: they are a perf event source of its own."""
    if os.path.exists(f"{sysfs}/bus/event_source/devices/uprobe/type"):
        return Check("uprobes", State.OK, "supported")
    return Check(
        "uprobes",
        State.MISSING,
        f"{sysfs}/bus/event_source/devices/uprobe does not exist",
        "boot a kernel built with CONFIG_UPROBE_EVENTS=y; in a container, mount /sys",
    )


def cgroup2_mount(mountinfo: str) -> str | None:
    """Where the root of cgroup v2 is mounted (proc(5): mountinfo), or None. Hybrid hosts have one too."""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 ") and mount.split()[3] == "/":
            return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), mount.split()[4])
    return None


def cgroup2(mountinfo: str) -> Check:
    """Scopes and sock_ops hang on cgroup v2."""
    path = cgroup2_mount(mountinfo)
    if path:
        return Check("cgroup v2", State.OK, path)
    return Check(
        "cgroup v2",
        State.MISSING,
        "not mounted (or only a part of it, as in a container)",
        "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def lockdown(text: str, mountinfo: str) -> Check:
    """kernel_lockdown(7): "confidentiality" refuses eBPF programs that read memory; "integrity" does not.

    ``text`` is /sys/kernel/security/lockdown, empty when there is none.
    """
    match = re.search(r"\[(\w+)\]", text)
    if match and match[1] == "confidentiality":
        return Check(
            "lockdown",
            State.MISSING,
            "confidentiality: the kernel refuses to let eBPF read memory",
            "boot with lockdown=integrity (or none)",
        )
    if match:
        return Check("lockdown", State.OK, match[1])
    if " - securityfs " in mountinfo:
        return Check("lockdown", State.OK, "not in this kernel")
    return Check(
        "lockdown",
        State.DEGRADED,
        "cannot be told: securityfs is not mounted",
        "mount -t securityfs none /sys/kernel/security",
    )


def account(user: str, group: str) -> Check:
    """The user that workers run as and the group that may watch."""
    try:
        pwd.getpwnam(user)
        grp.getgrnam(group)
    except KeyError as error:
        return Check(
            "user",
            State.MISSING,
            str(error.args[0]),
            "sudo systemd-sysusers (the package does it), or set access.user and access.group",
        )
    return Check("user", State.OK, f"user {user}, group {group}")


def memlock(soft: int, hard: int, release: str) -> Check:
    """RLIMIT_MEMLOCK in bytes: kernels before 5.11 count eBPF maps in it, later ones in the cgroup."""
    if resource.RLIM_INFINITY in (soft, hard):
        return Check("memlock", State.OK, "unlimited")
    version = release_of(release)
    if version is not None and version >= (5, 11):
        return Check("memlock", State.OK, f"{soft >> 10} KiB (does not limit eBPF since 5.11)")
    return Check(
        "memlock", State.DEGRADED, f"{soft >> 10} KiB", "LimitMEMLOCK=infinity, or ulimit -l unlimited"
    )


def sysctls(proc: str) -> Check:
    """For information: neither binds a process with CAP_BPF and CAP_PERFMON."""
    values = [
        f"{name}={_read(f'{proc}/sys/kernel/{name}').strip() or '?'}"
        for name in ("unprivileged_bpf_disabled", "perf_event_paranoid")
    ]
    return Check("sysctl", State.OK, ", ".join(values))


def _read(path: str) -> str:
    """The text of a small file, or "" where it cannot be read: the check says what that means."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
