"""Where frames meet watchers: numbering, distribution, and what all watchers together want.

Takes batches from the workers' links and watchers from the service; gives every watcher every frame,
in one order with one id for each exchange, keeps it in history, and tells every worker the sum of all wishes
whenever it changes. Does no I/O of its own beyond the links.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError

from spliffd import ipc
from spliffd.api import whom
from spliffd.api.delivery import Delivery
from spliffd.api.history import History
from spliffd.api.links import DataLink
from spliffd.api.subscribers import Subscriber
from spliffd.api.wishes import Wishes
from spliffd.counters import Region
from spliffd.entries import Entries
from spliffd.pb import spliff_pb2 as pb

log = logging.getLogger("spliffd.api")

MAX_OF_OWNER = 8
"""Watchers of one user who may know of own processes only: a shell for each of them, and no room for more."""

ACKNOWLEDGE_SECONDS = 1.0
"""How long a new watcher waits for the workers to see its wishes before it is started anyway: a worker
that takes longer is hung or being restarted, and its restart is told as a loss."""

FLUSH_SECONDS = 10.0
"""How long the workers may take to work off what their rings held: the largest ring, full, on a machine that
gives a worker a tenth of a processor."""


class Hub:
    """Watchers, links and ids of one api process.

    ``workers`` is how many workers the configuration asks for; ``region`` the api's counters; ``history``
    keeps what was delivered. With ``records`` that is done also while nobody watches; ``numbers_owners``:
    exchanges of each user are numbered apart as well. ``most`` is how many watchers there may be at a time,
    of everything and of own processes.
    """

    def __init__(
        self,
        region: Region,
        workers: int,
        history: History,
        *,
        records: bool = False,
        numbers_owners: bool = False,
        most: tuple[int, int] = (64, 64),
    ) -> None:
        self.epoch = history.epoch
        """Start of the ids: they begin at 1 when this process starts."""
        self.history = history
        self._records = records and history.enabled
        self._numbers_owners = numbers_owners
        self._own: dict[int, int] = {}
        self.next_id = 1
        self.subscribers: list[Subscriber] = []
        self._region = region
        self._workers = workers
        self._links: dict[int, DataLink] = {}
        self._demand = ipc.Demand(watchers=0, bodies=False, body_limit=0, handshakes=False, messages=False)
        self._changed: set[asyncio.Future[None]] = set()
        self._readers: list[int | None] = []
        """Owners of watchers of history alone, who are not subscribed."""
        self._most = most
        self._update()
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

    async def flushed(self) -> bool:
        """Waits until everything captured so far was delivered; False if that took too long.

        A worker that is being restarted is waited for: what was captured is in its ring.
        """
        asked: dict[int, tuple[DataLink, int]] = {}
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while not self._all_flushed(asked):
                    await self._change()
        except TimeoutError:
            return False
        return True

    def _all_flushed(self, asked: dict[int, tuple[DataLink, int]]) -> bool:
        for worker, link in self._links.items():
            if link.open and (worker not in asked or asked[worker][0] is not link):
                asked[worker] = link, link.flush()
        return len(asked) >= self._workers and all(
            link.open and link.flushed >= number for link, number in asked.values()
        )

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

    def has_room(self, owner: int | None) -> bool:
        """Whether one more watcher may come. Those of own processes never take the others' room."""
        owners = [*self._readers, *(subscriber.wishes.owner for subscriber in self.subscribers)]
        if owner is None:
            return owners.count(None) < self._most[0]
        return owners.count(owner) < MAX_OF_OWNER and len(owners) - owners.count(None) < self._most[1]

    @contextlib.contextmanager
    def reading(self, owner: int | None) -> Iterator[None]:
        """Counts a watcher of history alone."""
        self._readers.append(owner)
        try:
            yield
        finally:
            self._readers.remove(owner)

    def subscribe(self, wishes: Wishes) -> Subscriber:
        """Registers a watcher, for whom there is room, and tells the workers."""
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
        if self._records and self.history.body_limit:
            limits.append(self.history.body_limit)
        demand = ipc.Demand(
            watchers=len(wishes),
            bodies=bool(limits),
            body_limit=0 if 0 in limits else max(limits, default=0),
            handshakes=any(one.handshakes for one in wishes),
            messages=any(one.messages for one in wishes),
            reveal=any(one.reveal for one in wishes),
            whom=whom.union([one.whom for one in wishes]),
            progress=any(one.progress for one in wishes),
            history=self._records,
        )
        if demand != self._demand:
            self._demand = demand
            for link in self._links.values():
                link.demand(demand)

    # ---- frames --------------------------------------------------------------------------------

    def deliver(self, batch: ipc.Batch) -> int:
        """Gives everything to every watcher; returns how much it was."""
        now = time.time_ns()
        count = 0
        for one in batch:
            if isinstance(one, ipc.Exchanges):
                count += self._alike(one, now)
                continue
            count += 1
            if one.kind == ipc.EXCHANGE and one.summary:
                self._exchange(one, now)
            elif one.kind == ipc.LOSS:
                self._deliver_loss(one)
            else:
                self._other(one)
        self._region.add("frames_received", count)
        self.history.flush()
        return count

    def _alike(self, told: ipc.Exchanges, now: int) -> int:
        """Numbers, keeps and hands out exchanges that every watcher gets alike.

        Whoever wants them as they are is given them together.
        """
        number = self.next_id
        try:
            entries = Entries(told, number)
        except ValueError as error:
            log.warning("a worker sent broken exchanges: %s", error)
            self._lose_bad(len(told.entries))
            return 0
        self.next_id += len(entries)
        owns = [self._own_number(uid) for uid in entries.uids] if self._numbers_owners else None
        self.history.add_entries(entries, owns, now)
        single = [subscriber for subscriber in self.subscribers if not subscriber.take(entries)]
        if single:
            for index in range(len(entries)):
                own = owns[index] if owns is not None else 0
                delivery = Delivery(entries.frame(index), number + index, own)
                for subscriber in single:
                    subscriber.offer(delivery)
        entries.forget()  # history keeps them
        return len(entries)

    def _exchange(self, frame: ipc.Frame, now: int) -> None:
        """The same for one of which a watcher may get more than another."""
        number = self.next_id
        self.next_id += 1
        own = self._own_number(frame.uid) if self._numbers_owners else 0
        self.history.add(frame, number, own, now)
        if self.subscribers:
            delivery = Delivery(frame, number, own)
            for subscriber in self.subscribers:
                subscriber.offer(delivery)

    def _other(self, frame: ipc.Frame) -> None:
        try:
            delivery = Delivery(frame)
        except ValueError as error:
            log.warning("a worker sent a broken frame: %s", error)
            self._lose_bad(len(frame.public))
            return
        for subscriber in self.subscribers:
            subscriber.offer(delivery)

    def own_next(self, uid: int) -> int:
        """The number that the next exchange of this user will have among them."""
        return self._own.get(uid, 0) + 1

    def _own_number(self, uid: int) -> int:
        number = self._own[uid] = self._own.get(uid, 0) + 1
        return number

    def lose(self, loss: pb.Loss) -> None:
        """Tells every watcher of a loss, and those who come later."""
        self.history.add_loss(loss)
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
