"""Files that processes map as code: told at once, with the numbers that /proc gives them, and of the cgroup alone."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.kernel.mappings import PAGES, Mapped, Mappings
from tests.support.lab import PYTHON, Lab, wait_for

HOLD = """
import ctypes, sys
for name in sys.stdin:
    held = ctypes.CDLL(name.strip())
    print("held", flush=True)
"""

REMAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    for _ in range(int(sys.argv[2])):
        mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("mappings") as lab:
        yield lab


@pytest.fixture
def mappings(lab: Lab) -> Iterator[Mappings]:
    fd = os.open(lab.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    mappings = Mappings([fd])
    os.close(fd)
    yield mappings
    mappings.close()


def until(mappings: Mappings, name: str) -> list[Mapped]:
    """Everything up to the mapping of a file of this name."""
    found: list[Mapped] = []

    def come() -> bool:
        select.select(mappings.fds, [], [], 0.1)
        found.extend(mappings.drain())
        return any(one.path.endswith(name) for one in found)

    wait_for(come, 30, f"{name} mapped")
    return found


def test_a_program_s_libraries_and_a_late_one(lab: Lab, mappings: Mappings):
    outside = subprocess.run([PYTHON, "-c", "import ssl"], check=True)
    assert outside.returncode == 0
    process = lab.start(PYTHON, "-S", "-c", HOLD, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    found = until(mappings, "/libc.so.6")
    assert {one.pid for one in found} == {process.pid}
    assert not [one for one in found if "libssl" in one.path]

    library = lab.libraries / "libssl.so.3"
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{library}\n".encode())
    process.stdin.flush()
    late = next(one for one in until(mappings, "/libssl.so.3") if one.path == str(library))
    assert process.stdout.readline() == b"held\n"
    assert (late.pid, late.inode) == (process.pid, library.stat().st_ino)
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    (line,) = [line for line in maps.splitlines() if str(library) in line and " r-x" in line]
    span, _, _, device, inode, _ = line.split()
    major, minor = (int(part, 16) for part in device.split(":"))
    assert (os.makedev(major, minor), int(inode)) == (late.device, late.inode)
    assert span == f"{late.start:x}-{late.start + late.length:x}"
    assert mappings.lost == 0


def test_what_does_not_fit_is_counted(lab: Lab, mappings: Mappings):
    library = lab.libraries / "libssl.so.3"
    count = 2 * PAGES * 4096 // 64
    # On one processor: each has a buffer of its own, and tells what was lost there.
    remap = ("taskset", "-c", "0", PYTHON, "-S", "-c", REMAP, library)
    assert lab.run(*remap, str(count)).returncode == 0
    told = len([one for one in mappings.drain() if one.path == str(library)])
    assert 0 < told < count
    # What was lost is told with the next that fits.
    assert lab.run(*remap, "1").returncode == 0
    told += len([one for one in mappings.drain() if one.path == str(library)])
    assert mappings.lost >= count - told > 0
