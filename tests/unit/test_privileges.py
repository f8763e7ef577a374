"""Giving up root, in processes made for it: what is left can be neither used nor got back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NOBODY = 65534

PROBE = """
import json, os, resource, sys, threading
sys.path.insert(0, sys.argv[1])
from spliffd import privileges
stay = threading.Event()
threading.Thread(target=stay.wait, daemon=True).start()  # one that is there before
privileges.drop({uid}, {gid})
def status(path):
    with open(path) as file:
        return dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
facts = {{"ids": [os.getresuid(), os.getresgid(), os.getgroups()], "cwd": os.getcwd(),
         "core": resource.getrlimit(resource.RLIMIT_CORE)}}
facts["threads"] = [status(f"/proc/self/task/{{t}}/status") for t in os.listdir("/proc/self/task")]
def refused(call):
    try:
        call()
    except OSError:
        return True
    return False
facts["root again"] = not refused(lambda: os.setuid(0))
import ctypes
facts["dumpable"] = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
signal = ctypes.c_int(0)
ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)
facts["death signal"] = signal.value
facts["bounding"] = [n for n in range(64) if ctypes.CDLL(None).prctl(23, n, 0, 0, 0) == 1]
facts["no new"] = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)
print(json.dumps(facts))
"""

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")


def run(program: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    from tests.support.lab import REPOSITORY

    return subprocess.run(
        [*prefix, sys.executable, "-c", program, str(REPOSITORY)], capture_output=True, text=True, check=False
    )


def facts(uid: int, gid: int, prefix: tuple[str, ...] = ()) -> dict:
    done = run(PROBE.format(uid=uid, gid=gid), prefix)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@ROOT
def test_root_is_gone_for_good():
    found = facts(NOBODY, NOBODY)
    assert found["ids"] == [[NOBODY] * 3, [NOBODY] * 3, []]
    assert not found["root again"]
    assert found["bounding"] == []
    assert (found["no new"], found["dumpable"], found["death signal"]) == (1, 0, 9)
    assert found["core"] == [0, 0]
    assert found["cwd"] == "/"
    assert len(found["threads"]) == 2
    for thread in found["threads"]:
        assert thread["Uid"].split() == thread["Gid"].split() == [str(NOBODY)] * 4
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(thread[kind], 16) == 0, kind


@ROOT
@pytest.mark.parametrize(("uid", "gid"), [(0, NOBODY), (NOBODY, 0)])
def test_root_is_no_one_to_become(uid, gid):
    done = run(PROBE.format(uid=uid, gid=gid))
    assert done.returncode != 0
    assert "must not run as root" in done.stderr


def test_without_root_the_way_back_is_closed_all_the_same():
    prefix = (
        ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.geteuid() == 0 else ()
    )
    found = facts(1, 1, prefix)  # cannot become them, and need not
    assert (found["no new"], found["dumpable"], found["death signal"]) == (1, 0, 9)
    assert found["core"] == [0, 0]


def test_a_child_dies_with_its_parent():
    program = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from spliffd import privileges
reader, writer = os.pipe()
if os.fork() == 0:
    privileges.die_with_parent()
    os.write(writer, b"x")
    time.sleep(60)
os.read(reader, 1)
os.kill(os.getpid(), 9)
"""
    # The pipe of its output ends when the last of them has ended: run() would wait a minute otherwise.
    assert run(program).returncode == -9
