"""What watchers cost: the api alone at 5,000 exchanges a second, and the whole daemon under a real load.

Without watchers, and with 1, 4 and 16 of them. First, the api is the real process; this one stands for
supervisor and worker, a process of its own for the watchers. Exchanges are some 1.3 KiB with twenty headers,
as a worker serialises them. Each watcher has another filter: a third by pid, a third by status and path, a
third an expression that needs the message. Memory history is on, as by default. The watchers' own CPU is not
the daemon's and is not counted. The whole daemon under a real load of the same rate is ``bench.steady``.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import steady
from bench.processes import cpu_ns
from bench.report import Figure
from spliffd import ipc
from spliffd.config import History
from spliffd.pb import spliff_pb2 as pb
from tests.support.batches import as_sent
from tests.support.lab import REPOSITORY, say

RATE = 5_000
SECONDS = 3.0
BATCH = 64
WATCHERS = (0, 1, 4, 16)
EXPRESSIONS = (
    "duration_ns > 1ms && response.status < 500",
    "request.path.matches('^/api/v[0-9]+/') || process.pid == 7",
    "'x-request-id' in request.headers",
    "response.body_size > 1K && completeness.state == 'complete'",
    "request.authority.glob('*.example.com')",
)


def filters(count: int) -> list[pb.Filter]:
    """Another filter for each watcher, each of which lets a part through."""
    made = []
    for n in range(count):
        if n % 3 == 0:
            made.append(pb.Filter(pids=[n % 11, (n + 1) % 11, 3]))
        elif n % 3 == 1:
            made.append(pb.Filter(statuses=[pb.StatusRange(first=200, last=399)], paths=[f"*{n}*", "/api/*"]))
        else:
            made.append(pb.Filter(expression=EXPRESSIONS[n // 3 % len(EXPRESSIONS)]))
    return made


def frames() -> list[ipc.Frame]:
    """A second's worth of exchanges."""
    made = []
    for n in range(1009):
        headers = [pb.Header(name=f"x-header-{k}", value=f"value-{n}-{k}" * 2) for k in range(20)]
        message = pb.Exchange(
            start_time_ns=1, end_time_ns=2, duration_ns=n * 10_000, protocol="http1",
            process=pb.Process(pid=n % 11, comm="curl", exe="/usr/bin/curl", uid=1000, user="user"),
            connection=pb.Connection(role="client", remote=pb.Endpoint(address="192.0.2.1", port=443)),
            tls=pb.Tls(library="openssl", version="TLSv1.3", sni="api.example.com"),
            request=pb.Request(method="GET", authority="api.example.com", path=f"/api/v{n % 3}/users/{n}",
                               headers=headers),
            response=pb.Response(status=(200, 200, 404, 500)[n % 4], body_size=n * 7),
            completeness=pb.Completeness(state="complete"),
        )  # fmt: skip
        request, process = message.request, message.process
        told = ipc.Summary(
            process.pid, 1, 1000, "curl", process.exe, "user", "", "", "openssl", 50000, 443,
            "192.0.2.1", "api.example.com", [], "http1", request.authority, request.path, "GET",
            message.response.status,
        )  # fmt: skip
        made.append(ipc.Frame(ipc.EXCHANGE, 0, ipc.encode(told), message.SerializeToString()))
    return made


@dataclass
class Watchers:
    """Watchers in a process of their own, which keeps what it reads as bytes until it is told to count."""

    process: multiprocessing.process.BaseProcess
    ready: multiprocessing.synchronize.Barrier
    done: multiprocessing.synchronize.Event
    seen: Any
    """Exchanges of each watcher, and at the end the losses that all were told of."""

    @classmethod
    def start(cls, path: Path, wanted: list[pb.Filter]) -> Watchers:
        """One watcher for each filter; ``ready`` is passed once all of them have started."""
        context = multiprocessing.get_context("spawn")
        ready, done, seen = context.Barrier(2), context.Event(), context.Array("Q", len(wanted) + 1)
        texts = [one.SerializeToString() for one in wanted]
        process = context.Process(target=read, args=(str(path), texts, ready, done, seen), daemon=True)
        process.start()
        return cls(process, ready, done, seen)

    def stop(self) -> tuple[int, int]:
        """Ends them; (exchanges delivered, losses told)."""
        self.done.set()
        self.process.join()
        if self.process.exitcode:
            raise RuntimeError(f"the watchers ended with {self.process.exitcode}")
        *exchanges, losses = self.seen
        return sum(exchanges), losses


def read(
    path: str,
    wanted: list[bytes],
    ready: multiprocessing.synchronize.Barrier,
    done: multiprocessing.synchronize.Event,
    seen: Any,
) -> None:
    """All watchers. Messages are taken apart after the measurement: they share the daemon's processors."""
    import asyncio

    import grpc.aio

    kept: list[list[bytes]] = [[] for _ in wanted]

    async def one(n: int, text: bytes, started: asyncio.Event) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:
            watch = channel.unary_stream(
                "/spliff.v1.Spliff/Watch", request_serializer=pb.WatchRequest.SerializeToString
            )
            async for message in watch(pb.WatchRequest(filter=pb.Filter.FromString(text))):
                started.set()
                kept[n].append(message)

    async def everybody() -> None:
        events = [asyncio.Event() for _ in wanted]
        tasks = [asyncio.ensure_future(one(n, text, events[n])) for n, text in enumerate(wanted)]
        for event in events:
            await event.wait()
        await asyncio.to_thread(ready.wait)
        await asyncio.to_thread(done.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(everybody())
    for n, messages in enumerate(kept):
        for message in messages:
            for item in pb.WatchResponse.FromString(message).items:
                seen[n] += item.HasField("exchange")
                seen[len(wanted)] += item.loss.count


def run(count: int, batches: list[bytes]) -> tuple[float, int]:
    """(us of the api's CPU for each exchange, exchanges delivered) with so many watchers."""
    sys.path.insert(0, str(REPOSITORY / "tests/unit/api"))
    from api_harness import Api

    folder = Path(tempfile.mkdtemp(prefix="spliff-"))
    folder.chmod(0o755)
    api = Api(folder, history=History())
    try:
        assert api.hear() == ipc.Ready()
        worker = api.link()
        watchers = Watchers.start(api.path, filters(count)) if count else None
        if watchers:
            worker.sock.settimeout(1.0)
            while watchers.ready.n_waiting == 0:
                try:
                    worker.demand()
                except TimeoutError:
                    continue
            watchers.ready.wait()
        began, cpu, sent = time.monotonic(), cpu_ns([api.process.pid]), 0
        while (elapsed := time.monotonic() - began) < SECONDS:
            while sent < elapsed * RATE:
                worker.sock.send(batches[sent // BATCH % len(batches)])
                sent += BATCH
            time.sleep(0.002)
        time.sleep(0.3)
        spent = cpu_ns([api.process.pid]) - cpu
        delivered = watchers.stop()[0] if watchers else 0
        return spent / sent / 1000, delivered
    finally:
        api.process.kill()
        api.finish()
        api.close()
        shutil.rmtree(folder)


def measure() -> list[Figure]:
    """Each number of watchers, and what one more costs."""
    part = f"watchers: the api's CPU at {RATE:,} exchanges/s, each watcher with another filter"
    every = frames()
    batches = [ipc.encode(as_sent(every[at : at + BATCH])) for at in range(0, len(every) - BATCH, BATCH)]
    figures, cost = [], {}
    for count in WATCHERS:
        cost[count], delivered = run(count, batches)
        say(f"   {count} watchers: {cost[count]:.1f} us for each exchange, {delivered:,} delivered")
        note = f"{cost[count] * RATE / 10_000:.1f} % of a core, {delivered / SECONDS:,.0f} delivered a second"
        figures.append(Figure(part, f"{count} watchers", cost[count], "us/exchange", note=note))
    added = (cost[16] - cost[1]) / 15
    note = f"{added * RATE / 10_000:.2f} % of a core"
    figures.append(Figure(part, "one more watcher", added, "us/exchange", note=note))
    return figures + steady.measure()
