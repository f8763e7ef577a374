"""Packet hooks on the interfaces of this network namespace, from the first to the last of them.

Takes the ``[interfaces]`` settings and program fds; listens to the kernel's link messages; gives each
interface the hook that ``interfaces.policy`` plans, within milliseconds of its appearing, and publishes
names by index to the workers. Interfaces that are up come first: one that is still down carries nothing, and
is often on its way into a container.

A hook once attached stays through renames, down and up, whatever else changes: attaching costs some drivers
their link. It goes when the interface goes, leaves the configuration, or needs the other parser.

The event loop only keeps the table. What waits for the kernel (``interfaces.hooks``) runs in one thread, so
two hundred interfaces at once delay nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from spliffd import config, ipc
from spliffd.counters import HOOK_MODES, Region
from spliffd.errors import FailedError
from spliffd.interfaces import devices, policy
from spliffd.interfaces.counts import Counts
from spliffd.interfaces.devices import Device
from spliffd.interfaces.hooks import Hook, Hooks
from spliffd.interfaces.names import Names
from spliffd.interfaces.policy import Plan
from spliffd.journal import logger
from spliffd.kernel import rtnetlink
from spliffd.kernel.maps import INTERFACES
from spliffd.stages.capture import Feature

log = logger("interfaces")

Result = TypeVar("Result")

RETRY_SECONDS = (0.1, 0.5, 2.0, 10.0, 60.0)
"""Delay before the n-th new attempt; the last one repeats: what keeps refusing is asked once a minute."""

MAX_INTERFACES = INTERFACES
"""Interfaces in the table; two fds go with each. One more is not hooked, and counted
(`interface_table_full`); the next that goes makes room for it."""

BUFFER_BYTES = 4 << 20
"""Of the event socket: 1,000 messages (four for each new veth). Beyond, the table is read anew."""

HURRY_ABOVE = 8
"""Interfaces that wait. TCX links take 16 ms each, in which nobody on the host can make or change an
interface: when more than these wait (0.13 s), filters do until the rush is over."""

CALM_SECONDS = 0.02
"""Pause between promotions: the lock of the kernel's interfaces is free for more than half of the time."""

FIRST_ATTACH_SECONDS = 2.0
"""How long the start waits for the interfaces that are there; 100 of them take so long."""


class Entry(msgspec.Struct):
    """One interface and what came of it."""

    device: Device
    plan: Plan
    mode: str
    """The configuration's mode when the plan was made."""
    hook: Hook | None = None
    error: str = ""
    attempts: int = 0
    retry: asyncio.TimerHandle | None = None
    suspect: bool = False
    """Its hook may be gone: to be looked at."""
    counted: bool = False
    """Whether its packets are counted: from the first hook on, through all changes of hook."""


class Interfaces:
    """Everything attached to interfaces."""

    def __init__(
        self,
        settings: config.Interfaces,
        programs: Mapping[str, int],
        counts_fd: int,
        counters: Region,
        publish: Callable[[ipc.Interfaces], None],
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._hooks = Hooks(programs)
        self._counts = Counts(counts_fd)
        self.names = Names(publish)
        # Subscribed before the table is read: nothing falls in between.
        self._events = rtnetlink.Events(rtnetlink.GROUP_LINK, buffer_bytes)
        self._thread = ThreadPoolExecutor(1, "interfaces")
        self.table: dict[int, Entry] = {}
        self._urgent: dict[int, None] = {}
        self._later: dict[int, None] = {}
        self._provisional: dict[int, None] = {}
        """Interfaces whose filters are to become links."""
        self._orphans: deque[Hook] = deque()
        """Hooks whose interface has left the table, to be detached."""
        self._lost = False
        self._full = False
        self._working: asyncio.Task[None] | None = None
        self._closing = False

    # ---- start, reload, stop ------------------------------------------------------------------

    async def start(self) -> None:
        """Reads the table and attaches; what takes longer goes on in the background. Raises FailedError."""
        try:
            swept = await self._in_thread(self._hooks.sweep)
            await self._read_table()
        except OSError as error:
            raise FailedError(
                f"the kernel does not tell about interfaces: {error.strerror}",
                "allow AF_NETLINK and CAP_NET_ADMIN",
            ) from None
        if swept:
            log.info("removed filters of a daemon that was killed", filters=swept)
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._readable)
        work = self._work()
        if work is not None:
            await asyncio.wait((work,), timeout=FIRST_ATTACH_SECONDS)

    def reload(self, settings: config.Interfaces) -> None:
        """Takes over new settings at once."""
        if settings == self._settings:
            return
        self._settings = settings
        for entry in self.table.values():
            entry.attempts = 0
            self._mark(entry)
        self._work()

    async def close(self) -> None:
        """Detaches from all interfaces."""
        self._closing = True
        with contextlib.suppress(ValueError):
            asyncio.get_running_loop().remove_reader(self._events.fileno())
        if self._working is not None:
            await self._working
        for index in list(self.table):
            self._forget(index)
        for hook in self._orphans:
            await self._detach(hook)
        self.names.close()
        self._thread.shutdown()
        self._hooks.close()
        self._events.close()

    # ---- what is asked ------------------------------------------------------------------------

    def seen(self, index: int) -> tuple[int, int]:
        """Packets and bytes that the hooks of an interface saw."""
        return self._counts.get(index)

    def feature(self) -> Feature:
        """How packets are seen, for `spliffctl status`."""
        counts = [f"{count} on {hook} {mode}" for (hook, mode), count in self._tally().items() if count]
        if self._settings.mode == "off":
            return Feature("packets", "degraded", "packet hooks are switched off in the configuration")
        failed = sum(1 for entry in self.table.values() if entry.error)
        if failed:
            counts.append(f"{failed} failed (spliffctl interfaces)")
        return Feature(
            "packets", "degraded" if failed else "ok", "interfaces: " + (", ".join(counts) or "none")
        )

    def _tally(self) -> dict[tuple[str, str], int]:
        counts = dict.fromkeys(HOOK_MODES, 0)
        for entry in self.table.values():
            if entry.hook is not None:
                counts[entry.hook.kind, entry.hook.mode] += 1
        return counts

    # ---- the table ----------------------------------------------------------------------------

    async def _read_table(self) -> None:
        """The whole table anew: at start, and after messages were lost."""
        bodies = await self._in_thread(lambda: self._hooks.links(devices.DUMP))
        found = {device.ifindex: device for body in bodies if (device := devices.read(body))}
        for index in [index for index in self.table if index not in found]:
            self._forget(index)
        for device in found.values():
            self._seen(device, suspect=True)

    def _readable(self) -> None:
        """Link messages: all that have come, before anything is done about them."""
        while messages := self._events.receive():
            for message in messages:
                device = devices.read(message.body)
                if device is None:
                    continue
                if message.kind == rtnetlink.NEW_LINK:
                    self._seen(device)
                elif message.kind == rtnetlink.DEL_LINK:  # also when it moves to another namespace
                    self._forget(device.ifindex)
        if messages is None:
            self._counters.add("interface_overruns")
            self._lost = True
        self._work()

    def _seen(self, device: Device, *, suspect: bool = False) -> None:
        entry = self.table.get(device.ifindex)
        if entry is None:
            if len(self.table) >= MAX_INTERFACES:
                self._counters.add("interface_table_full")
                self._full = True
                return
            plan = policy.plan(device, self._settings)
            entry = self.table[device.ifindex] = Entry(device, plan, self._settings.mode)
            self.names.set(device.ifindex, device.name)
            self._mark(entry)
            return
        changed = device != entry.device
        self.names.set(device.ifindex, device.name)
        came_up = device.is_up and not entry.device.is_up
        entry.device = device
        if suspect or came_up:
            entry.suspect = True
        if changed or suspect:
            self._mark(entry)

    def _forget(self, index: int) -> None:
        entry = self.table.pop(index, None)
        if entry is None:
            return
        self._urgent.pop(index, None)
        self._later.pop(index, None)
        self._provisional.pop(index, None)
        if entry.retry is not None:
            entry.retry.cancel()
        if entry.counted:
            self._counts.stop(index)
        if entry.hook is not None:
            self._orphans.append(entry.hook)
            entry.hook = None
        self.names.remove(index)
        if self._full:  # there is room now for one that was left out
            self._full = False
            self._lost = True

    def _mark(self, entry: Entry) -> None:
        """The interface is to be looked at; those that are up first, each kind in order of appearance."""
        index = entry.device.ifindex
        if entry.device.is_up:
            self._later.pop(index, None)
            self._urgent[index] = None
        elif index not in self._urgent:
            self._later[index] = None

    # ---- the work -----------------------------------------------------------------------------

    def _work(self) -> asyncio.Task[None] | None:
        """Sees to it that what is marked is done; one task does it all, one interface after the other."""
        if self._working is None and not self._closing and self._busy():
            self._working = asyncio.get_running_loop().create_task(self._run())
            self._working.add_done_callback(self._worked)
        return self._working

    def _busy(self) -> bool:
        return bool(self._lost or self._urgent or self._later or self._orphans or self._provisional)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._working = None
        self._count()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        self._work()  # what was marked between the task's last look and this call had nobody to do it

    async def _run(self) -> None:
        while not self._closing and self._busy():
            if self._lost:
                self._lost = False
                try:
                    await self._read_table()
                except OSError as error:
                    log.warning("cannot read the interfaces, trying again", error=str(error))
                    asyncio.get_running_loop().call_later(RETRY_SECONDS[-1], self._read_again)
            if self._urgent or self._later:
                marked = self._urgent or self._later
                index = next(iter(marked))
                del marked[index]
                await self._settle(self.table[index])
            elif self._orphans:  # not before: whoever waits for a hook waits shorter
                await self._detach(self._orphans.popleft())
            elif self._provisional:
                self._count()
                index = next(iter(self._provisional))
                del self._provisional[index]
                await self._promote(self.table[index])
                await asyncio.sleep(CALM_SECONDS)

    async def _promote(self, entry: Entry) -> None:
        hook = entry.hook
        if hook is None or not hook.provisional:
            return
        try:
            await self._in_thread(lambda: self._hooks.promote(hook, entry.plan))
        except OSError as error:  # the filters do as well
            log.debug("filters stay", interface=entry.device.name, error=str(error))

    def _read_again(self) -> None:
        self._lost = True
        self._work()

    async def _settle(self, entry: Entry) -> None:
        """Brings one interface to what its plan says now."""
        device, hook = entry.device, entry.hook
        plan, mode = policy.plan(device, self._settings), self._settings.mode
        if hook is not None:
            suspect, entry.suspect = entry.suspect, False
            whole = not suspect or await self._in_thread(lambda: self._hooks.is_attached(hook))
            # What "auto" would choose today does not matter (hardware that joined a bridge); a new mode does.
            same = plan.layer == entry.plan.layer and (plan.hook == entry.plan.hook or mode == entry.mode)
            if whole and same and plan.hook != policy.OFF:
                return
            if entry.hook is None:  # it went meanwhile
                return
            entry.hook = None
        entry.mode, entry.plan, entry.error = mode, plan, ""
        if hook is not None:
            await self._detach(hook)  # first: XDP and TC must not both count a packet
        # One that was in another namespace for a moment still has the links it left with.
        for left in [one for one in self._orphans if one.index == device.ifindex]:
            self._orphans.remove(left)
            await self._detach(left)
        if plan.hook == policy.OFF or self.table.get(device.ifindex) is not entry:
            return
        try:
            if not entry.counted:
                self._counts.start(device.ifindex)
                entry.counted = True
            hurry = len(self._urgent) + len(self._later) >= HURRY_ABOVE
            made = await self._in_thread(lambda: self._hooks.attach(device.ifindex, plan, hurry=hurry))
        except (OSError, KeyError) as error:
            self._failed(entry, error)
            return
        if self.table.get(device.ifindex) is not entry:  # it went, and another may have its index by now
            self._orphans.append(made)
            return
        entry.hook = made
        entry.attempts = 0
        if made.provisional:
            self._provisional[device.ifindex] = None
        log.debug("attached", interface=device.name, hook=made.kind, mode=made.mode, reason=made.reason)

    def _failed(self, entry: Entry, error: OSError | KeyError) -> None:
        gone = isinstance(error, OSError) and error.errno in (errno.ENODEV, errno.ENXIO)
        if gone or self.table.get(entry.device.ifindex) is not entry:
            return  # RTM_DELLINK is on its way
        if isinstance(error, KeyError):
            entry.error = f"the program {error.args[0]} is not loaded"
            return
        entry.error = str(error.strerror or error)
        self._counters.add("interface_failures")
        if entry.attempts == 0:
            log.warning("not attached", interface=entry.device.name, error=entry.error)
        delay = RETRY_SECONDS[min(entry.attempts, len(RETRY_SECONDS) - 1)]
        entry.attempts += 1
        if entry.retry is not None:
            entry.retry.cancel()
        entry.retry = asyncio.get_running_loop().call_later(delay, self._again, entry)

    def _again(self, entry: Entry) -> None:
        if self.table.get(entry.device.ifindex) is entry:
            self._mark(entry)
            self._work()

    async def _detach(self, hook: Hook) -> None:
        await self._in_thread(lambda: self._hooks.detach(hook))

    def _count(self) -> None:
        for (hook, mode), count in self._tally().items():
            self._counters.set(f"interfaces_{hook}_{mode}", count)

    async def _in_thread(self, do: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do)
