"""A library that a process loads long after its start, or that takes the place of another."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.servers import Nginx

LATE = r"""
import sys
for line in sys.stdin:
    word, _, value = line.strip().partition(" ")
    if word == "load":
        import ctypes
        held = ctypes.CDLL(value)
    elif word == "get":
        import http.client, ssl
        port, path = value.split()
        connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=ssl._create_unverified_context())
        connection.request("GET", path)
        print(connection.getresponse().status, flush=True)
        continue
    print(word, flush=True)
"""
"""Imports ssl, and with it the library, only when it is told to."""

SLOWEST_LOOK_SECONDS = 5.0
"""The last look that follows an exec."""


class Late:
    """LATE as a process with libraries from a folder, older than all looks that follow its exec."""

    def __init__(self, lab: Lab, libraries: Path) -> None:
        self.process = lab.start(
            PYTHON, "-S", "-c", LATE, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={"LD_LIBRARY_PATH": str(libraries)},
        )  # fmt: skip
        self.tell("hello")

    def tell(self, text: str) -> bytes:
        """Says something to it; its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def copy(lab: Lab, name: str) -> Path:
    """A folder with libraries of its own."""
    return Path(shutil.copytree(lab.libraries, lab.folder / name))


def attached(daemon: Daemon, path: Path) -> pb.Library | None:
    """The library at a path and with its present inode, when it is probed."""
    found = daemon.stub().ListLibraries(pb.ListLibrariesRequest()).libraries
    inode = path.stat().st_ino
    return next((one for one in found if one.inode == inode and one.state == "attached"), None)


def test_loaded_long_after_the_start(lab: Lab, daemon: Daemon, server: Nginx):
    libraries = copy(lab, "late")
    late = Late(lab, libraries)
    time.sleep(SLOWEST_LOOK_SECONDS + 0.5)  # nobody looks at it any more because it is new
    assert attached(daemon, libraries / "libssl.so.3") is None
    watch = daemon.watch(filter=pb.Filter(pids=[late.process.pid]))
    late.tell(f"load {libraries}/libssl.so.3")
    wait_for(lambda: attached(daemon, libraries / "libssl.so.3"), 30, f"attached\n{daemon.text()}")
    assert late.tell(f"get {server.port} /hello?late") == b"200"
    watch.wait_for(1)
    assert [exchange.request.path for exchange in watch.exchanges] == ["/hello?late"]


def test_replaced_while_processes_run(lab: Lab, daemon: Daemon, server: Nginx):
    """As a package upgrade does it: the old file lives on in those who have mapped it."""
    libraries = copy(lab, "upgraded")
    library = libraries / "libssl.so.3"
    old = Late(lab, libraries)
    old.tell(f"load {library}")
    wait_for(lambda: attached(daemon, library), 30, "the old one attached")
    watch = daemon.watch(filter=pb.Filter(comms=["python3"]))
    for n in range(1, 4):
        fresh = library.with_suffix(".new")
        shutil.copy(lab.libraries / "libssl.so.3", fresh)
        os.rename(fresh, library)
        new = Late(lab, libraries)
        new.tell(f"load {library}")
        wait_for(lambda: attached(daemon, library), 30, f"number {n} attached\n{daemon.text()}")
        assert new.tell(f"get {server.port} /hello?new{n}") == b"200"
        assert old.tell(f"get {server.port} /hello?old{n}") == b"200"
        watch.wait_for(2 * n)
    paths = [exchange.request.path for exchange in watch.exchanges]
    assert paths == [f"/hello?{who}{n}" for n in range(1, 4) for who in ("new", "old")]


@pytest.mark.parametrize("gone", ["deleted", "in a folder that is gone"])
def test_mapped_but_no_longer_there(lab: Lab, gone: str):
    """Started, and its library deleted, before the daemon is there."""
    server = Nginx(lab)
    libraries = copy(lab, "gone")
    late = Late(lab, libraries)
    late.tell(f"load {libraries}/libssl.so.3")
    late.tell(f"load {libraries}/libcrypto.so.3")
    if gone == "deleted":
        (libraries / "libssl.so.3").unlink()
    else:
        shutil.rmtree(libraries)
    daemon = Daemon(lab)
    watch = daemon.watch(filter=pb.Filter(pids=[late.process.pid]))
    assert late.tell(f"get {server.port} /hello?gone") == b"200"
    watch.wait_for(1)
    assert watch.exchanges[0].request.path == "/hello?gone"
    daemon.stop()
