"""A file's probes on trial: witnesses go when the calls agree, relocated probes go when they do not."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from spliffd import counters
from spliffd.counters import Region
from spliffd.kernel.links import Attached, Probe
from spliffd.kernel.maps import SELF_TEST_WORDS, SELF_TESTS
from spliffd.stages import placements
from spliffd.stages.placements import WITNESSED, Placements
from spliffd.stages.self_tests import ENOUGH, MISSED, SelfTests
from spliffd.targets.sites import Inspection, Site

MOVED = Site("ssl_read_internal", 300, True, "read", "pointer", "internal", "proved", witnesses=(100, 200))
PLAIN = Site("SSL_free", 400, False, "free", "none", "entry", "first")
ENTRIES = Inspection(
    "attach", "openssl", sites=[Site("SSL_read", 100, True, "read", "count", "entry", "first"), PLAIN]
)


class File(msgspec.Struct):
    path: str
    inspection: Inspection
    attached: Attached | None = None
    error: str = ""


class Links(Attached):
    """What is attached: nothing, and whether it was closed."""

    def __init__(self, log: list[str], what: str) -> None:
        super().__init__([])
        self._log, self._what = log, what

    def let_go(self) -> list[int]:
        self._log.append(f"closed {self._what}")
        return []


class Host:
    """Kernel and inspector, and what was asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refuse_witnesses = self.refuse_probes = False
        self.self_tests = memoryview(bytearray(8 * SELF_TEST_WORDS * SELF_TESTS)).cast("Q")

    def attach_library(self, path: str, library: str, probes: list[Probe]) -> Attached:
        if self.refuse_probes:
            raise OSError("no")
        what = ", ".join(f"{probe.offset}/{probe.test}" for probe in probes)
        self.log.append(f"attached {what}")
        return Links(self.log, what)

    def attach_witnesses(self, path: str, library: str, probes: list[Probe]) -> Attached:
        if self.refuse_witnesses:
            raise OSError("no")
        what = "witnesses " + ", ".join(f"{probe.offset}/{probe.test}" for probe in probes)
        self.log.append(f"attached {what}")
        return Links(self.log, what)

    async def at_entries(self, fd: int, path: str) -> Inspection:
        os.fstat(fd)  # it is still open
        return ENTRIES

    def count(self, number: int, seen: int, agreed: int, disagreed: int) -> None:
        at = number * SELF_TEST_WORDS + 1
        self.self_tests[at], self.self_tests[at + 1], self.self_tests[at + 2] = seen, agreed, disagreed


class Stage:
    def __init__(self) -> None:
        self.host = Host()
        self.counters = Region(counters.SUPERVISOR, memoryview(bytearray(counters.REGION_BYTES)).cast("Q"))
        self.executor = ThreadPoolExecutor(1)
        tests = SelfTests(self.host)  # type: ignore[arg-type]  # of the maps it needs this one
        self.placements = Placements(self.host, tests, self.counters, self.executor, self.host.at_entries)

    async def attach(self, *sites: Site, content: bytes = b"") -> File:
        file = File("/lib/libssl.so.3", Inspection("attach", "openssl", sites=list(sites)))
        fd = os.open("/dev/null", os.O_RDONLY)
        await self.placements.attach(file, fd, content)
        await self.placements.try_out(file, fd)
        os.close(fd)
        return file


@pytest.fixture
def stage(monkeypatch) -> Stage:
    monkeypatch.setattr(placements, "FIRST_LOOK_SECONDS", 0.001)
    return Stage()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what executors have done has no event here
            await asyncio.sleep(0.001)


async def test_witnesses_come_at_once_and_go_when_the_calls_agree(stage):
    file = await stage.attach(MOVED, PLAIN)
    assert stage.host.log == ["attached 300/1, 400/0", "attached witnesses 100/1, 200/1"]
    stage.host.count(1, ENOUGH + 1, ENOUGH, 0)
    await until(lambda: stage.counters.get("placements_tested"))

    assert stage.host.log[2:] == ["closed witnesses 100/1, 200/1"]
    assert stage.host.self_tests[SELF_TEST_WORDS] == 0  # ended
    moved, plain = file.inspection.sites
    assert moved.proof == (
        f"proved; self-test passed: of {ENOUGH + 1} calls {ENOUGH} were seen alike and 0 differently"
    )
    assert plain == PLAIN


async def test_the_kernel_says_when_to_judge(stage, monkeypatch):
    monkeypatch.setattr(placements, "FIRST_LOOK_SECONDS", 60)
    await stage.attach(MOVED)
    stage.placements.judge()  # of another file's test: nothing is known of this one
    await asyncio.sleep(0.01)
    assert len(stage.host.log) == 2
    stage.host.count(1, ENOUGH, ENOUGH, 0)
    stage.placements.judge()
    await until(lambda: stage.counters.get("placements_tested"))

    assert stage.host.log[2:] == ["closed witnesses 100/1, 200/1"]


@pytest.mark.parametrize(
    ("seen", "agreed", "disagreed"), [(ENOUGH, 0, ENOUGH), (ENOUGH, ENOUGH - 3, 3), (MISSED, 1, 0)]
)
async def test_what_differs_is_taken_back(stage, seen, agreed, disagreed):
    file = await stage.attach(MOVED, PLAIN)
    stage.host.count(1, seen, agreed, disagreed)
    await until(lambda: stage.counters.get("placement_fallbacks") and len(stage.host.log) == 5)

    assert stage.host.log[2:] == [
        "closed witnesses 100/1, 200/1",
        "closed 300/1, 400/0",
        "attached 100/0, 400/0",
    ]
    await until(lambda: file.attached is not None)
    assert file.inspection.sites == ENTRIES.sites
    assert file.inspection.reason == (
        f"self-test failed (of {seen} calls {agreed} were seen alike and {disagreed} differently): "
        "probed at first instructions"
    )
    assert stage.counters.get("placements_tested") == 0


async def test_nothing_is_decided_by_a_few_calls(stage):
    file = await stage.attach(MOVED)
    stage.host.count(1, MISSED - 1, ENOUGH - 1, 0)
    await asyncio.sleep(0.05)
    assert len(stage.host.log) == 2
    stage.placements.close()

    assert stage.host.log[2:] == ["closed witnesses 100/1, 200/1"]
    assert file.inspection.sites == [MOVED]


async def test_a_file_without_relocated_probes_is_not_tested(stage):
    await stage.attach(PLAIN)

    assert stage.host.log == ["attached 400/0"]


async def test_without_witnesses_the_proof_has_to_do(stage):
    stage.host.refuse_witnesses = True
    await stage.attach(MOVED)

    assert stage.host.log == ["attached 300/1"]
    stage.placements.close()
    assert stage.host.log == ["attached 300/1"]


async def test_copies_are_tested_together_and_then_no_more(stage):
    copies = [await stage.attach(MOVED, content=b"same") for _ in range(WITNESSED + 1)]
    assert stage.host.log.count("attached 300/1") == WITNESSED + 1
    assert stage.host.log.count("attached witnesses 100/1, 200/1") == WITNESSED
    stage.host.count(1, ENOUGH, ENOUGH, 0)
    await until(lambda: stage.counters.get("placements_tested"))

    assert stage.host.log.count("closed witnesses 100/1, 200/1") == WITNESSED
    later = await stage.attach(MOVED, content=b"same")
    assert stage.host.log[-1] == "attached 300/0"
    assert {"self-test passed" in one.inspection.sites[0].proof for one in (*copies, later)} == {True}
    await stage.attach(MOVED, content=b"another")
    assert stage.host.log[-2:] == ["attached 300/2", "attached witnesses 100/2, 200/2"]
    stage.placements.close()


async def test_all_copies_are_taken_back(stage):
    copies = [await stage.attach(MOVED, content=b"same") for _ in range(3)]
    stage.host.count(1, ENOUGH, 0, ENOUGH)
    await until(lambda: all("self-test failed" in one.inspection.reason for one in copies))

    assert stage.host.log.count("closed 300/1") == 3
    await until(lambda: stage.host.log.count("attached 100/0, 400/0") == 3)
    assert stage.counters.get("placement_fallbacks") == 1


async def test_a_copy_that_is_refused_is_not_tested(stage):
    stage.host.refuse_probes = True
    with pytest.raises(OSError, match="no"):
        await stage.attach(MOVED, content=b"same")
    assert stage.host.self_tests[SELF_TEST_WORDS] == 0
    stage.host.refuse_probes = False
    await stage.attach(MOVED, content=b"same")
    assert stage.host.log == ["attached 300/2", "attached witnesses 100/2, 200/2"]
    stage.placements.close()
