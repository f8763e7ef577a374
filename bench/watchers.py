"""What watchers cost: the api alone at 5,000 exchanges a second, and the whole daemon under a real load.

Without watchers, and with 1, 4 and 16 of them. First, the api is the real process; this one stands for
supervisor and worker, a process of its own for the watchers. Exchanges are some 1.3 KiB with twenty headers,
as a worker serialises them. Each watcher has another filter: a third by pid, a third by status and path, a
third an expression that needs the message. Memory history is on, as by default. Then everything is real:
supervisor, worker and api, with keep-alive clients of nginx at a steady rate that leaves room for watchers
on a small machine. The watchers' own CPU is not the daemon's and is not counted.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.latency import CLIENT
from bench.processes import cpu_ns
from bench.report import Figure
from bench.watched import Watched
from bench.web import Web
from spliffd import ipc
from spliffd.config import History
from spliffd.pb import spliff_pb2 as pb
from tests.support.lab import PYTHON, REPOSITORY, Lab, say

RATE = 5_000
SECONDS = 3.0
CLIENTS, CLIENT_RATE = 2, 700
"""Of the real load: two processors are shared by nginx, its clients, the daemon and the watchers."""
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


def read(path: str, wanted: list[bytes], ready: multiprocessing.synchronize.Barrier, seen: object) -> None:
    """All watchers, in a process of their own."""
    import asyncio

    import grpc.aio

    from spliffd.pb import spliff_pb2_grpc

    counts = seen

    async def one(n: int, text: bytes, started: asyncio.Event) -> None:
        async with grpc.aio.insecure_channel(
            f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            request = pb.WatchRequest(filter=pb.Filter.FromString(text))
            async for response in spliff_pb2_grpc.SpliffStub(channel).Watch(request):
                started.set()
                counts[n] += sum(item.HasField("exchange") for item in response.items)

    async def everybody() -> None:
        events = [asyncio.Event() for _ in wanted]
        tasks = [asyncio.ensure_future(one(n, text, events[n])) for n, text in enumerate(wanted)]
        for event in events:
            await event.wait()
        await asyncio.to_thread(ready.wait)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(everybody())


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
        context = multiprocessing.get_context("spawn")
        ready, seen = context.Barrier(2), context.Array("Q", max(1, count))
        texts = [wanted.SerializeToString() for wanted in filters(count)]
        watchers = context.Process(target=read, args=(str(api.path), texts, ready, seen), daemon=True)
        if count:
            watchers.start()
            worker.sock.settimeout(1.0)
            while ready.n_waiting == 0:
                try:
                    worker.demand()
                except TimeoutError:
                    continue
            ready.wait()
        began, cpu, sent = time.monotonic(), cpu_ns([api.process.pid]), 0
        while (elapsed := time.monotonic() - began) < SECONDS:
            while sent < elapsed * RATE:
                worker.sock.send(batches[sent // BATCH % len(batches)])
                sent += BATCH
            time.sleep(0.002)
        time.sleep(0.3)
        spent = cpu_ns([api.process.pid]) - cpu
        if count:
            watchers.kill()
        return spent / sent / 1000, sum(seen)
    finally:
        api.process.kill()
        api.finish()
        api.close()
        shutil.rmtree(folder)


def run_whole(daemon: Watched, web: Web, count: int) -> tuple[float, int]:
    """(us of the daemon's CPU for each exchange, exchanges delivered) with so many watchers."""
    context = multiprocessing.get_context("spawn")
    ready, seen = context.Barrier(2), context.Array("Q", max(1, count))
    texts = [wanted.SerializeToString() for wanted in real_filters(count, web)]
    watchers = context.Process(target=read, args=(str(daemon.socket), texts, ready, seen), daemon=True)
    if count:
        watchers.start()
        ready.wait()
    daemon.settle()
    before = daemon.reading()
    command = [PYTHON, "-c", CLIENT, str(web.server.port), str(CLIENT_RATE), str(SECONDS)]
    loads = [
        daemon.lab.start(*command, env={"LD_LIBRARY_PATH": ""}, stdout=subprocess.DEVNULL)
        for _ in range(CLIENTS)
    ]
    for load in loads:
        load.wait(60)
    daemon.settle()
    spent = daemon.reading().since(before)
    if count:
        watchers.kill()
        watchers.join()
    return spent.cpu_ns / 1000 / max(1, spent.exchanges), sum(seen)


def real_filters(count: int, web: Web) -> list[pb.Filter]:
    """Another filter for each watcher; every other one lets all of it through."""
    expressions = (
        "duration_ns >= 0ms && response.status < {n}",
        "request.path.matches('^/re[a-p]ly[.]txt$') || process.pid == {n}",
        "size(request.headers) < {n}",
        "completeness.state == 'complete' && response.body_size < {n}K",
    )
    made = []
    for n in range(count):
        if n % 2:
            made.append(pb.Filter(pids=[*web.pids, n], statuses=[pb.StatusRange(first=200, last=300 + n)]))
        else:
            made.append(pb.Filter(expression=expressions[n // 2 % 4].format(n=1000 + n)))
    return made


def whole() -> list[Figure]:
    """The same for the whole daemon."""
    part = f"watchers: the whole daemon's CPU at {CLIENT_RATE * CLIENTS:,} exchanges/s that nginx answers"
    figures, cost = [], {}
    with Lab("bench-watchers") as lab:
        daemon = Watched(lab, config="[capture]\nunwatched_rate = 0\n")
        web = Web(lab)
        daemon.wait_attached()
        for count in WATCHERS:
            cost[count], delivered = run_whole(daemon, web, count)
            say(f"   {count} watchers: {cost[count]:.1f} us for each exchange, {delivered:,} delivered")
            figures.append(
                Figure(part, f"{count} watchers", cost[count], "us/exchange", note=f"{delivered:,} delivered")
            )
        daemon.stop()
    added = (cost[16] - cost[1]) / 15
    note = f"{added:.2f} us/exchange"
    share = 100 * added / cost[1]
    figures.append(Figure(part, "one more watcher, of what one costs", share, "%", target="< 10", note=note))
    return figures


def measure() -> list[Figure]:
    """Each number of watchers, and what one more costs."""
    part = f"watchers: the api's CPU at {RATE:,} exchanges/s, each watcher with another filter"
    every = frames()
    batches = [ipc.encode(every[at : at + BATCH]) for at in range(0, len(every) - BATCH, BATCH)]
    figures, cost = [], {}
    for count in WATCHERS:
        cost[count], delivered = run(count, batches)
        say(f"   {count} watchers: {cost[count]:.1f} us for each exchange, {delivered:,} delivered")
        note = f"{cost[count] * RATE / 10_000:.1f} % of a core, {delivered / SECONDS:,.0f} delivered a second"
        figures.append(Figure(part, f"{count} watchers", cost[count], "us/exchange", note=note))
    added = (cost[16] - cost[1]) / 15
    note = f"{added * RATE / 10_000:.2f} % of a core"
    figures.append(Figure(part, "one more watcher", added, "us/exchange", note=note))
    return figures + whole()
