"""The kernel side of a run: compiled, loaded, scoped, attached, switched on.

Takes the configuration; owns maps, programs and the links that are not about one library. Scope is in
force before anything is attached: the first thing a program looks at is whether it may look. Closing
detaches; being killed does too, because everything is held by links.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from spliffd import compiled
from spliffd.config import Capture, Scope
from spliffd.doctor import cgroup2_mount
from spliffd.errors import FailedError, HostError, UsageError
from spliffd.journal import logger
from spliffd.kernel import cache, links, runs
from spliffd.kernel import compile as compiler
from spliffd.kernel.features import UPROBES
from spliffd.kernel.flows import Flow, Looked, Sweeper
from spliffd.kernel.loader import Programs
from spliffd.kernel.mappings import Mappings
from spliffd.kernel.maps import FLOWS, MAX_UIDS, SCOPE_SLOTS, Maps
from spliffd.targets import discovery

log = logger("capture")

CODE = {
    compiled.COMPILED: "workers and api run compiled modules",
    compiled.PLAIN: "plain Python: half as fast (`make compiled`, or the Debian package)",
    compiled.STALE: "compiled modules are older than their sources: `make compiled`",
}


class Feature(msgspec.Struct):
    """A need and how this host meets it, for `spliffctl status`."""

    name: str
    state: str
    detail: str


def open_cgroup(path: str) -> int:
    """Opens a cgroup v2 directory; raises UsageError with the remedy."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"scope: cgroup {path}: {error.strerror}", "name an existing directory of cgroup v2"
        ) from None
    # Only cgroup v2 has this file in every directory, the root included.
    if not os.path.exists(f"/proc/self/fd/{fd}/cgroup.procs") or not os.path.exists(
        f"/proc/self/fd/{fd}/cgroup.controllers"
    ):
        os.close(fd)
        raise UsageError(f"scope: {path} is not a cgroup v2 directory", "see `findmnt -t cgroup2`")
    return fd


def user_id(name: str) -> int:
    """A user's id by name or number; raises UsageError."""
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"scope: no user {name}", "use a name or number that `id` knows") from None


class ScopeMaps:
    """The scope, opened and resolved; raises UsageError before anything else is touched."""

    def __init__(self, scope: Scope) -> None:
        if len(scope.cgroups) > SCOPE_SLOTS or len(scope.exclude_cgroups) > SCOPE_SLOTS:
            raise UsageError(f"scope: more than {SCOPE_SLOTS} cgroups", "name a common parent")
        self.users = [user_id(name) for name in scope.users]
        self.excluded_users = [user_id(name) for name in scope.exclude_users]
        if len(self.users) + len(self.excluded_users) > MAX_UIDS:
            raise UsageError(f"scope: more than {MAX_UIDS} users", "scope by cgroup instead")
        self._scope = scope
        self.cgroups = [open_cgroup(path) for path in scope.cgroups]
        self.excluded = [open_cgroup(path) for path in scope.exclude_cgroups]

    def admits(self, pid: int) -> bool:
        """Whether a process is in the scope's cgroups and users; False when it is gone."""
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return False
        if uid in self.excluded_users or (self.users and uid not in self.users):
            return False
        return pid in discovery.pids_in_scope(self._scope.cgroups, self._scope.exclude_cgroups)

    def admits_mapping(self, pid: int) -> bool:
        """The same of a process in the scope's cgroups: mappings of others are not told."""
        narrower = self.users or self.excluded_users or self.excluded
        return self.admits(pid) if narrower else True


class Kernel:
    """Everything that is loaded and attached, but for the libraries (``stages.libraries``)."""

    def __init__(self, scope: ScopeMaps, capture: Capture, uid: int, gid: int) -> None:
        self._scope = scope
        self._capture = capture
        self.features: list[Feature] = []
        btf = os.environ.get("SPLIFF_BTF", compiler.BTF_PATH)
        built, kept = cache.programs(uid, gid, btf)
        code = compiled.state()
        if code == compiled.STALE:
            log.warning("compiled modules are older than their sources", remedy="make compiled")
        self._note("code", "degraded" if code == compiled.STALE else "ok", CODE[code])
        how = "kept from an earlier start" if kept else "unprivileged"
        self._note("compiler", "ok", f"BCC {built.bcc}, {how}, {len(built.offsets)} offsets from BTF")
        try:
            self.maps = Maps(capture.workers, capture.ring_mib << 20)
            self.programs = Programs(built, self.maps)
        except PermissionError:
            raise HostError(
                "the kernel refuses to make eBPF maps", "run as root; `spliffd doctor` says what is missing"
            ) from None
        self._note("attach", "ok", UPROBES[self.programs.uprobe_multi])
        self._sweeper = Sweeper(self.maps.fd["flows"], FLOWS, self._swept)
        self.looked: Looked = lambda _flows, _over: None
        """Told of all flows before those that are over are removed."""
        self._attached: list[links.Attached] = []
        self.mappings: Mappings | None = None
        """What processes map; None where the kernel does not tell."""
        self._sock_ops_attached = False
        self._write_scope(enabled=False)

    def _note(self, name: str, state: str, detail: str) -> None:
        self.features.append(Feature(name, state, detail))

    def _write_scope(self, *, enabled: bool) -> None:
        scope, maps = self._scope, self.maps
        for slot, fd in enumerate(scope.cgroups):
            maps.set_scope(slot, fd)
        for slot, fd in enumerate(scope.excluded):
            maps.set_scope(SCOPE_SLOTS + slot, fd)
        for uid in scope.users:
            maps.set_uid(uid, excluded=False)
        for uid in scope.excluded_users:
            maps.set_uid(uid, excluded=True)
        self.switch(enabled=enabled)

    def switch(self, *, enabled: bool) -> None:
        """Capture on or off; takes effect with the next call in any process."""
        scope = self._scope
        self.maps.set_settings(
            enabled=enabled,
            cgroups=len(scope.cgroups),
            excluded_cgroups=len(scope.excluded),
            uids=len(scope.users),
            excluded_uids=len(scope.excluded_users),
        )

    def attach(self) -> None:
        """Processes, sockets, sock_ops: what is there before the first library is probed."""
        try:
            self._attached.append(links.attach_processes(self.programs))
        except OSError as error:
            raise FailedError(f"cannot attach to process events: {error}", "run `spliffd doctor`") from None
        self._try("late libraries", self._attach_mappings, "found when their TLS is seen on the wire: ")
        if self._capture.socket_observation:
            self._try("sockets", self._attach_sockets, "only SSL_set_fd names sockets: ")
        else:
            self._note("sockets", "degraded", "socket observation is switched off in the configuration")
        self._try("flows", self._attach_states, "connections never end: ")
        if self._capture.sock_ops:
            self._try("cookies", self._attach_sock_ops, "socket cookies may be unknown: ")
        else:
            self._note("cookies", "degraded", "sock_ops is switched off in the configuration")
        if not self._sock_ops_attached:
            # The second best that opens flows: without the process, and after the handshake.
            self.maps.open_by_state = True
        self.switch(enabled=False)
        # Last, so that no connection falls between what is older and what is seen to open.
        self._try("older sockets", self._seed, "connections older than the daemon have no packets: ")

    def _try(self, name: str, attach: Callable[[], str], without: str) -> None:
        try:
            self._note(name, "ok", attach())
        except OSError as error:
            log.warning("degraded", need=name, error=str(error))
            self._note(name, "degraded", without + str(error))

    def _attach_sockets(self) -> str:
        attached, flavour = links.attach_sockets(self.programs)
        self._attached.append(attached)
        return flavour

    def _attach_mappings(self) -> str:
        try:
            self.mappings = Mappings(self._scope.cgroups)
        except OSError as error:  # a controller of cgroup v1, or no right to perf events
            log.debug("no perf events of mappings", error=str(error))
            attached, flavour = links.attach_mappings(self.programs)
            self._attached.append(attached)
            return flavour
        return "perf events of executable mappings"

    def _attach_states(self) -> str:
        attached, flavour = links.attach_states(self.programs)
        self._attached.append(attached)
        return flavour

    def enter_owners(self) -> None:
        """Enters who holds which socket into the table of flows; raises OSError."""
        if self.programs.seeding:
            raise OSError(self.programs.seeding)
        runs.iterate(self.programs.fd["seed_sockets"])

    def _seed(self) -> str:
        self.enter_owners()
        return f"{self.maps.counters.get('sockets_seeded')} seeded from the descriptors of all processes"

    def _swept(self, flows: Sequence[tuple[int, Flow]], over: Collection[int]) -> None:
        self.looked(flows, over)

    def sweep(self) -> Iterator[None]:
        """Removes flows that closed a while ago, a step at a time."""
        counters = self.maps.counters
        try:
            yield from self._sweeper.steps(
                counters.get("flows_made"), counters.get("sockets_closed"), time.monotonic_ns()
            )
        except OSError as error:  # no batches before 5.6: then the least recently used give way
            log.debug("flows are not swept", error=str(error))

    @property
    def evicted(self) -> int:
        """How many flows the kernel has evicted for want of room, as the sweeper found."""
        return self._sweeper.swept.evicted

    def _attach_sock_ops(self) -> str:
        fds = self._scope.cgroups
        where = f"sock_ops at {len(fds)} cgroups of the scope"
        opened = []
        if not fds:
            with open("/proc/self/mountinfo", encoding="utf-8") as file:
                root = cgroup2_mount(file.read())
            if root is None:
                raise OSError("no cgroup v2 is mounted")
            fds = opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
            where = f"sock_ops at {root}"
        try:
            self._attached.append(links.attach_sock_ops(self.programs, fds))
            self._sock_ops_attached = True
        finally:
            for fd in opened:
                os.close(fd)
        return where

    def attach_library(self, path: str, library: str, probes: list[links.Probe]) -> links.Attached:
        """Attaches a library's probes; raises OSError."""
        return links.attach_library(self.programs, path, library, probes)

    def attach_witnesses(self, path: str, library: str, probes: list[links.Probe]) -> links.Attached:
        """Attaches what relocated probes are compared with; raises OSError."""
        return links.attach_witnesses(self.programs, path, library, probes)

    def close(self) -> None:
        """Detaches what this stage attached."""
        for attached in self._attached:
            attached.close()
        self._attached.clear()
        if self.mappings:
            self.mappings.close()
