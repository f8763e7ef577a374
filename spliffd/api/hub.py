"""Where frames meet watchers: numbering, distribution, and what all watchers together want.

Takes batches from the workers' links and watchers from the service; gives every watcher every frame,
in one order with one id for each exchange, and tells every worker the sum of all wishes whenever it
changes. Does no I/O of its own beyond the links, and keeps nothing: what no watcher queued is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from spliffd import ipc
from spliffd.api import whom
from spliffd.api.delivery import Delivery
from spliffd.api.links import DataLink
from spliffd.api.subscribers import Subscriber
from spliffd.api.wishes import Wishes
from spliffd.counters import Region
from spliffd.pb import spliff_pb2 as pb

log = logging.getLogger("spliffd.api")

MAX_SUBSCRIBERS = 64
"""Watchers at a time: with the default queue they can hold 1 GiB at worst; a 65th is refused."""

ACKNOWLEDGE_SECONDS = 1.0
"""How long a new watcher waits for the workers to see its wishes before it is started anyway: a worker
that takes longer is hung or being restarted, and its restart is told as a loss."""


class Hub:
    """Watchers, links and ids of one api process.

    ``workers`` is how many workers the configuration asks for; ``region`` the api's counters.
    """

    def __init__(self, region: Region, workers: int) -> None:
        self.epoch = time.time_ns()
        """Start of the ids: they begin at 1 when this process starts."""
        self.next_id = 1
        self.subscribers: list[Subscriber] = []
        self._region = region
        self._workers = workers
        self._links: dict[int, DataLink] = {}
        self._demand = ipc.Demand(watchers=0, bodies=False, body_limit=0, handshakes=False, messages=False)
        self._changed: set[asyncio.Future[None]] = set()
        # A gauge, and it may still hold the number of a process that died.
        region.set("subscribers", 0)

    # ---- links ---------------------------------------------------------------------------------

    def connect(self, worker: int, make_link: Callable[[Hub], DataLink]) -> None:
        """A new link to ``worker``; one that was there before is read to its end, and its loss told."""
        old = self._links.get(worker)
        if old is not None:
            old.drain()
            old.close()
            log.warning("worker %d was restarted: what it held is lost", worker)
            now = time.time_ns()
            self.lose(pb.Loss(stage="worker", reason="restart", count=1, first_time_ns=now, last_time_ns=now))
        link = make_link(self)
        self._links[worker] = link
        link.demand(self._demand)
        self.notify()

    def drain(self) -> None:
        """Reads what the workers have sent so far."""
        for link in self._links.values():
            link.drain()

    def close(self) -> None:
        """Closes all links and lets every watcher's stream end after what waits."""
        for link in self._links.values():
            link.close()
        for subscriber in self.subscribers:
            subscriber.close()

    def notify(self) -> None:
        """A link, its acknowledgement, or the list of watchers changed."""
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)

    async def acknowledged(self) -> bool:
        """Waits until every worker has seen the demand; False if that took too long."""
        try:
            async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                while not self._all_acknowledged():
                    await self._change()
        except TimeoutError:
            log.warning("a watcher was started before every worker had seen what it wants")
            return False
        return True

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(waiter)
        try:
            await waiter
        finally:
            self._changed.discard(waiter)

    def _all_acknowledged(self) -> bool:
        links = self._links.values()
        return len(links) >= self._workers and all(link.acknowledged for link in links)

    # ---- watchers ------------------------------------------------------------------------------

    def subscribe(self, wishes: Wishes) -> Subscriber | None:
        """Registers a watcher and tells the workers; None when there are too many."""
        if len(self.subscribers) >= MAX_SUBSCRIBERS:
            return None
        subscriber = Subscriber(wishes, self._region)
        self.subscribers.append(subscriber)
        self._region.add("subscribers_total")
        self._update()
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forgets a watcher and tells the workers."""
        self.subscribers.remove(subscriber)
        self._update()
        self.notify()

    async def empty(self) -> None:
        """Waits until the last watcher has left."""
        while self.subscribers:
            await self._change()

    def _update(self) -> None:
        self._region.set("subscribers", len(self.subscribers))
        wishes = [subscriber.wishes for subscriber in self.subscribers]
        limits = [one.body_limit for one in wishes if one.bodies]
        demand = ipc.Demand(
            watchers=len(wishes),
            bodies=bool(limits),
            body_limit=0 if 0 in limits else max(limits, default=0),
            handshakes=any(one.handshakes for one in wishes),
            messages=any(one.messages for one in wishes),
            reveal=any(one.reveal for one in wishes),
            whom=whom.union([one.whom for one in wishes]),
            progress=any(one.progress for one in wishes),
        )
        if demand != self._demand:
            self._demand = demand
            for link in self._links.values():
                link.demand(demand)

    # ---- frames --------------------------------------------------------------------------------

    def deliver(self, frames: ipc.Batch) -> None:
        """Gives every frame to every watcher."""
        self._region.add("frames_received", len(frames))
        subscribers = self.subscribers
        number = self.next_id
        for frame in frames:
            if frame.kind == ipc.LOSS:
                self._deliver_loss(frame)
                continue
            try:
                if frame.kind == ipc.EXCHANGE:
                    delivery = Delivery(frame, number)
                    number += 1
                else:
                    delivery = Delivery(frame)
            except ValueError as error:
                log.warning("a worker sent a broken frame: %s", error)
                self._lose_bad(len(frame.public))
                continue
            for subscriber in subscribers:
                subscriber.offer(delivery)
        self.next_id = number

    def lose(self, loss: pb.Loss) -> None:
        """Tells every watcher of a loss."""
        for subscriber in self.subscribers:
            subscriber.lose(loss)

    def bad_datagram(self, size: int) -> None:
        """A worker sent something that is no batch."""
        log.error("a worker sent %d bytes that are no batch; is it another version of spliffd?", size)
        self._lose_bad(size)

    def _deliver_loss(self, frame: ipc.Frame) -> None:
        try:
            self.lose(pb.Loss.FromString(frame.public))
        except DecodeError:
            self._lose_bad(len(frame.public))

    def _lose_bad(self, size: int) -> None:
        now = time.time_ns()
        self.lose(
            pb.Loss(stage="api", reason="bad_frame", count=1, bytes=size, first_time_ns=now, last_time_ns=now)
        )
