"""Files that a process in scope maps for the first time: told once, by each way that this kernel takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliffd.kernel import links, ways
from spliffd.kernel.maps import PROCESS_RING_BYTES
from spliffd.kernel.records import PROCESS_MAPPED, PROCESS_RECORD, mapped_file
from spliffd.kernel.ring import Ring
from tests.support.lab import PYTHON, Lab, cgroup_root
from tests.support.tracer import Tracer

MAP = r"""
import mmap, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        held = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    held[0]
"""
"""Maps each file as code and touches its first page."""

ABSENT = {
    "fentry of perf_event_mmap": "Operation not permitted",
    "kprobe on perf_event_mmap": "No such file or directory",
    "typed tracepoints mm_filemap_map_pages, mm_filemap_fault": "No such file or directory",
}
"""What a kernel says that does not have a way: no text patching, no kprobes, older than 6.14."""

Told = set[tuple[int, tuple[int, int]]]
"""pid, device and inode of the file."""


class Mappings:
    """The program attached in one way; what it tells."""

    def __init__(self, tracer: Tracer, way: ways.Way) -> None:
        self._ring = Ring(tracer.maps.fd["processes"], PROCESS_RING_BYTES)
        self._attached, self.how = links.attach_mappings(tracer.programs, (way,))

    def read(self) -> list[tuple[int, tuple[int, int]]]:
        """What came since the last time."""
        found = []
        while positions := self._ring.drain(256):
            for at in positions:
                pid, *_, flags = PROCESS_RECORD.unpack_from(self._ring.data, at)
                if flags & PROCESS_MAPPED:
                    found.append((pid, mapped_file(self._ring.data, at)))
            self._ring.release()
        return found

    def close(self) -> None:
        self._attached.close()


@pytest.fixture(params=ways.MAPPING_WAYS, ids=lambda way: way.text.replace(" ", "-"))
def mappings(
    request: pytest.FixtureRequest, lab: Lab, record_property: Callable[[str, object], None]
) -> Iterator[Mappings | None]:
    """None where this kernel does not have the way, for the reason that is known."""
    way: ways.Way = request.param
    refusal = ""
    with Tracer(lab) as tracer:
        try:
            made: Mappings | None = Mappings(tracer, way)
        except OSError as error:
            made, refusal = None, str(error)
        record_property(way.text, refusal or "taken")
        if made is None:
            assert ABSENT[way.text] in refusal or "this kernel has no" in refusal
        else:
            assert made.how == way.text
        yield made
        if made is not None:
            made.close()


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_some_way_is_taken(lab: Lab):
    with Tracer(lab) as tracer:
        attached, how = links.attach_mappings(tracer.programs)
        attached.close()
    assert how in {way.text for way in ways.MAPPING_WAYS}


def test_each_file_is_told_once(lab: Lab, mappings: Mappings | None):
    if mappings is None:
        return  # refused as it must be: the fixture has looked
    one, other = lab.folder / "one.so", lab.folder / "other.so"
    for file in (one, other):
        file.write_bytes(bytes(65536))
    mappings.read()
    first = lab.start(PYTHON, "-S", "-c", MAP, one)
    assert first.wait(60) == 0
    told = mappings.read()
    assert (first.pid, identity(one)) in told
    second = lab.start(PYTHON, "-S", "-c", MAP, one, other, one)
    assert second.wait(60) == 0
    told = mappings.read()
    assert [file for _, file in told].count(identity(one)) == 0
    assert told.count((second.pid, identity(other))) == 1


def test_an_inode_that_is_used_again_is_another_file(lab: Lab, mappings: Mappings | None):
    """Where the file system gives the number out again; the generation tells."""
    if mappings is None:
        return
    for _ in range(3):
        file = lab.folder / "again.so"
        file.write_bytes(bytes(65536))
        mappings.read()
        process = lab.start(PYTHON, "-S", "-c", MAP, file)
        assert process.wait(60) == 0
        assert (process.pid, identity(file)) in mappings.read()
        file.unlink()


def test_what_is_out_of_scope_is_not_told_and_not_remembered(lab: Lab, mappings: Mappings | None):
    if mappings is None:
        return
    outside = cgroup_root() / f"{lab.folder.name}-outside"
    outside.mkdir()
    try:
        file = lab.folder / "outside.so"
        file.write_bytes(bytes(65536))
        mappings.read()
        process = lab.start(PYTHON, "-S", "-c", MAP, file, cgroup=outside)
        assert process.wait(60) == 0
        assert identity(file) not in {found for _, found in mappings.read()}
        inside = lab.start(PYTHON, "-S", "-c", MAP, file)
        assert inside.wait(60) == 0
        assert (inside.pid, identity(file)) in mappings.read()
    finally:
        outside.rmdir()
