"""Sixteen watchers with different filters at 5,000 exchanges/s: each gets exactly what its filter says.

h2load asks nginx 2,500 times a second, over HTTP/1.1 at a steady pace; both ends are captured. What each watcher
got is compared with the same question asked offline of all that one more watcher was shown. The pace is the
load's: where a machine cannot keep it, the comparison is the same.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon
from tests.support.lab import Lab, say
from tests.support.raw_watch import RawWatch
from tests.support.servers import Nginx

REQUESTS, SECONDS, CLIENTS = 2_500, 2, 10
HOSTS = ("127.0.0.1", "localhost")
PATHS = ("/hello?x=1", "/missing?x=2", "/moved", "/empty?x=3", "/other")
WITHOUT_BOUND = (1 << 64) - 1
"""As much as the daemon grants: what is slow here is this process, which reads for all of them."""

Keep = Callable[[pb.Exchange], bool]


def statuses(first: int, last: int) -> pb.Filter:
    return pb.Filter(statuses=[pb.StatusRange(first=first, last=last)])


def host(exchange: pb.Exchange) -> str:
    return exchange.request.authority.rpartition(":")[0]


def header(exchange: pb.Exchange, name: str) -> str:
    return next((h.value for h in exchange.response.headers if h.name.lower() == name), "")


FILTERS: list[tuple[pb.Filter, Keep]] = [
    (pb.Filter(comms=["nginx"]), lambda e: e.process.comm == "nginx"),
    (pb.Filter(comms=["h2l*"]), lambda e: e.process.comm.startswith("h2l")),
    (pb.Filter(hosts=["localhost"]), lambda e: host(e) == "localhost"),
    (
        pb.Filter(hosts=["local*"], comms=["h2load"]),
        lambda e: (host(e), e.process.comm) == ("localhost", "h2load"),
    ),
    (pb.Filter(paths=["/hello*", "/oth?r"]), lambda e: e.request.path.startswith(("/hello", "/other"))),
    (pb.Filter(paths=["*x=[13]"]), lambda e: e.request.path[-3:] in ("x=1", "x=3")),
    (statuses(200, 299), lambda e: 200 <= e.response.status <= 299),
    (statuses(300, 399), lambda e: e.response.status == 302),
    (statuses(500, 599), lambda e: e.response.status >= 500),
    (pb.Filter(methods=["get"], libraries=["openssl"], protocols=["http1"]), lambda _: True),
    (pb.Filter(expression="response.status == 404 || request.path == '/moved'"),
     lambda e: e.response.status == 404 or e.request.path == "/moved"),
    (pb.Filter(expression="response.body_size > 10 && response.status < 400"),
     lambda e: e.response.body_size > 10 and e.response.status < 400),
    (pb.Filter(expression="request.path.matches('^/[a-m].*=[0-9]$')"),
     lambda e: re.search("^/[a-m].*=[0-9]$", e.request.path) is not None),
    (pb.Filter(expression="'location' in response.headers"), lambda e: header(e, "location") != ""),
    (pb.Filter(expression="connection.role == 'server' && duration_ns > 50us"),
     lambda e: e.connection.role == "server" and e.duration_ns > 50_000),
    (pb.Filter(expression="request.authority.startsWith('local')", statuses=[pb.StatusRange(first=204, last=204)]),
     lambda e: host(e) == "localhost" and e.response.status == 204),
]  # fmt: skip


def exchanges(watch: RawWatch) -> list[pb.Exchange]:
    return [item.exchange for item in watch.items() if item.HasField("exchange")]


def test_each_of_sixteen_gets_exactly_what_its_filter_says(lab: Lab, daemon: Daemon, server: Nginx):
    assert len(FILTERS) == 16
    server.file("other", b"another\n")
    everything = RawWatch(daemon, queue_bytes=WITHOUT_BOUND)
    watches = [RawWatch(daemon, queue_bytes=WITHOUT_BOUND, filter=one) for one, _ in FILTERS]
    share = REQUESTS // len(HOSTS)
    loads = [
        lab.start(
            "h2load", "--h1", f"--requests={share * SECONDS}", f"--clients={CLIENTS}", f"--rps={share / CLIENTS:g}",
            *(server.url(path, name) for path in PATHS), stdout=subprocess.PIPE,
        )
        for name in HOSTS
    ]  # fmt: skip
    done = 0
    for load in loads:
        text = load.communicate(timeout=120)[0].decode()
        assert f"{share * SECONDS} done" in text, text
        done += share * SECONDS
        say(next(line for line in text.splitlines() if line.startswith("finished in")))
    for watch in (everything, *watches):
        watch.settle()
        watch.stop()

    population = exchanges(everything)
    losses = [item.loss for item in everything.items() if item.HasField("loss")]
    assert len(population) == 2 * done or losses, "something is missing, and nobody was told"
    kept = []
    for (wanted, keep), watch in zip(FILTERS, watches, strict=True):
        got = [e.id for e in exchanges(watch)]
        assert got == [e.id for e in population if keep(e)], wanted
        kept.append(len(got))
    say(f"{len(population):,} of {2 * done:,} exchanges; kept by 16 filters: {kept}")
    assert kept.count(0) == 1, "one of them is of statuses that nginx did not answer"
