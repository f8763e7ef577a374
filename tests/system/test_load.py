"""At the machine's limit: what was asked is seen or told as lost, and every exchange has its socket.

The books are kept in *halves*: a request or a response, seen at one end. With the small messages used here
every half is one TLS call and one record of the ring, so a record that found the ring full is one half, and
an exchange of which one half was lost still comes, marked. While the ring is nearly full the kernel leaves
connections out: their exchanges are told as lost, and are two halves each. What cannot be known from outside is the fate of
the requests that wrk abandons when its time is over, one a connection at most.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import Lab, say
from tests.support.raw_watch import RawWatch
from tests.support.servers import Nginx

pytestmark = pytest.mark.quiet

SECONDS = int(os.environ.get("LOAD_SECONDS", "20"))
CONNECTIONS = 16
SHED = {"queue_full"}
"""Losses behind the parser: counted in frames, and a frame is an exchange here."""


@dataclass
class Books:
    """What a watcher got: halves and states at each end, and what it was told it did not get."""

    halves: Counter[str] = field(default_factory=Counter)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    sockets: dict[str, set[int]] = field(default_factory=lambda: {"client": set(), "server": set()})
    lost_records: int = 0
    lost_bytes: int = 0
    shed: int = 0
    left_out: int = 0

    def exchanges(self, role: str = "") -> int:
        """How many came, of one end or of both."""
        return sum(count for (at, _), count in self.states.items() if role in ("", at))


def keep_books(watch: RawWatch, path: str) -> Books:
    """Goes through everything that came; asserts that every exchange of ``path`` has its socket."""
    books = Books()
    for item in watch.items():
        if item.HasField("loss"):
            if item.loss.stage == "ring":
                books.lost_records += item.loss.count
                books.lost_bytes += item.loss.bytes
            elif item.loss.reason == "overload":
                books.left_out += item.loss.count
            else:
                assert item.loss.reason in SHED, item.loss
                books.shed += item.loss.count
        elif item.HasField("exchange"):
            exchange = item.exchange
            role, state = exchange.connection.role, exchange.completeness.state
            books.states[role, state] += 1
            if exchange.request.method:
                assert (exchange.request.method, exchange.request.path) == ("GET", path)
                books.halves[f"{role} request"] += 1
            if exchange.response.status:
                assert (exchange.response.status, exchange.response.body_size) == (200, 12)
                books.halves[f"{role} response"] += 1
            assert exchange.correlation.method == "SOCKET_NESTED"
            assert exchange.connection.socket_cookie
            books.sockets[role].add(exchange.connection.socket_cookie)
    return books


def wrk(lab: Lab, url: str, seconds: int) -> int:
    """Keep-alive load as fast as it goes; returns how many requests were answered, according to wrk."""
    done = lab.run("wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", url, timeout=seconds + 60)
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert "Socket errors" not in text, text
    assert "Non-2xx" not in text, text
    found = re.search(r"(\d+) requests in", text)
    assert found is not None, text
    return int(found[1])


def requests_of(nginx: Nginx) -> int:
    """How many requests nginx has read so far, this question included. Never asked while the books are open:
    nginx's end of it is captured like any other."""
    done = subprocess.run(
        ["curl", "-sk", nginx.url("/nginx-status")], capture_output=True, check=True, text=True
    )
    return int(done.stdout.split("requests")[1].split()[2])


def exchanges_of(stats: dict[str, float]) -> float:
    """All exchanges that the daemon counted."""
    return sum(value for name, value in stats.items() if name.startswith("spliff_exchanges_total"))


def open_books(nginx: Nginx, daemon: Daemon) -> tuple[int, float]:
    """Asks nginx until its end is seen (its library is being probed for the first time), then starts at
    what nginx and the daemon have counted."""
    before = requests_of(nginx)
    while not exchanges_of(daemon.stats()):
        time.sleep(0.5)
        before = requests_of(nginx)
    time.sleep(0.5)
    return before, exchanges_of(daemon.stats())


def balance(books: Books, answered: int, served: int, counted: float, stats: dict[str, float]) -> str:
    """Checks the books against wrk's and nginx's counts and the daemon's own; returns them in one line."""
    lost = stats['spliff_lost_total{stage="ring",reason="ring_full"}']
    control = stats['spliff_lost_total{stage="ring",reason="control_ring_full"}']
    # What the watcher was told is what was lost; what it got and what was shed is what the daemon counted.
    assert books.lost_records == lost + control
    assert books.lost_bytes == stats['spliff_lost_bytes_total{stage="ring",reason="ring_full"}']
    assert books.left_out == stats['spliff_lost_total{stage="kernel",reason="overload"}']
    assert books.exchanges() + books.shed == counted

    assert answered <= served <= answered + CONNECTIONS
    # At the client: requests sent, answers read. At the server: requests read, answers written.
    least = (answered, answered, served, answered)
    most = (answered + CONNECTIONS, answered, served, served)
    halves = ("client request", "client response", "server request", "server response")
    for half, bound in zip(halves, most, strict=True):
        assert books.halves[half] <= bound, f"{half}: {books.halves[half]:,} seen, {bound:,} made"
    seen = sum(books.halves.values()) + 2 * books.left_out
    assert seen + lost <= sum(most)
    assert seen + lost + 2 * books.shed >= sum(least), f"{sum(least) - seen - lost:,.0f} unaccounted"
    if not lost and not books.shed and not books.left_out:
        for half, bound in zip(halves, least, strict=True):
            assert books.halves[half] >= bound
        assert books.states["client", "complete"] == answered
    return (
        f"{answered:,} answered according to wrk, {served:,} requests according to nginx; complete "
        f"{books.states['client', 'complete']:,} at the client, {books.states['server', 'complete']:,} at the "
        f"server; lost records {lost:,.0f}, exchanges left out {books.left_out:,}, shed {books.shed:,}, all told"
    )


def test_under_load_everything_is_seen_or_told(lab: Lab, daemon: Daemon):
    nginx = Nginx(lab)
    before, earlier = open_books(nginx, daemon)
    watch = RawWatch(daemon, queue_bytes=(1 << 64) - 1)
    answered = wrk(lab, nginx.url(), SECONDS)
    watch.settle()
    stats = daemon.stats()
    watch.stop()
    served = requests_of(nginx) - before - 1

    books = keep_books(watch, "/hello")
    say(
        f"{answered / SECONDS:,.0f} requests/s: "
        + balance(books, answered, served, exchanges_of(stats) - earlier, stats)
    )
    for role in ("client", "server"):
        assert len(books.sockets[role]) == CONNECTIONS


def test_losses_are_told_and_survived(lab: Lab):
    """A ring of 1 MiB, and a worker that stands still for a second: what is lost is told, to the record."""
    daemon = Daemon(lab, config="[capture]\nring_mib = 1\n")
    nginx = Nginx(lab)
    before, earlier = open_books(nginx, daemon)
    watch = RawWatch(daemon, queue_bytes=(1 << 64) - 1)
    worker = next(pid for name, pid in daemon.pids().items() if "worker" in name)

    def stand_still() -> None:
        time.sleep(1)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1)
        os.kill(worker, signal.SIGCONT)

    pause = threading.Thread(target=stand_still)
    pause.start()
    answered = wrk(lab, nginx.url(), 4)
    pause.join()
    watch.settle()
    stats = daemon.stats()
    watch.stop()
    served = requests_of(nginx) - before - 1

    books = keep_books(watch, "/hello")
    say(balance(books, answered, served, exchanges_of(stats) - earlier, stats))
    assert books.lost_records > 0
    assert books.states["client", "complete"] < answered

    # Behind the losses all is right again.
    watch = RawWatch(daemon)
    for _ in range(11):
        assert lab.run("curl", "-sk", nginx.url("/hello?again")).stdout == b"hello world\n"
    watch.settle()
    again = keep_books(watch, "/hello?again")
    assert again.states == {("client", "complete"): 11, ("server", "complete"): 11}
    assert (again.lost_records, again.shed) == (0, 0)
    watch.stop()
    daemon.stop()
