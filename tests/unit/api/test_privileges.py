"""Giving up root, tried in processes of their own: there is no way back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOBODY = 65534


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import os, threading\nfrom spliffd.api import privileges\n" + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_there_is_no_way_back():
    said = run(f"""
os.setgroups([0, 4])
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
privileges.forbid_new_privileges()
privileges.drop({NOBODY}, {NOBODY})
for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: open("/etc/shadow")):
    try:
        attempt()
    except PermissionError:
        print("refused", end=" ")
print(os.getresuid(), os.getresgid(), os.getgroups())
go.set()
""")

    ids = (NOBODY,) * 3
    assert said == f"refused refused refused {ids} {ids} []"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_thread_keeps_its_capabilities():
    said = run(f"""
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
privileges.drop({NOBODY}, {NOBODY})
for task in os.listdir("/proc/self/task"):
    print([line.split()[1] for line in open(f"/proc/self/task/{{task}}/status") if line.startswith("CapEff")])
go.set()
""")

    assert said.splitlines() == ["['0000000000000000']"] * 2


def test_a_user_that_cannot_be_reached_is_refused():
    said = run("""
from spliffd.errors import FailedError
if os.geteuid() == 0:
    privileges.drop(65534, 65534)
try:
    privileges.drop(12345, 12345)
except FailedError as error:
    print(error)
""")

    assert said.startswith("the api cannot become uid 12345, gid 12345")
    assert "start spliffd as root" in said
