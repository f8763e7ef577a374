"""K4, interfaces that come and go while traffic flows: each is followed within a second, and none leaves a trace.

Created after the start, renamed, down and up, moved to another namespace and back, 211 times created and
deleted; a foreign XDP program and a foreign clsact filter stay what they were.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator

import pytest

from spliffd.kernel import bpf
from spliffd.pb import spliff_pb2 as pb
from tests.support.interface_monitor import PASS_XDP
from tests.support.keepalive import KeepAlive
from tests.support.lab import wait_for
from tests.support.leftovers import held
from tests.support.net import inside, run
from tests.support.thread import FAR, Expected, Stage, check, on_wire, say, stage

CYCLES = int(os.environ.get("CYCLES", "211"))
FOLLOWED_SECONDS = 1.0
NEW_INTERFACES = 11
PROG_XDP, ATTACH_XDP = 6, 37


@pytest.fixture(scope="module")
def golden() -> Iterator[Stage]:
    with stage("plug") as made:
        made.start()
        made.servers = (made.serve(),)
        made.daemon.wait_attached()
        yield made


class Traffic:
    """Requests without a pause over eth0: one connection that stays, and fresh clients one after the other."""

    def __init__(self, golden: Stage, name: str) -> None:
        self._golden, self._name = golden, name
        self._stop = threading.Event()
        self.watch = golden.daemon.watch()
        self.kept = 0
        self.fresh: dict[str, tuple[int, int]] = {}
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in (self._keep, self._renew)]
        for thread in self._threads:
            thread.start()

    def _run(self, work) -> None:
        try:
            work()
        except BaseException as error:  # told by end(), in the test's own thread
            self.errors.append(error)

    def _keep(self) -> None:
        client = KeepAlive(self._golden.lab, self._golden.near, FAR, self._golden.servers[0].port)
        while not self._stop.is_set():
            client.ask(f"/hello?{self._name}-kept-{self.kept}")
            self.kept += 1
            time.sleep(0.002)
        client.close()

    def _renew(self) -> None:
        while not self._stop.is_set():
            url = self._golden.servers[0].url(f"/hello?{self._name}-fresh-{len(self.fresh)}-{{n}}", FAR)
            self.fresh |= self._golden.fetch_each(3, url, parallel=1)

    def end(self) -> str:
        """Stops; every request must have been seen at both ends, with its packets on eth0."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.errors, self.errors
        wanted = 2 * (self.kept + len(self.fresh))
        self.watch.wait_for(wanted)
        self.watch.settle(0.2)
        self.watch.stop()
        check(self.watch.exchanges, self.fresh, Expected())
        kept = [e for e in self.watch.exchanges if f"?{self._name}-kept-" in e.request.path]
        assert len(kept) == 2 * self.kept
        for exchange in kept:
            assert on_wire(exchange) == ("TC", "eth0", ("eth0",)), exchange
        assert len(self.watch.exchanges) == wanted
        assert self.watch.losses == []
        return f"{wanted} exchanges meanwhile, all with their packets"


def hooks(golden: Stage) -> dict[str, tuple[str, str]]:
    listed = golden.daemon.stub().ListInterfaces(pb.ListInterfacesRequest()).interfaces
    return {one.name: (one.hook, one.mode) for one in listed}


def quiet(text: str) -> None:
    """Nothing in a log that looks like trouble."""
    trouble = [line for line in text.splitlines() if re.search(r"error|warning|Traceback", line)]
    assert not trouble, trouble


def open_flows(golden: Stage) -> int:
    return len(golden.daemon.stub().ListFlows(pb.ListFlowsRequest()).flows)


def entries(golden: Stage, name: str) -> int:
    """Entries of one of the daemon's maps."""
    ids = {number for kind, number in held([golden.daemon.process.pid]) if kind == "map"}
    maps = json.loads(run("bpftool", "-j", "map", "show"))
    (mine,) = (one["id"] for one in maps if one["id"] in ids and one.get("name") == name)
    return len(json.loads(run("bpftool", "-j", "map", "dump", "id", str(mine))))


def test_a_new_interface_is_followed_within_a_second(golden: Stage):
    made: list[str] = []

    def followed() -> float:
        """Seconds from a new interface to the last byte of the first exchange over it."""
        name, net = f"late{len(made)}", 100 + len(made)
        made.append(name)
        addresses = [(f"10.{net}.0.1/24", f"10.{net}.0.2/24")]
        watch = golden.daemon.watch()
        golden.network.pair(golden.near, golden.far, addresses, names=(name, name))
        created = time.time_ns()  # it is up since now, at both ends
        url = golden.servers[0].url(f"/hello?{name}", f"10.{net}.0.2")
        pid, port = golden.fetch(url)
        watch.wait_for(2)
        watch.stop()
        expected = Expected(name, "TC", (name,), f"10.{net}.0.1", f"10.{net}.0.2")
        check(watch.exchanges, {f"/hello?{name}": (pid, port)}, expected)
        return (max(e.end_time_ns for e in watch.exchanges) - created) / 1e9

    def followed_in_time() -> float:
        # The machine may stand still for that long once, hardly three times.
        tries = [followed()]
        while tries[-1] > FOLLOWED_SECONDS and len(tries) < 3:
            tries.append(followed())
        return tries[-1]

    taken = [followed_in_time() for _ in range(NEW_INTERFACES)]
    say(
        f"{NEW_INTERFACES} interfaces, used at once: the first exchange of each is on its TC hook, "
        f"{min(taken) * 1000:.0f} to {max(taken) * 1000:.0f} ms after it came up"
    )
    assert max(taken) <= FOLLOWED_SECONDS
    for name in made:
        golden.near.ip(f"link del {name}")


def test_interfaces_come_and_go_under_traffic(golden: Stage):
    """Created, up, renamed, down, up and deleted, again and again."""
    before = held([golden.daemon.process.pid])
    known = hooks(golden)
    log_start = len(golden.daemon.text())
    traffic = Traffic(golden, "cycles")
    began = time.monotonic()
    for number in range(CYCLES):
        golden.near.ip(
            f"link add spare{number} type veth peer name peer{number}",
            f"link set spare{number} up",
            f"link set peer{number} up",
            f"link set spare{number} name other{number}",
            f"link set other{number} down",
            f"link set other{number} up",
            f"link del other{number}",
        )
    seconds = time.monotonic() - began
    told = traffic.end()

    wait_for(lambda: hooks(golden) == known, 30, "the interfaces of before")  # how soon: the test above
    wait_for(lambda: held([golden.daemon.process.pid]) == before, 30, "the links of before")
    assert "clsact" not in run("tc", "-n", golden.near.name, "qdisc", "show")
    quiet(golden.daemon.text()[log_start:])
    stats = golden.daemon.stats()
    assert stats["spliff_deferred_failures_total"] == 0
    wait_for(lambda: open_flows(golden) == 0, 30, "no flow to be open")
    assert entries(golden, "cookies") == 0
    assert entries(golden, "interfaces") == len([hook for hook, _ in known.values() if hook != "NONE"])
    say(
        f"{CYCLES} cycles of two interfaces in {seconds:.1f} s: {told}; "
        f"no link, filter, qdisc or map entry left, nothing in the log; {stats['spliff_interface_failures_total']:.0f} attempts "
        f"came too late for their interface"
    )


def test_down_and_up_and_a_new_name_in_use(golden: Stage):
    """What carries the traffic goes down and comes back, under another name and back."""
    watch = golden.daemon.watch()
    client = KeepAlive(golden.lab, golden.near, FAR, golden.servers[0].port)
    names = []
    for number in range(7):
        client.ask(f"/hello?bounce-{number}-before")
        golden.near.ip(
            "link set eth0 down", f"link set eth0 name uplink{number}", f"link set uplink{number} up"
        )
        client.ask(f"/hello?bounce-{number}-between")
        golden.near.ip(
            f"link set uplink{number} down", f"link set uplink{number} name eth0", "link set eth0 up"
        )
        names.append(f"uplink{number}")
    client.ask("/hello?bounce-after")
    client.close()
    count = 2 * (7 * 2 + 1)
    watch.wait_for(count)
    watch.stop()
    seen = {}
    for exchange in watch.exchanges:
        wire, interface, path = on_wire(exchange)
        assert (wire, len(path)) == ("TC", 1), (
            exchange
        )  # the same interface all the time, whatever it is called
        assert interface in ("eth0", *names), exchange
        seen[interface] = seen.get(interface, 0) + 1
    stats = golden.daemon.stats()
    assert stats["spliff_deferred_failures_total"] == 0
    say(f"down, up, renamed in use, 14 times: {count} of {count} exchanges on one TC hook, told as {seen}")


def links(golden: Stage) -> int:
    """How many links the daemon holds."""
    return sum(kind == "link" for kind, _ in held([golden.daemon.process.pid]))


def test_an_interface_that_leaves_and_comes_back(golden: Stage):
    """Moved to another namespace and back: the hook is gone there, and there again here."""
    away = golden.network.namespace()
    before = links(golden)
    addresses = [("10.77.0.1/24", "10.77.0.2/24")]
    golden.network.pair(golden.near, golden.far, addresses, names=("roam0", "roam0"))
    expected = Expected("roam0", "TC", ("roam0",), "10.77.0.1", "10.77.0.2")
    log_start = len(golden.daemon.text())
    moves = 11
    watch = golden.daemon.watch()
    clients: dict[str, tuple[int, int]] = {}
    for number in range(moves):
        golden.near.ip(f"link set roam0 netns {away.name}")
        away.ip(f"link set roam0 netns {golden.near.name}")
        golden.near.ip("addr add 10.77.0.1/24 dev roam0", "link set roam0 up")
        path = f"/hello?moved-{number}"
        clients[path] = golden.fetch(golden.servers[0].url(path, "10.77.0.2"))
    watch.wait_for(2 * moves)
    watch.stop()
    check(watch.exchanges, clients, expected)
    quiet(golden.daemon.text()[log_start:])
    assert links(golden) == before + 2

    def left_within_a_second() -> bool:
        golden.near.ip(f"link set roam0 netns {away.name}")
        try:
            wait_for(lambda: links(golden) == before, FOLLOWED_SECONDS, "the hooks to leave what has left")
        except TimeoutError:
            wait_for(lambda: links(golden) == before, 30, "the hooks to leave what has left")
            away.ip(f"link set roam0 netns {golden.near.name}")
            wait_for(lambda: links(golden) == before + 2, 30, "the hooks of what is back")
            return False
        return True

    # The machine may stand still for that long once, hardly three times.
    assert any(left_within_a_second() for _ in range(3))
    say(
        f"moved away and back {moves} times: {2 * moves} of {2 * moves} exchanges right after on TC roam0; "
        "no hook is left on it in the other namespace"
    )
    away.ip("link del roam0")


def test_programs_of_others_survive_us(golden: Stage):
    """A foreign XDP program and a foreign clsact filter on the interface in use, before us and after us."""
    golden.daemon.stop()
    index = golden.near.index("eth0")
    xdp = bpf.prog_load(PROG_XDP, PASS_XDP, "foreign_xdp")
    with inside(golden.near):
        link = bpf.link_create(xdp, index, ATTACH_XDP)
    golden.near.tc("qdisc add dev eth0 clsact")
    # A classic program of one instruction: "return all of it".
    run(
        "tc",
        "-n",
        golden.near.name,
        "filter",
        "add",
        "dev",
        "eth0",
        "ingress",
        "bpf",
        "bytecode",
        "1,6 0 0 65535",
    )

    def theirs() -> tuple[object, str]:
        (shown,) = json.loads(run("ip", "-n", golden.near.name, "-j", "-d", "link", "show", "eth0"))
        return shown["xdp"], run("tc", "-n", golden.near.name, "filter", "show", "dev", "eth0", "ingress")

    before = theirs()
    for mode, mine in (("xdp", ("TC", "tcx")), ("clsact", ("TC", "clsact"))):
        golden.start(f'[interfaces]\nmode = "{mode}"\n')
        golden.daemon.wait_attached()
        assert hooks(golden)["eth0"] == mine
        watch = golden.daemon.watch()
        clients = golden.fetch_each(7, golden.servers[0].url(f"/hello?foreign-{mode}{{n}}", FAR))
        watch.wait_for(14)
        watch.stop()
        check(watch.exchanges, clients, Expected())
        golden.daemon.stop()
        assert theirs() == before
    say(
        "a foreign XDP program and a foreign clsact filter are as they were; 28 of 28 exchanges on TC beside them"
    )
    os.close(link)
    golden.near.tc("qdisc del dev eth0 clsact")
    os.close(xdp)
