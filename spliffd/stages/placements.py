"""Attaches a file's probes, and takes relocated ones back that do not see what they should.

Takes a file and where its probes belong; returns links. Where a probe sits behind its function's first
instruction, a witness sits at that until the first calls have shown that both see the same (``self_tests``);
then it goes. Where they do not, all probes of the file go to first instructions, which is dearer and never
wrong; that is counted, logged, and told by ``spliffctl libraries``. A file nobody calls stays under test.
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
"""A busy server has made enough calls by then; until then each of them costs it a dear probe more."""

LONGEST_LOOK_SECONDS = 16.0
"""Looks become rarer while nothing is called: an idle host is not woken for it."""


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
    file: File
    fd: int
    """The file, kept open: it may be deleted by the time probes have to move."""
    witnesses: Attached


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
        self._pause = FIRST_LOOK_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._judging: asyncio.Task[None] | None = None

    async def attach(self, file: File, fd: int) -> None:
        """Attaches the probes of ``file``; raises OSError."""
        inspection = file.inspection
        loop = asyncio.get_running_loop()
        moved = [site for site in inspection.sites if site.witnesses]
        number = self._tests.begin() if moved else 0
        path = f"/proc/self/fd/{fd}"  # names the inode even when the path is another namespace's, or deleted
        witnesses = Attached([])
        if number:
            first = [
                Probe(offset, site.op, "none", returns=False, test=number)
                for site in moved
                for offset in site.witnesses
            ]
            try:
                witnesses = await loop.run_in_executor(
                    self._executor, self._kernel.attach_witnesses, path, inspection.library, first
                )
            except OSError as error:
                log.warning("relocated probes are not tested", path=file.path, error=str(error))
                self._tests.end(number)
                number = 0
        probes = [probe_of(site, number if site.witnesses else 0) for site in inspection.sites]
        try:
            file.attached = await loop.run_in_executor(
                self._executor, self._kernel.attach_library, path, inspection.library, probes
            )
        except OSError:
            witnesses.close()
            raise
        if number:
            self._trials.append(_Trial(number, file, os.dup(fd), witnesses))
            self._pause = FIRST_LOOK_SECONDS
            self._look_later()

    def close(self) -> None:
        """Ends all tests."""
        if self._timer is not None:
            self._timer.cancel()
        if self._judging is not None:
            self._judging.cancel()
        close_all([trial.witnesses for trial in self._trials])
        for trial in self._trials:
            os.close(trial.fd)
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
            await asyncio.get_running_loop().run_in_executor(self._executor, trial.witnesses.close)
            try:
                if verdict is Verdict.PASSED:
                    self._passed(trial.file, told)
                else:
                    await self._take_back(trial, told)
            finally:
                os.close(trial.fd)
        if self._trials:
            self._look_later()

    def _passed(self, file: File, told: str) -> None:
        self._counters.add("placements_tested")
        log.debug("relocated probes see what they should", path=file.path, self_test=told)
        sites = [
            msgspec.structs.replace(site, proof=f"{site.proof}; self-test passed: {told}")
            if site.witnesses
            else site
            for site in file.inspection.sites
        ]
        file.inspection = msgspec.structs.replace(file.inspection, sites=sites)

    async def _take_back(self, trial: _Trial, told: str) -> None:
        """Calls between the two placements are not seen, rather than seen twice."""
        file = trial.file
        self._counters.add("placement_fallbacks")
        log.error("relocated probes are taken back", path=file.path, self_test=told)
        loop = asyncio.get_running_loop()
        found = await self._at_entries(trial.fd, file.path)
        if file.attached is not None:
            await loop.run_in_executor(self._executor, file.attached.close)
        reason = f"self-test failed ({told}): probed at first instructions"
        file.inspection = msgspec.structs.replace(found, reason=reason)
        probes = [probe_of(site) for site in found.sites]
        try:
            file.attached = await loop.run_in_executor(
                self._executor,
                self._kernel.attach_library,
                f"/proc/self/fd/{trial.fd}",
                found.library,
                probes,
            )
        except OSError as error:
            file.attached = None
            file.error = f"the kernel refused the probes: {error}"


def probe_of(site: Site, test: int = 0) -> Probe:
    """A site as the kernel side wants it.

    A read that returns 0 means the end of the stream, except for SSL_read_ex, which returns 0 for
    every failure.
    """
    eof = site.op == "read" and (site.placement == "internal" or site.flavour == "count")
    return Probe(
        site.offset, site.op, site.flavour, site.return_probe, eof, site.placement, site.known_only, test
    )
