"""System calls taken away, in processes made for it: what they may not do fails, what they need goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from spliffd import seccomp

PROBE = """
import ctypes, json, os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from spliffd import privileges, seccomp
libc = ctypes.CDLL(None, use_errno=True)
inherited = socket.socketpair()
before = threading.Barrier(2)
told = []
def late():
    before.wait()
    told.append(outcome(lambda: socket.socket(socket.AF_INET)))
def outcome(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
def bpf(command):
    if libc.syscall(321, command, bytes(16), 16) < 0:
        raise OSError(ctypes.get_errno(), "bpf")
thread = threading.Thread(target=late)
thread.start()
privileges.forbid_new_privileges()
installed = getattr(seccomp, sys.argv[2])()
before.wait()
thread.join()
def child():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
def after():
    one = threading.Thread(target=int)
    one.start()
    one.join()
print(json.dumps({
    "installed": installed,
    "thread of before": told[0],
    "tcp": outcome(lambda: socket.socket(socket.AF_INET)),
    "tcp6": outcome(lambda: socket.socket(socket.AF_INET6)),
    "unix": outcome(lambda: socket.socket(socket.AF_UNIX)),
    "netlink": outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "exec": outcome(lambda: os.execv("/bin/true", ["true"])),
    "fork": outcome(child),
    "thread": outcome(after),
    "send": outcome(lambda: inherited[0].send(b"x")),
    "read": outcome(lambda: open("/proc/self/stat").read()),
    "load": outcome(lambda: bpf(5)),
    "lookup": outcome(lambda: bpf(1)),
    "folder": outcome(lambda: os.mkdir("/tmp/spliff-seccomp-test")),
}))
"""
EPERM = 1
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ALWAYS = {"installed": True, "thread": 0, "send": 0, "read": 0, "exec": EPERM, "load": EPERM, "folder": EPERM}
KINDS = {
    "worker": {
        "thread of before": EPERM,
        "tcp": EPERM,
        "tcp6": EPERM,
        "unix": EPERM,
        "netlink": EPERM,
        "fork": EPERM,
    },
    "inspector": {
        "thread of before": EPERM,
        "tcp": EPERM,
        "tcp6": EPERM,
        "unix": EPERM,
        "netlink": EPERM,
        "fork": 0,
    },
    "api": {
        "thread of before": EPERM,
        "tcp": EPERM,
        "tcp6": EPERM,
        "unix": 0,
        "netlink": EPERM,
        "fork": EPERM,
    },
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe calls bpf by x86-64's number")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused(kind):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, REPOSITORY, kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lookup = found.pop("lookup")
    assert found == ALWAYS | KINDS[kind]
    if os.geteuid() == 0:  # the kernel's own answer to a map's fd that is none: the filter let it through
        assert (lookup == EPERM) == (kind != "worker")


@pytest.mark.parametrize("column", [0, 1])
def test_every_jump_lands_in_the_program(column):
    for rules in (
        seccomp._elements_only(),
        seccomp._threads_only(),
        seccomp._unix_only(),
        seccomp._refuse("execve"),
    ):
        code = seccomp.program(rules, column, 0xC000003E)
        steps = [code[at : at + 8] for at in range(0, len(code), 8)]
        for at, step in enumerate(steps):
            if step[0] & 7 == 5:
                assert at + 1 + max(step[2], step[3]) < len(steps)
        assert steps[-1][:2] == b"\x06\0"


def test_another_machine_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: type("Name", (), {"machine": "riscv64"}))
    assert seccomp.worker() is False
