"""THE MAP: builds the stages in the order in which data flows, keeps them alive, takes them down.

    scope -> kernel (maps, programs) -> workers -> api -> sockets and processes -> interfaces -> libraries
    -> READY

Takes a ``Config``; ``run`` returns the exit code. This is the only process that keeps root: it loads
eBPF, reads /proc, restarts the others and talks to systemd. It never parses captured bytes, never reads
a ring that holds any, and speaks no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from spliffd import __version__, config, ipc, metrics, resident, statistics, systemd
from spliffd.attribution.processes import Processes
from spliffd.config import Config
from spliffd.counters import Area
from spliffd.errors import FailedError, UsageError
from spliffd.journal import logger, set_debug
from spliffd.kernel.mappings import Mappings
from spliffd.kernel.maps import PROCESS_RING_BYTES
from spliffd.kernel.records import PROCESS_MAPPED, PROCESS_RECORD, PROCESS_TESTED, cgroup_of, mapped_file
from spliffd.kernel.ring import Ring
from spliffd.protocols.mask_command import mask_command
from spliffd.protocols.masking import Masker
from spliffd.stages import health, host, usage
from spliffd.stages.capture import Kernel, ScopeMaps
from spliffd.stages.children import Child
from spliffd.stages.demands import Demands
from spliffd.stages.interfaces import Interfaces
from spliffd.stages.ledger import Ledger
from spliffd.stages.libraries import Libraries
from spliffd.stages.occupancy import Occupancy
from spliffd.stages.owners import Owners
from spliffd.stages.priority import set_priority, wake_at_once
from spliffd.stages.queries import Queries
from spliffd.stages.rings import Rings
from spliffd.targets.client import Inspector

log = logger("supervisor")

READY_SECONDS = 60.0
"""How long api and workers may take to come up: half a second on an idle host, over 20 on a starved one."""

TICK_SECONDS = 10.0
"""Between signs of life when systemd sets no watchdog: cheap enough to be no load (8,640 a day)."""

STOP_SECONDS = 5.0
"""What a child gets to drain; systemd's own limit is far longer."""

_SO_SNDBUFFORCE = 32


class Supervisor:
    """One run of the daemon."""

    def __init__(self, settings: Config, config_path: str | None) -> None:
        self.config = settings
        self._config_path = config_path
        self._notify = systemd.Notifier()
        self._stop = asyncio.Event()
        self._lock_fd = -1
        self.started_ns = time.time_ns()
        self.workers: list[Child] = []
        self._pings = 0
        access = settings.access
        self._masking = ipc.Masking(
            os.urandom(ipc.MASK_KEY_BYTES),
            list(access.mask_headers),
            list(access.mask_fields),
            access.mask_bodies,
        )
        self._masker = Masker(self._masking.key, self._masking.headers, self._masking.fields)

    # ---- start ------------------------------------------------------------------------------

    async def run(self) -> int:
        """Starts, serves until told to stop, drains; returns the exit code."""
        began = time.monotonic()
        uid, gid, socket_gid = host.accounts(self.config.access)
        scope = ScopeMaps(self.config.scope)
        self._lock_fd = host.lock(self.config.socket)
        listener = host.metrics_socket(self.config.metrics.listen)
        self.area = Area.create()
        self.processes = Processes()
        loop = asyncio.get_running_loop()
        # Children are in the background of the terminal, if there is one: they may write to it all the same.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

        self.kernel = Kernel(scope, self.config.capture, uid, gid)
        self.occupancy = Occupancy(self.kernel.maps, self.area)
        self._owners = Owners(self.kernel.enter_owners)
        self.inspector = Inspector(uid, gid)
        self.libraries = Libraries(self.config, self.kernel, self.inspector, self.area.supervisor)
        self.interfaces = Interfaces(
            self.config.interfaces,
            self.kernel.programs.fd,
            self.kernel.maps.fd["interfaces"],
            self.area.supervisor,
            self._tell_workers,
        )
        self.ledger = Ledger(
            self.kernel.maps,
            self.processes,
            self.libraries.state_of,
            self.libraries.memory.recall,
            self.libraries.look_again,
            scope.admits,
            self.area.supervisor,
        )
        self.kernel.looked = self.ledger.closed
        self._judging: asyncio.Future[None] | None = None
        self._demands = Demands(self.kernel.maps, self.config.capture.unwatched_rate)
        self._rings = Rings(self.kernel.maps, self.config.capture, self._give_ring)
        self._queries = Queries(
            self.config,
            self.kernel,
            self.libraries,
            self.interfaces,
            self.ledger,
            self.processes,
            self._mask_command,
            lambda: [*self.workers, self.api],
            self.health,
        )
        try:
            self._start_children(uid, gid, socket_gid, listener)
            await self._children_ready()
            # A library is probed within the milliseconds between its mapping and its first use, or too late.
            set_priority(os.getpid(), self.config.capture.nice)
            wake_at_once(self.config.capture.nice)
            self.kernel.attach()
            self._process_ring = Ring(self.kernel.maps.fd["processes"], PROCESS_RING_BYTES)
            loop.add_reader(self._process_ring.fd, self._processes_started)
            if mappings := self.kernel.mappings:
                for fd in mappings.fds:
                    loop.add_reader(fd, self._files_mapped, mappings, scope.admits_mapping)
            await self.interfaces.start()
            self.kernel.switch(enabled=self.config.capture.unwatched != "off")
            await self.libraries.scan()
            resident.let_go()  # now: it takes some milliseconds, and soon newcomers are waited for
            self.area.supervisor.set("ready_after_ms", int((time.monotonic() - began) * 1000))
            log.info("ready", seconds=round(time.monotonic() - began, 2), libraries=self.libraries.attached())
            self._notify.ready(self.health())
            await self._serve()
        finally:
            await self._take_down()
        return 0

    def _start_children(self, uid: int, gid: int, socket_gid: int, listener: socket.socket | None) -> None:
        maps, capture = self.kernel.maps, self.config.capture
        ids = ["--uid", str(uid), "--gid", str(gid)]
        shared = ["--counters-fd", str(self.area.fd), "--kernel-counters-fd", str(maps.fd["counters"])]
        shared_fds = [self.area.fd, maps.fd["counters"]]

        def worker_command(number: int, control: int) -> list[str]:
            command = ["spliffd.worker", "--number", str(number), "--control-fd", str(control)]
            command += ["--ring-fd", str(maps.rings[number]), "--ring-bytes", str(maps.ring_sizes[number])]
            command += ["--armed-fd", str(maps.fd["armed"]), "--shards", str(maps.shards)]
            command += ["--unwanted-fd", str(maps.fd["unwanted"])]
            command += [part for name, fd in maps.to_look.items() for part in (f"--{name}-fd", str(fd))]
            return [*command, *shared, *ids]

        def api_command(control: int) -> list[str]:
            command = ["spliffd.api", "--control-fd", str(control), "--socket", self.config.socket]
            command += [*shared, *ids, "--socket-gid", str(socket_gid)]
            command += ["--config-json", msgspec.json.encode(self.config).decode()]
            return [*command, "--metrics-fd", str(listener.fileno())] if listener else command

        api_fds = [*shared_fds, *([listener.fileno()] if listener else [])]
        self.api = Child(
            "api",
            api_command,
            lambda: api_fds,
            self._from_child,
            self._linked,
            lambda: self._died("api"),
            capture.nice // 2,
        )
        for number in range(capture.workers):
            fds = [maps.fd["armed"], maps.fd["unwanted"], *maps.to_look.values(), *shared_fds]
            self.workers.append(
                Child(
                    f"worker {number}",
                    lambda control, number=number: worker_command(number, control),  # type: ignore[misc]
                    lambda number=number, fds=fds: [maps.rings[number], *fds],  # type: ignore[misc]
                    self._from_child,
                    self._linked,
                    lambda: self._died("worker"),
                    capture.nice,
                )
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.config.socket)  # left by a daemon that was killed; the lock is ours
        for child in (*self.workers, self.api):
            child.start()

    async def _children_ready(self) -> None:
        for child in (*self.workers, self.api):
            try:
                await asyncio.wait_for(child.ready.wait(), READY_SECONDS)
            except TimeoutError:
                raise FailedError(f"{child.name} did not come up", "look at the log above") from None
            if child.failure is not None:
                raise FailedError(child.failure.message, child.failure.remedy)

    def _died(self, kind: str) -> None:
        self.area.supervisor.add(f"{kind}_restarts")
        if kind == "api":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.config.socket)

    def _linked(self, child: Child) -> None:
        """A child has come up: give it what it starts with, and data links as soon as both ends are there."""
        if child is not self.api:
            child.send(self.interfaces.names.message())
            child.send(self._masking)
        pairs = [(n, w) for n, w in enumerate(self.workers) if w is child or child is self.api]
        for number, worker in pairs:
            if not (worker.ready.is_set() and self.api.ready.is_set()):
                continue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ipc.SEND_BUFFER)
            self.api.send(ipc.Link(number), [ours.fileno()])
            worker.send(ipc.Link(number), [theirs.fileno()])
            ours.close()
            theirs.close()

    # ---- run --------------------------------------------------------------------------------

    def _tell_workers(self, message: ipc.Interfaces) -> None:
        for worker in self.workers:
            worker.send(message)

    def _mask_command(self, line: str) -> str:
        return mask_command(line, self._masker)

    def _from_child(self, child: Child, message: ipc.FromChild) -> None:
        counters = self.area.supervisor
        if isinstance(message, ipc.WhoIs):
            counters.add("whois_requests")
            # Its exec may still be in the ring, and the process gone: epoll tells of this socket first, if it
            # was the last to be served before both.
            self._processes_started()
            facts, known = self.processes.facts(message.pid, message.start_ns)
            if not known:
                counters.add("whois_too_late")
            child.send(facts)
        elif isinstance(message, ipc.EnterOwners):
            self._owners.asked(child)
        elif isinstance(message, ipc.Nameless):
            self.ledger.nameless(message.ended)
        elif isinstance(message, ipc.Watching):
            if self.config.capture.unwatched == "off":
                self.kernel.switch(enabled=message.watchers > 0)
            self._demands.wanted(self.workers.index(child), message.watchers, message.whom)
            self._rings.wanted(self.workers.index(child), bodies=message.bodies)
            child.send(ipc.Watched(message.watchers))
            if self._demands.judgements.pending:
                self._judging = asyncio.ensure_future(self._judge_cgroups())
        elif isinstance(message, ipc.Query):
            answer, fds = ipc.packed(self._queries.answer(message))
            child.send(answer, fds)
            for fd in fds:
                os.close(fd)

    async def _judge_cgroups(self) -> None:
        for _ in self._demands.look():
            await asyncio.sleep(0)

    def _give_ring(self, number: int, size: int) -> None:
        self.workers[number].send(ipc.NewRing(size), [self.kernel.maps.rings[number]])

    def _processes_started(self) -> None:
        """Execs: remember who it is, look for libraries. Also files mapped first, and self-tests to judge."""
        ring = self._process_ring
        while positions := ring.drain(256):
            for at in positions:
                pid, _, start_ns, _, _, *texts, flags = PROCESS_RECORD.unpack_from(ring.data, at)
                if flags & PROCESS_MAPPED:
                    self.libraries.mapped(pid, start_ns, mapped_file(ring.data, at))
                    continue
                if flags & PROCESS_TESTED:
                    self.libraries.tested()
                    continue
                self.area.supervisor.add("execs_seen")
                self.processes.remember(pid, start_ns, ring.data[at : at + PROCESS_RECORD.size + sum(texts)])
                if self._demands.judgements.wanted:
                    self._demands.judgements.seen(cgroup_of(ring.data, at))
                self.libraries.started(pid, start_ns)
            ring.release()
        ring.release()

    def _files_mapped(self, mappings: Mappings, admits: Callable[[int], bool]) -> None:
        """Libraries, before they are used."""
        self.libraries.mapped_now(mappings.drain(), admits)
        self.area.supervisor.set("mappings_lost", mappings.lost)

    async def _serve(self) -> None:
        interval = systemd.watchdog_interval() or TICK_SECONDS
        told: list[int] = []
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(interval, TICK_SECONDS))
            self._pings += 1
            alive = [child.ping(self._pings) for child in (*self.workers, self.api)]
            if all(alive):
                self._notify.watchdog()
            for _ in self.kernel.sweep():
                await asyncio.sleep(0)  # a library that is being mapped does not wait
            self.area.supervisor.set("flows_evicted", self.kernel.evicted)
            await self._judge_cgroups()
            if self.occupancy.look():
                for _ in self.ledger.refresh():
                    await asyncio.sleep(0)
            usage.look((*self.workers, self.api), self.area.supervisor)
            facts = health.facts(self.area, self.kernel.maps.counters, self.libraries.attached())
            if facts != told:  # adding up all series takes milliseconds, most of what an idle daemon costs
                told = facts
                self._notify.status(self.health())

    def health(self) -> str:
        """One line for `systemctl status`."""
        features = [*self.kernel.features, self.interfaces.feature()]
        return health.line(self.families(), self.libraries.attached(), features)

    def families(self) -> list[metrics.Family]:
        """All counters, as metric families."""
        return metrics.collect(self.area, self.kernel.maps.counters, len(self.workers))

    def _reload(self) -> None:
        """SIGHUP: log level and interfaces are taken over at once; the rest says that it needs a restart."""
        self._notify.reloading()
        try:
            fresh = config.load(None if self._config_path is None else Path(self._config_path))
        except UsageError as error:
            log.error("reload refused, the old configuration stays", error=str(error))
        else:
            set_debug(fresh.debug)
            for child in (*self.workers, self.api):
                child.send(ipc.Debug(fresh.debug))
            self.interfaces.reload(fresh.interfaces)
            old, new = msgspec.to_builtins(self.config), msgspec.to_builtins(fresh)
            waiting = [key for key in ("scope", "capture", "access", "metrics") if old[key] != new[key]]
            if waiting:
                log.warning("these sections take effect with a restart", sections=", ".join(waiting))
            log.info("reloaded")
        self._notify.ready(self.health())

    # ---- stop -------------------------------------------------------------------------------

    async def _take_down(self) -> None:
        self._notify.stopping()
        self.libraries.close()
        await self.interfaces.close()
        for fd in self.kernel.mappings.fds if self.kernel.mappings else ():
            asyncio.get_running_loop().remove_reader(fd)
        self.kernel.close()
        for child in self.workers:  # workers first: what they flush must still find the api
            await child.stop(STOP_SECONDS)
        if hasattr(self, "api"):
            await self.api.stop(STOP_SECONDS)
        await self.inspector.close()
        for path in (self.config.socket, config.auth_socket(self.config.socket)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.occupancy.look()
        covered = time.time_ns() - self.started_ns
        print(statistics.text(self.families(), covered), file=sys.stderr, end="", flush=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.config.socket + ".lock")
        log.info("stopped", version=__version__)
