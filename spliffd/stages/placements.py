"""Attaches a file's probes, and takes relocated ones back that do not see what they should.

Takes a file and where its probes belong; returns links. Where a probe sits behind its function's first
instruction, a witness sits at that until the first calls have shown that both see the same (``self_tests``);
then it goes, as soon as the kernel says so. Where they do not, all probes of the file go to first
instructions, which is dearer and never wrong; that is counted, logged, and told by ``spliffctl libraries``. A
file nobody calls stays under test. Files of the same content are tested together, a few of them with
witnesses, and once it has passed, no more are: a copy's probes wait for nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol

import msgspec

from spliffd.counters import Region
from spliffd.journal import logger
from spliffd.kernel.links import Attached, Probe, close_all
from spliffd.stages.self_tests import SelfTests, Verdict
from spliffd.targets.sites import Inspection, Site

log = logger("placements")

FIRST_LOOK_SECONDS = 0.25
LONGEST_LOOK_SECONDS = 16.0
"""Should what the kernel says be lost (a full ring), a look finds it. Looks become rarer while nothing is
called: an idle host is not woken for them."""

WITNESSED = 4
"""Files of one content that get witnesses: short-lived programs with a copy each make a few calls each."""

MAX_PASSED = 4096
"""Contents remembered to have passed, 0.2 KiB each; one that is forgotten is tested again."""


class Kernel(Protocol):
    """What attaches."""

    def attach_library(self, path: str, library: str, probes: list[Probe]) -> Attached:
        """Attaches a library's probes; raises OSError."""

    def attach_witnesses(self, path: str, library: str, probes: list[Probe]) -> Attached:
        """Attaches what relocated probes are compared with; raises OSError."""


class File(Protocol):
    """A file that is probed; what a test changes of it."""

    path: str
    inspection: Inspection
    attached: Attached | None
    error: str


class _Trial(msgspec.Struct):
    """A test under way."""

    number: int
    content: bytes
    """What the files have in common; empty for one that is tested alone."""
    files: list[tuple[File, int]]
    """With a descriptor of each, kept open: it may be deleted by the time probes have to move."""
    witnesses: list[Attached]
    tested: int = 0
    """Files that got witnesses, or were refused them."""


class Placements:
    """All files whose relocated probes are on trial.

    ``at_entries`` asks the inspector for a file's places with nothing relocated; ``executor`` is where the
    kernel is waited for.
    """

    def __init__(
        self,
        kernel: Kernel,
        tests: SelfTests,
        counters: Region,
        executor: Executor,
        at_entries: Callable[[int, str], Awaitable[Inspection]],
    ) -> None:
        self._kernel = kernel
        self._tests = tests
        self._counters = counters
        self._executor = executor
        self._at_entries = at_entries
        self._trials: list[_Trial] = []
        self._passed: dict[bytes, str] = {}
        """What was told of contents that have passed."""
        self._pause = FIRST_LOOK_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._judging: asyncio.Task[None] | None = None

    async def attach(self, file: File, fd: int, content: bytes = b"") -> None:
        """Attaches the probes of ``file``; raises OSError. ``content`` is its hash, if that is known."""
        inspection = file.inspection
        trial = None
        if any(site.witnesses for site in inspection.sites):
            if (told := self._passed.get(content)) is not None:
                file.inspection = _proved(inspection, told)
            else:
                trial = self._trial(content)
        number = trial.number if trial else 0
        probes = [probe_of(site, number if site.witnesses else 0) for site in inspection.sites]
        loop = asyncio.get_running_loop()
        # Names the inode even when the path is another namespace's, or deleted.
        path = f"/proc/self/fd/{fd}"
        try:
            file.attached = await loop.run_in_executor(
                self._executor, self._kernel.attach_library, path, inspection.library, probes
            )
        except OSError:
            if trial and not trial.files and trial in self._trials:
                self._trials.remove(trial)
                self._tests.end(trial.number)
            raise
        if trial and trial in self._trials:
            trial.files.append((file, os.dup(fd)))

    async def try_out(self, file: File, fd: int) -> None:
        """Sets witnesses beside the probes of ``file``, which are in place, if it is to be tested."""
        trial = next((one for one in self._trials if any(file is tested for tested, _ in one.files)), None)
        if trial is None or trial.tested >= WITNESSED:
            return
        trial.tested += 1
        probes = [
            Probe(offset, site.op, "none", returns=False, test=trial.number)
            for site in file.inspection.sites
            for offset in site.witnesses
        ]
        path, library = f"/proc/self/fd/{fd}", file.inspection.library
        loop = asyncio.get_running_loop()
        try:
            witnesses = await loop.run_in_executor(
                self._executor, self._kernel.attach_witnesses, path, library, probes
            )
        except OSError as error:
            log.warning("relocated probes are not tested", path=file.path, error=str(error))
            return
        if trial in self._trials:
            trial.witnesses.append(witnesses)
            self._pause = FIRST_LOOK_SECONDS
            self._look_later()
        else:  # judged meanwhile, by the calls of others
            await loop.run_in_executor(self._executor, witnesses.close)

    def _trial(self, content: bytes) -> _Trial | None:
        """The test of this content, a new one if there is none; None when there are no more numbers."""
        for trial in self._trials:
            if content and trial.content == content:
                return trial
        number = self._tests.begin()
        if not number:
            return None
        trial = _Trial(number, content, [], [])
        self._trials.append(trial)
        return trial

    def judge(self) -> None:
        """The kernel has seen enough. Until witnesses go, each call costs its program a dear probe."""
        self._pause = FIRST_LOOK_SECONDS
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def close(self) -> None:
        """Ends all tests."""
        if self._timer is not None:
            self._timer.cancel()
        if self._judging is not None:
            self._judging.cancel()
        close_all([one for trial in self._trials for one in trial.witnesses])
        for trial in self._trials:
            _close_files(trial)
        self._trials.clear()

    def _look_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._look)
        self._pause = min(2 * self._pause, LONGEST_LOOK_SECONDS)

    def _look(self) -> None:
        self._timer = None
        if self._judging is None or self._judging.done():
            self._judging = asyncio.get_running_loop().create_task(self._judge())

    async def _judge(self) -> None:
        for trial in self._trials[:]:
            verdict = self._tests.verdict(trial.number)
            if verdict is Verdict.OPEN:
                continue
            self._trials.remove(trial)
            told = self._tests.told(trial.number)
            self._tests.end(trial.number)
            await asyncio.get_running_loop().run_in_executor(self._executor, close_all, trial.witnesses)
            try:
                if verdict is Verdict.PASSED:
                    self._pass(trial, told)
                else:
                    await self._take_back(trial, told)
            finally:
                _close_files(trial)
        if self._trials:
            self._look_later()

    def _pass(self, trial: _Trial, told: str) -> None:
        self._counters.add("placements_tested")
        if trial.content and len(self._passed) < MAX_PASSED:
            self._passed[trial.content] = told
        for file, _ in trial.files:
            log.debug("relocated probes see what they should", path=file.path, self_test=told)
            file.inspection = _proved(file.inspection, told)

    async def _take_back(self, trial: _Trial, told: str) -> None:
        """Calls between the two placements are not seen, rather than seen twice."""
        self._counters.add("placement_fallbacks")
        for file, fd in trial.files:
            log.error("relocated probes are taken back", path=file.path, self_test=told)
            await self._move_to_entries(file, fd, f"self-test failed ({told}): probed at first instructions")

    async def _move_to_entries(self, file: File, fd: int, reason: str) -> None:
        loop = asyncio.get_running_loop()
        found = await self._at_entries(fd, file.path)
        if file.attached is not None:
            await loop.run_in_executor(self._executor, close_all, [file.attached])
        file.inspection = msgspec.structs.replace(found, reason=reason)
        path, probes = f"/proc/self/fd/{fd}", [probe_of(site) for site in found.sites]
        try:
            file.attached = await loop.run_in_executor(
                self._executor, self._kernel.attach_library, path, found.library, probes
            )
        except OSError as error:
            file.attached = None
            file.error = f"the kernel refused the probes: {error}"


def _close_files(trial: _Trial) -> None:
    for _, fd in trial.files:
        os.close(fd)


def _proved(inspection: Inspection, told: str) -> Inspection:
    """The same, with what the self-test has told beside the proofs."""
    sites = [
        msgspec.structs.replace(site, proof=f"{site.proof}; self-test passed: {told}")
        if site.witnesses
        else site
        for site in inspection.sites
    ]
    return msgspec.structs.replace(inspection, sites=sites)


def probe_of(site: Site, test: int = 0) -> Probe:
    """A site as the kernel side wants it.

    A read that returns 0 means the end of the stream, except for SSL_read_ex, which returns 0 for
    every failure.
    """
    eof = site.op == "read" and (site.placement == "internal" or site.flavour == "count")
    return Probe(
        site.offset, site.op, site.flavour, site.return_probe, eof, site.placement, site.known_only, test
    )
