#!/usr/bin/env python3
"""Runs a command as spliffd.service would run it, on a machine where systemd is not PID 1.

Takes the unit beside this file and a command; replaces itself with the command, under the unit's
CapabilityBoundingSet=, SystemCallFilter=, MemoryDenyWriteExecute=, NoNewPrivileges=, ProtectSystem=strict,
ProtectHome=, ProtectKernelTunables=, ProtectControlGroups= and RestrictAddressFamilies= (each if the unit
has it). Needs root and libseccomp, which systemd brings along. For tests and for development
(`packaging/systemd/sandbox.py .venv/bin/spliffd`): what systemd itself does is tested in a virtual machine.

Never changes anything outside: mounts are made in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys

UNIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spliffd.service")

# linux/prctl.h, linux/sched.h, sys/mount.h, seccomp.h
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
SCMP_ACT_ALLOW = 0x7FFF0000
SCMP_ACT_EPERM = 0x00050000 | errno.EPERM
SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ = 4, 7
PROT_WRITE, PROT_EXEC = 2, 4

_NAMES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap "
    "linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner "
    "sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice "
    "sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap "
    "mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf "
    "checkpoint_restore"
)
CAPABILITIES = _NAMES.split()
"""capability(7) in the kernel's numbering."""

libc = ctypes.CDLL(None, use_errno=True)


class Argument(ctypes.Structure):
    """struct scmp_arg_cmp: argument number, comparison, mask or value, value."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def settings(path: str) -> dict[str, list[str]]:
    """The unit's [Service] assignments in order; an empty assignment clears the list, as in systemd."""
    found: dict[str, list[str]] = {}
    section = ""
    with open(path, encoding="utf-8") as unit:
        for line in map(str.strip, unit):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and "=" in line and not line.startswith("#"):
                key, _, value = line.partition("=")
                found[key] = [*found.get(key, []), value] if value else []
    return found


def system_calls(assignments: list[str]) -> set[str]:
    """Resolves SystemCallFilter= assignments (an allow list, then deny lists) to names."""
    allowed: set[str] = set()
    for assignment in assignments:
        names = assignment.removeprefix("~").split()
        resolved = set().union(*map(_resolve, names))
        allowed = allowed - resolved if assignment.startswith("~") else allowed | resolved
    # systemd always allows these: without them nothing can be executed.
    return allowed | _resolve("@default") | {"execve", "exit", "exit_group"}


def _resolve(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    members = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return set().union(*(_resolve(m) for m in members if m and not m.startswith("#")))


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, f"{what}: {os.strerror(code)}")


CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def restrict_files(unit: dict[str, list[str]]) -> None:
    """A mount namespace in which / is read-only, but for the unit's own folders, and /home is empty."""
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    with open("/proc/self/mountinfo", encoding="utf-8") as mountinfo:
        mounts = [(line.split()[4], line.split(" - ")[1].split()[0]) for line in mountinfo]
    writable = [f"/run/{name}" for name in unit.get("RuntimeDirectory", [])]
    writable += [f"/var/lib/{name}" for name in unit.get("StateDirectory", [])]
    for folder in writable:
        os.makedirs(folder, exist_ok=True)
        _mount(folder, folder, None, MS_BIND)
    for path, kind in mounts:
        # As ProtectSystem=strict does: everything but /dev and /proc; /sys by ProtectKernelTunables=.
        protected = not path.startswith(("/dev", "/proc"))
        protected &= kind != "sysfs" or "ProtectKernelTunables" in unit
        if protected and "\\" not in path and os.path.exists(path):
            _mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    if unit.get("ProtectHome") == ["yes"] and os.path.isdir("/home"):
        _hide("/home")
        _mount(None, "/home", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    if unit.get("PrivateTmp") == ["yes"]:
        _hide("/tmp")


def _hide(folder: str) -> None:
    """An empty folder in its place, but for this checkout: the command that is tried out comes from there."""
    inside = CHECKOUT.startswith(folder + "/")
    checkout = os.open(CHECKOUT, os.O_PATH)
    _mount("none", folder, "tmpfs", 0)
    if inside:
        os.makedirs(CHECKOUT)
        _mount(f"/proc/self/fd/{checkout}", CHECKOUT, None, MS_BIND)
    os.close(checkout)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    names = (name.encode() if name else None for name in (source, target, kind))
    _check(libc.mount(*names, flags, None), f"mount {target}")


def restrict_capabilities(unit: dict[str, list[str]]) -> None:
    """Drops from the bounding set; execve then drops from the other sets, also for root."""
    kept = {
        name.removeprefix("CAP_").lower() for text in unit["CapabilityBoundingSet"] for name in text.split()
    }
    unknown = kept - set(CAPABILITIES)
    if unknown:
        raise SystemExit(f"{UNIT}: unknown capability {unknown}")
    for number, name in enumerate(CAPABILITIES):
        if name not in kept and libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"drop {name}")


def restrict_calls(unit: dict[str, list[str]]) -> None:
    """The seccomp filter; execve keeps it."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    rule_add = seccomp.seccomp_rule_add_array
    rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    number = seccomp.seccomp_syscall_resolve_name

    # The allow list is one filter, the finer refusals are another: the kernel takes the stricter answer.
    allow = seccomp.seccomp_init(SCMP_ACT_EPERM)
    for name in system_calls(unit["SystemCallFilter"]):
        if (call := number(name.encode())) >= 0:
            _check(rule_add(allow, SCMP_ACT_ALLOW, call, 0, None), f"allow {name}")
    refuse = seccomp.seccomp_init(SCMP_ACT_ALLOW)
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        for name, mask in (("mmap", both), ("mprotect", PROT_EXEC), ("pkey_mprotect", PROT_EXEC)):
            argument = Argument(2, SCMP_CMP_MASKED_EQ, mask, mask)
            _check(
                rule_add(refuse, SCMP_ACT_EPERM, number(name.encode()), 1, ctypes.byref(argument)),
                f"refuse {name}",
            )
    families = unit.get("RestrictAddressFamilies")
    if families:
        allowed = {int(getattr(socket, name)) for text in families for name in text.split()}
        for family in set(range(46)) - allowed:
            argument = Argument(0, SCMP_CMP_EQ, family, 0)
            _check(
                rule_add(refuse, SCMP_ACT_EPERM, number(b"socket"), 1, ctypes.byref(argument)),
                f"refuse family {family}",
            )
    _check(seccomp.seccomp_load(refuse), "seccomp_load")
    _check(seccomp.seccomp_load(allow), "seccomp_load")


def main(command: list[str]) -> None:
    """Restricts this process, in the order in which each step still may, and becomes ``command``."""
    if not command:
        raise SystemExit("usage: sandbox.py COMMAND [ARGUMENT...]")
    unit = settings(UNIT)
    restrict_files(unit)
    restrict_capabilities(unit)
    if unit.get("NoNewPrivileges") == ["yes"]:
        _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    restrict_calls(unit)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
