"""The adaptive polling loop: ring -> engine -> output, busy under load, asleep when idle.

Budget 64 records an iteration. A full iteration is followed by the next without a system call (a *busy
poll*); else the output goes out and the worker rests (``rests``), and after three empty passes it arms the
wake-up flag and blocks until a record, a message, or nothing comes (a *sleep cycle*). Between those the eBPF
programs ask for no wake-ups at all, which is what a traced program pays most for, or for one when much waits.
Under load exchanges leave every ``HAND_OUT_EVERY`` busy polls, and those that wait for their flow, and
handshakes that wait for their facts, are looked after. Else rests and sleeps are cut short for what waits.

The order "set armed, then poll()" is what loses no wake-up: the program reserves its record before it
reads the flag, and poll() looks at the ring after the flag is set.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Final

from spliffd import ipc
from spliffd.config import Access
from spliffd.correlation.engine import Engine
from spliffd.correlation.flows import Kernel
from spliffd.correlation.retry import NEVER
from spliffd.counters import Region
from spliffd.kernel.ring import Ring
from spliffd.kernel.unwanted import Unwanted
from spliffd.protocols.masking import Masker
from spliffd.worker.flushes import Flushes
from spliffd.worker.kernel_losses import KernelLosses
from spliffd.worker.output import Output
from spliffd.worker.receiver import FrameMaker
from spliffd.worker.rests import REST_SECONDS, Rests, much
from spliffd.worker.tables import Tables
from spliffd.worker.waits import Waits
from spliffd.worker.who import Who

BUDGET: Final = 64
"""Records an iteration, as in the kernel's NAPI: messages and timers wait for one batch at most."""

EMPTY_PASSES: Final = 3
"""Rests without a record before the worker sleeps; a keep-alive client answers within one."""

HAND_OUT_EVERY: Final = 4
"""Busy polls between two times that what is finished leaves, 256 records or 3 ms: what is done to many at
once costs less. Then what waits is looked after."""

BUSY_CHECK: Final = 32
"""Full iterations between looks at the links: 2,048 records, about 10 ms."""

DRAIN_SECONDS: Final = 2.0
"""At shutdown: how long what is still in the ring is worked off."""

FIRST_DEMAND_SECONDS: Final = 1.0
"""How long a new worker leaves the ring alone until it knows who watches: the link comes 10 ms after Ready,
unless the api is being restarted too, and then there is nobody who watches."""

LISTEN_SECONDS: Final = 0.01
LISTEN_RING_SHARE: Final = 4
"""The facts of a process are waited for in slices, and only while less than a quarter of the ring is full:
waiting must lose nothing."""

_CONTROL_BYTES: Final = 1 << 20


class Loop:
    """One worker's main loop. ``links`` come from the supervisor over ``control``."""

    def __init__(
        self,
        number: int,
        ring: Ring,
        armed: memoryview,
        control: socket.socket,
        counters: Region,
        kernel: Region,
        tables: Tables,
        looks: Kernel,
        owners_entered: Callable[[], None],
        unwanted: Unwanted,
    ) -> None:
        self._number = number
        self._ring = ring
        self._armed = armed
        self._control = control
        self._counters = counters
        self._kernel = kernel
        self._tables = tables
        self._control_lost = kernel.get("ring_full_control")
        self._new_rings: list[Ring] = []
        """Rings that take the place of the present one, one after the other, when it is empty."""
        self._rings_read = 0
        self._rests = Rests()
        self._flushes = Flushes()
        self._output = Output(counters)
        # Until the supervisor says how: its list and a key that nobody knows, so that nothing goes out bare.
        access = Access()
        masker = Masker(os.urandom(ipc.MASK_KEY_BYTES), access.mask_headers, access.mask_fields)
        self._who = Who(self._ask, self._listen)
        self._maker = FrameMaker(self._output, counters, number, self._who.fill, masker)
        self._owners_entered = owners_entered
        self._engine = Engine(self._maker, counters, time.monotonic_ns(), looks)
        self._engine.unwanted.tell_until = unwanted.until
        self._engine.unwanted.tell_streams = unwanted.streams
        self._running = True
        self._demanded = False
        self._waits = Waits(control, ring.fd)
        self._kernel_losses = KernelLosses(kernel)

    def run(self) -> None:
        """Until the supervisor says stop, or is gone."""
        counters = self._counters
        words = counters.words
        n_busy, n_sleep = counters.index("busy_polls"), counters.index("sleep_cycles")
        n_records, n_passes = counters.index("records"), counters.index("iterations")
        ring, engine, output = self._ring, self._engine, self._output
        waiting, around, shaken = engine.waiting, engine.around, engine.handshakes.waiting
        empty = full = 0
        self._await_first_demand()
        self._clock()
        while self._running:
            positions = ring.drain(BUDGET)
            words[n_passes] += 1
            if positions:
                words[n_records] += len(positions)
                busy = len(positions) == BUDGET
                engine.handle(ring.data, positions)
                ring.release()
                if not busy or full % HAND_OUT_EVERY == 0:
                    engine.hand_out(time.monotonic_ns(), busy=busy)
                if busy:
                    words[n_busy] += 1
                    full += 1
                    if full % HAND_OUT_EVERY == 0 and (waiting.busy or shaken):
                        engine.retry(time.monotonic_ns())
                    if full % BUSY_CHECK == 0:
                        self._links(self._waits.for_messages(0))
                        self._clock()
                        self._tell_losses()
                        self._tell_nameless()
                        around.look(time.monotonic_ns())
                        self._flushed()
                    empty = 0
                    continue
                empty = 0
            elif self._new_rings:
                ring = self._next_ring()
                continue
            else:
                ring.release()  # records that were discarded count as consumed
                engine.hand_out(time.monotonic_ns())
                empty += 1
                self._find_ended()
            self._tell_losses()
            self._tell_nameless()
            if waiting.busy or shaken:
                engine.retry(time.monotonic_ns())
            around.look(time.monotonic_ns())
            if output.pending():
                output.flush()
            self._flushed()
            if empty < EMPTY_PASSES:
                self._rest()
            else:
                words[n_sleep] += 1
                self._armed[self._number] = 1
                self._links(self._waits.for_any(self._until_due(None)))
                self._armed[self._number] = 0
                empty = 0
            self._clock()
        self._drain()

    def _rest(self) -> None:
        """Leaves the ring alone for a while; a long rest ends when much comes."""
        ring = self._ring
        seconds = self._rests.seconds(ring.drained(), ring.size, watched=self._maker.demand.watchers > 0)
        due = self._until_due(seconds * 1000)
        if seconds <= REST_SECONDS:
            self._links(self._waits.for_messages(due))
            return
        self._armed[self._number] = much(ring.size)
        self._links(self._waits.for_much(due))
        self._armed[self._number] = 0

    def _until_due(self, limit: float | None) -> float | None:
        """Milliseconds until something wants a look, ``limit`` at most; None: for ever."""
        due = self._engine.next_ns()
        if due == NEVER:
            return limit
        left = max(0.0, (due - time.monotonic_ns()) / 1_000_000)
        return left if limit is None else min(limit, left)

    def _await_first_demand(self) -> None:
        """What came into the ring while there was no worker belongs to those who watch already."""
        deadline = time.monotonic() + FIRST_DEMAND_SECONDS
        while self._running and not self._demanded and (left := deadline - time.monotonic()) > 0:
            self._links(self._waits.for_messages(left * 1000))

    def _next_ring(self) -> Ring:
        """The present ring is empty and gets nothing more: closes it, goes on with the next."""
        old, ring = self._ring, self._new_rings.pop(0)
        self._waits.ring(ring.fd, old.fd)
        old.close()
        os.close(old.fd)
        self._ring = ring
        self._rings_read += 1
        return ring

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            positions = self._ring.drain(BUDGET)
            if not positions and self._new_rings:
                self._next_ring()
                continue
            if not positions:
                break
            self._engine.handle(self._ring.data, positions)
            self._ring.release()
            self._engine.hand_out(time.monotonic_ns())
        self._engine.close_all(time.monotonic_ns())
        self._tell_losses()
        self._output.flush()

    def _clock(self) -> None:
        """Wall time may be set while the daemon runs: offsets are taken anew with every wake-up."""
        now = time.time_ns()
        self._maker.wall_offset_ns = now - time.monotonic_ns()
        self._maker.boot_offset_ns = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _tell_losses(self) -> None:
        """Worker 0 speaks for all shards."""
        if not self._number:
            for loss in self._kernel_losses.look():
                self._output.lose(*loss)

    def _find_ended(self) -> None:
        """Records that end connections were lost: with the ring empty, the tables know which are over."""
        lost = self._kernel.get("ring_full_control")
        if lost != self._control_lost:
            self._control_lost = lost
            ended = self._engine.close_over(self._tables.is_over, time.monotonic_ns())
            self._counters.add("connections_reconciled", ended)

    def _links(self, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            if fd == self._control.fileno():
                self._from_supervisor()
            elif self._output.link is not None and fd == self._output.link.fileno():
                self._from_api()

    def _from_supervisor(self) -> None:
        while self._running:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _CONTROL_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # the supervisor is gone, and with it every probe
                self._running = False
                return
            message = ipc.decode_to_child(data)
            match message:
                case ipc.Ping(number):
                    self._control.send(ipc.encode(ipc.Pong(number)))
                case ipc.Stop():
                    self._running = False
                case ipc.Link():
                    self._new_link(socket.socket(fileno=fds[0]))
                case ipc.ProcessFacts():
                    facts = self._engine.facts_of(message.pid, message.start_ns)
                    self._who.learn(message, self._maker.masker, facts)
                case ipc.NewRing(size):
                    self._new_rings.append(Ring(fds[0], size))
                case ipc.Interfaces(names):
                    self._engine.interfaces(names)
                case ipc.Masking():
                    masker = Masker(message.key, message.headers, message.fields)
                    self._maker.mask_with(masker, whole_bodies=message.bodies == "all")
                case ipc.OwnersEntered():
                    self._owners_entered()
                case ipc.Watched():
                    self._output.acknowledge()
                case _:
                    pass

    def _new_link(self, link: socket.socket) -> None:
        old = self._output.link
        if old is not None:
            self._waits.remove(old)
            self._output.close()
            self._flushes.forget()
            self._counters.add("link_restarts")
        link.setblocking(False)
        self._output.link = link
        self._waits.add(link)

    def _from_api(self) -> None:
        link = self._output.link
        while link is not None:
            try:
                data = link.recv(_CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._waits.remove(link)
                self._output.close()
                self._demand(ipc.Demand(0, bodies=False, body_limit=0, handshakes=False, messages=False))
                return
            message = ipc.decode_from_api(data)
            if isinstance(message, ipc.Flush):
                self._flush(message.number)
            else:
                if self._demanded and message.watchers and not self._maker.demand.watchers:
                    self._catch_up()
                self._demand(message)
                self._tell_watching()

    def _catch_up(self) -> None:
        """What came before anybody watched is none of the first watcher's: it leaves before Watched does."""
        ring, end = self._ring, self._ring.produced()
        while ring.drained() < end and (positions := ring.drain(BUDGET)):
            self._counters.add("records", len(positions))
            self._engine.handle(ring.data, positions)
            ring.release()
        self._engine.hand_out(time.monotonic_ns())
        self._output.flush()

    def _flush(self, number: int) -> None:
        newest = (self._new_rings or [self._ring])[-1]
        self._flushes.ask(number, (self._rings_read + len(self._new_rings), newest.produced()))

    def _flushed(self) -> None:
        """Tells the api when everything that it asked for has left."""
        if self._flushes:
            waiting = bool(self._engine.waiting.busy or self._engine.handshakes.waiting)
            place = (self._rings_read, self._ring.drained())
            if number := self._flushes.answer(place, time.monotonic_ns(), waiting=waiting):
                self._output.flushed(number)

    def _tell_watching(self) -> None:
        """The supervisor fits capture to it and answers Watched, which the api waits for."""
        demand = self._maker.demand
        try:
            self._control.send(
                ipc.encode(ipc.Watching(demand.watchers, bodies=demand.bodies, whom=demand.whom))
            )
        except BlockingIOError:
            self._output.acknowledge()  # the supervisor is busy: capture goes on as it is

    def _tell_nameless(self) -> None:
        """The supervisor keeps the ledger of which process's connections are seen."""
        if nameless := self._engine.nameless:
            ended = [(*process, count) for process, count in nameless.items()]
            with contextlib.suppress(BlockingIOError):  # it is busy: the next pass tells
                self._control.send(ipc.encode(ipc.Nameless(ended)))
                nameless.clear()

    def _demand(self, demand: ipc.Demand) -> None:
        self._demanded = True
        self._maker.demands(demand)
        self._engine.wants_chunks = bool(demand.watchers and demand.messages)
        self._engine.around.wanted = bool(demand.watchers and demand.progress)
        self._engine.watch_bodies()

    def _ask(self, question: ipc.WhoIs) -> bool:
        try:
            self._control.send(ipc.encode(question))
        except BlockingIOError:
            return False  # the supervisor is busy: the next connection asks again
        return True

    def _listen(self) -> bool:
        """Hears the supervisor for a slice of time; False when there is no time for more."""
        if self._waits.for_control(LISTEN_SECONDS * 1000):
            self._from_supervisor()
            return self._running
        return self._ring.pending() <= self._ring.size // LISTEN_RING_SHARE
