"""Finds TLS libraries and probes them: at start in every process in scope, then in each that execs.

Takes mappings and exec events; asks the inspector (unprivileged) where to probe a file that was not seen
before; attaches once per inode, for every process that maps it now or later. The kernel tells of a
library while the loader maps it; where it does not (``kernel.mappings``), a process is looked at several
times after its exec. A file whose content is known never waits for one that has to be inspected. What
could not be probed is listed with the reason.

Reads /proc and directory entries; never a library's content (the inspector does, without privileges).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from spliffd.attribution.coverage import TlsFile
from spliffd.config import Config
from spliffd.counters import LIBRARIES, Region
from spliffd.journal import logger
from spliffd.kernel.links import Attached, close_all
from spliffd.kernel.mappings import Mapped
from spliffd.kernel.standby import Standby
from spliffd.stages.capture import Kernel
from spliffd.stages.looks import Looks
from spliffd.stages.mapped import MappedFile, Memory
from spliffd.stages.placements import Placements
from spliffd.stages.priority import wait_for_nobody
from spliffd.stages.self_tests import SelfTests
from spliffd.targets import discovery
from spliffd.targets.client import Inspector
from spliffd.targets.sites import Inspection

log = logger("libraries")

SCAN_AT_A_TIME = 32
"""Processes looked at in one go at start, 0.1 ms each: what else happens waits no longer than that takes."""

SAME_CONTENT_BYTES = 16 << 20
"""Files up to this size are recognised by their content (2 ms for libcrypto, 0.4 ms for libssl): a copy of
a library that was inspected before, as in container images, is attached without asking again."""

ATTACHING = 8
"""Files that are attached to at a time."""

MAX_FILES = 4096
"""Files kept in the list; a host has some dozens of TLS libraries and a few hundred large programs."""


MAX_IDENTITIES = 16384
"""Mapped files known by their numbers: one that is forgotten is opened again, and known by its content."""


class Probed(msgspec.Struct):
    """A file that was looked at, and what came of it."""

    path: str
    device: int
    inode: int
    inspection: Inspection
    attached: Attached | None
    error: str = ""
    attached_ns: int = 0
    """Ktime since when its probes are in place."""


class Libraries:
    """Everything attached to libraries."""

    def __init__(self, config: Config, kernel: Kernel, inspector: Inspector, counters: Region) -> None:
        self._config = config
        self._kernel = kernel
        self._inspector = inspector
        self._counters = counters
        self._lock = asyncio.Lock()
        self._own = os.getpid()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[tuple[int, int, int, int]] = set()
        """Keys of files that are being handled."""
        self._attaching = ThreadPoolExecutor(ATTACHING, "attach")
        self._placements = Placements(
            kernel, SelfTests(kernel.maps), counters, self._attaching, self._inspect_entries
        )
        self._standby = Standby(kernel.attach_library)
        self.files: dict[tuple[int, int, int, int], Probed] = {}
        self._seen: OrderedDict[tuple[int, int], Probed] = OrderedDict()
        """By (device, inode) as in /proc/PID/maps, files that were handled: skipped without opening."""
        self._unopened: OrderedDict[tuple[int, int], str] = OrderedDict()
        """Those that could not be opened, and why: tried again with each look."""
        self.memory = Memory()
        self._by_content: dict[bytes, Inspection] = {}
        self._rest: asyncio.Task[None] | None = None
        self._looks = Looks(self.memory, self._handle_fresh)

    async def scan(self) -> None:
        """All processes in scope, and the standard library folders.

        The host's own libraries are inspected even when they are out of scope (which only keeps them
        from being probed): what processes in scope bring is often a copy of one.
        """
        scope = self._config.scope
        for known in discovery.known_library_files():
            with contextlib.suppress(OSError):
                fd = discovery.open_file(known)
                try:
                    await self._inspect(known.path, fd, content(fd))
                finally:
                    os.close(fd)
        candidates = discovery.known_library_files(scope.paths, scope.exclude_paths)
        pids = discovery.pids_in_scope(scope.cgroups, scope.exclude_cgroups) - {os.getpid()}
        looks = []
        for number, pid in enumerate(pids, 1):
            if (seen := discovery.look(pid)) is not None:
                looks.append(seen)
            if number % SCAN_AT_A_TIME == 0:
                await asyncio.sleep(0)  # programs that start meanwhile are looked at as well
        candidates += discovery.merge(looks, scope.paths, scope.exclude_paths)
        likely = [candidate for candidate in candidates if discovery.is_likely(candidate)]
        await self._handle_all(likely)
        wait_for_nobody()  # from now on each that comes is urgent
        # The rest, some hundred on a large host, is looked at while capture runs.
        rest = [candidate for candidate in candidates if not discovery.is_likely(candidate)]
        self._rest = asyncio.get_running_loop().create_task(self._handle_all(rest))

    def mapped_now(self, mappings: list[Mapped], admits: Callable[[int], bool]) -> None:
        """Processes are mapping files as code; ``admits`` says whether a process is in scope."""
        scope = self._config.scope
        fresh: dict[tuple[int, int], discovery.Candidate] = {}
        for pid, start, length, device, inode, path in mappings:
            identity = device, inode
            known = self._seen.get(identity)
            if known is not None and known.attached is None and known.path != path:
                del self._seen[identity]  # it was another file of that number
            elif known is not None or identity in fresh or pid == self._own:
                continue
            if not (length >= discovery.MIN_CODE or discovery.is_library_name(path)):
                continue
            if discovery.in_scope(path, scope.paths, scope.exclude_paths) and admits(pid):
                mapping = discovery.Mapping(pid, f"{start:x}-{start + length:x}")
                deleted = path.endswith(discovery.DELETED)
                path = path.removesuffix(discovery.DELETED)  # noqa: PLW2901 - the same path, as it was
                fresh[identity] = discovery.Candidate(device, inode, path, deleted, False, [mapping])
        if any(map(discovery.is_likely, fresh.values())):
            self._standby.expect()
        self._handle_soon(sorted(fresh.values(), key=lambda one: not discovery.is_likely(one)))

    def started(self, pid: int, start_ns: int) -> None:
        """A process has exec'd: look at it soon, together with others that start about now."""
        self._looks.started(pid, start_ns, mappings_told=self._kernel.mappings is not None)

    def mapped(self, pid: int, start_ns: int, identity: tuple[int, int]) -> None:
        """A process has mapped a file that nobody had mapped before: a library loaded late, or at its start.

        Where ``mapped_now`` is not told.
        """
        known = self._seen.get(identity)
        if known is not None and known.attached is None:
            del self._seen[identity]  # it was another file of that number
        self._looks.mapped(pid, start_ns)

    def tested(self) -> None:
        """Relocated probes can be judged by now."""
        self._placements.judge()

    def look_again(self, look: discovery.Look, start_ns: int) -> None:
        """A process speaks TLS that no probe sees: what it maps now may be new."""
        self.memory.keep(look, start_ns)
        self._handle_fresh([look])

    def _handle_fresh(self, looks: list[discovery.Look]) -> None:
        scope = self._config.scope
        self._handle_soon(
            [
                candidate
                for candidate in discovery.merge(looks, scope.paths, scope.exclude_paths)
                if (candidate.device, candidate.inode) not in self._seen
            ]
        )

    def _handle_soon(self, fresh: list[discovery.Candidate]) -> None:
        for candidate in fresh:
            task = asyncio.get_running_loop().create_task(self._handle(candidate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle_all(self, candidates: list[discovery.Candidate]) -> None:
        for candidate in candidates:
            await self._handle(candidate)

    async def _handle(self, candidate: discovery.Candidate) -> None:
        identity = (candidate.device, candidate.inode)
        if identity in self._seen:
            return
        try:
            fd = discovery.open_file(candidate)
        except OSError as error:
            log.debug("gone", path=candidate.path, error=str(error))
            self._unopened[identity] = error.strerror or str(error)
            _bound(self._unopened)
            return
        try:
            key = discovery.attach_key(fd)
            if key in self._busy:
                return  # found in two ways at a time
            if key not in self.files:
                self._busy.add(key)
                try:
                    probed = await self._probe(candidate, fd)
                finally:
                    self._busy.discard(key)
                self._forget_oldest()
                self.files[key] = probed
                self._seen[identity] = probed
                if probed.attached:
                    await self._placements.try_out(probed, fd)
            self._seen[identity] = self.files[key]
            self._unopened.pop(identity, None)
            _bound(self._seen)
        finally:
            os.close(fd)

    async def _inspect(self, path: str, fd: int, digest: bytes) -> Inspection:
        """What is in a file: known by its content, or asked of the inspector, one at a time."""
        found = self._by_content.get(digest)
        if found is not None:
            return found
        async with self._lock:
            found = self._by_content.get(digest)
            if found is None:
                found = await self._inspector.inspect(fd, path, self._config.capture.relocate)
                if digest and len(self._by_content) < MAX_FILES:
                    self._by_content[digest] = found
            return found

    async def _inspect_entries(self, fd: int, path: str) -> Inspection:
        """The same with nothing relocated; from now on that is what is known of this content."""
        digest = content(fd)
        async with self._lock:
            found = await self._inspector.inspect(fd, path, relocate=False)
            if digest:
                self._by_content[digest] = found
        return found

    async def _probe(self, candidate: discovery.Candidate, fd: int) -> Probed:
        digest = content(fd)
        inspection = await self._inspect(candidate.path, fd, digest)
        probed = Probed(candidate.path, candidate.device, candidate.inode, inspection, None)
        if inspection.state != "attach":
            if inspection.state == "refused":
                self._counters.add("libraries_refused")
                log.warning("library refused", path=candidate.path, reason=inspection.reason)
            return probed
        if inspection.library not in LIBRARIES:
            probed.error = f"unknown library {inspection.library}"
            return probed
        try:
            # In a thread: the kernel may wait 15 ms for all processors (kernel/standby.py).
            await self._placements.attach(probed, fd, digest)
        except OSError as error:
            probed.error = f"the kernel refused the probes: {error}"
            self._counters.add("libraries_refused")
            log.warning("probe refused", path=candidate.path, error=str(error))
            return probed
        probed.attached_ns = time.monotonic_ns()
        self._counters.add("libraries_attached")
        self._counters.add(f"probes_{inspection.library}", len(inspection.sites))
        log.info(
            "attached", path=candidate.path, library=inspection.library, version=inspection.version,
            placement=inspection.sites[0].placement,
        )  # fmt: skip
        return probed

    def _forget_oldest(self) -> None:
        while len(self.files) >= MAX_FILES:
            for key, probed in self.files.items():
                if probed.attached is None:
                    del self.files[key]
                    break
            else:
                return  # all are attached: the host really has that many

    def state_of(self, file: MappedFile) -> TlsFile:
        """What became of a file that a process maps."""
        scope = self._config.scope
        named = file.executable or discovery.is_library_name(file.path)
        if not discovery.in_scope(file.path, scope.paths, scope.exclude_paths):
            return TlsFile(file.path, "", "out_of_scope", named=discovery.is_library_name(file.path))
        identity = (file.device, file.inode)
        probed = self._seen.get(identity)
        if probed is None:
            if identity in self._unopened:
                why = f"cannot be opened: {self._unopened[identity]}"
                return TlsFile(file.path, "", "refused", "unreadable", why, named=named)
            return TlsFile(file.path, "", "unread", named=named)
        found = probed.inspection
        if probed.attached and not any(site.op in ("read", "write") for site in found.sites):
            return TlsFile(
                file.path, found.library, "skipped", detail="no plaintext passes here", named=named
            )
        if probed.attached:
            since = probed.attached_ns
            return TlsFile(file.path, found.library, "attached", attached_ns=since, named=True)
        if probed.error:
            return TlsFile(file.path, found.library, "refused", "probe_refused", probed.error, named=True)
        if found.state == "skipped":
            return TlsFile(file.path, "", "skipped", detail=found.reason, named=named)
        cause = found.cause or "unsupported"
        return TlsFile(
            file.path, found.library, "refused", cause, found.reason, named=named or bool(found.library)
        )

    def attached(self) -> int:
        """Files that are probed."""
        return sum(1 for probed in self.files.values() if probed.attached)

    def close(self) -> None:
        """Detaches from all libraries."""
        if self._rest:
            self._rest.cancel()
        for task in self._tasks:
            task.cancel()
        self._looks.close()
        self._standby.close()
        self._placements.close()
        self._attaching.shutdown()  # what was being attached goes with the process
        close_all([probed.attached for probed in self.files.values() if probed.attached])


def _bound(table: OrderedDict[tuple[int, int], Any]) -> None:
    while len(table) > MAX_IDENTITIES:
        table.popitem(last=False)


def content(fd: int) -> bytes:
    """Hash of a file's content; nothing for one that is too large to be known by it."""
    if os.fstat(fd).st_size > SAME_CONTENT_BYTES:
        return b""
    with open(fd, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").digest()
