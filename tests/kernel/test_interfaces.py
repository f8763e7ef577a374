"""The interface monitor against real interfaces, in network namespaces of the test's own.

What is attached are programs that let everything pass (tests/support/interface_monitor.py); whether packets
are told apart is another test's subject.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interface_monitor import Monitor, filters, qdiscs
from tests.support.lab import wait_for
from tests.support.leftovers import existing, held
from tests.support.net import Namespace, inside, run

CYCLES = 211


def attached_programs(ns: Namespace, name: str) -> set[int]:
    """Program ids of TCX links on an interface, found through the kernel's own list of links."""
    index = ns.index(name)
    links = json.loads(run("bpftool", "-j", "link", "show"))
    return {one["prog_id"] for one in links if one.get("ifindex") == index}


@contextlib.contextmanager
def stays(monitor: Monitor) -> Iterator[None]:
    """The monitor's links are the same before and after, by their ids in the kernel."""
    before = held([monitor.process.pid])
    yield
    time.sleep(0.2)
    assert held([monitor.process.pid]) == before


def test_what_is_there_and_what_comes(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    with Monitor(ns) as monitor:
        table = monitor.table()
        assert {name: (one["hook"], one["mode"], one["layer"]) for name, one in table.items()} == {
            "lo": ("TC", "tcx", 2),
            "v0": ("TC", "tcx", 2),
            "v1": ("TC", "tcx", 2),
        }

        def hooked_within_a_second() -> bool:
            began = time.monotonic()
            ns.ip("link add w0 type veth peer name w1", "link set w0 up", "link set w1 up")
            try:
                monitor.wait_hooked("w0", "w1", seconds=1)
            except TimeoutError:
                ns.ip("link del w0")
                wait_for(lambda: not {"w0", "w1"} & monitor.table().keys(), what="w0 and w1 forgotten")
                return False
            took = 1000 * (time.monotonic() - began)
            print(f"a veth pair was hooked {took:.0f} ms after `ip link add` began")
            return True

        # The machine may stand still for that long once, hardly three times.
        assert any(hooked_within_a_second() for _ in range(3))
        run(*ns.enter("ip", "tuntap", "add", "tun0", "mode", "tun"))
        ns.ip("link add br0 type bridge")
        monitor.wait_hooked("tun0", "br0")
        assert monitor.table()["tun0"]["layer"] == 3
        assert monitor.table()["br0"]["reason"] == "bridge"
        ns.ip("link del w0")
        wait_for(lambda: not {"w0", "w1"} & monitor.table().keys(), what="w0 and w1 forgotten")
        names = monitor.told()
        assert {names[str(one["index"])] for one in monitor.table().values()} == set(monitor.table())
        assert "w0" in names.values()  # the last exchanges through it may still be on their way
        assert monitor.ask("feature") == ["ok", "interfaces: 5 on TC tcx"]
        assert monitor.stop() == ""


def test_hooks_stay_through_renames_down_and_up_and_bridges(net, ns):
    ns.ip(
        "link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "link add br0 type bridge"
    )
    with Monitor(ns) as monitor:
        monitor.wait_hooked("v0", "v1", "br0")
        with stays(monitor):
            for _ in range(13):
                ns.ip("link set v0 down", "link set v0 name renamed", "link set renamed up")
                ns.ip("link set renamed master br0", "link set renamed nomaster", "link set renamed mtu 9000")
                ns.ip("link set renamed down", "link set renamed name v0", "link set v0 up")
        ns.ip("link set v0 down", "link set v0 name renamed", "link set renamed up")
        wait_for(lambda: "renamed" in monitor.told().values(), what="the new name")
        assert "v0" not in monitor.table()
        assert bpf_alive(ns, monitor, "renamed")
        assert monitor.stop() == ""


def bpf_alive(ns: Namespace, monitor: Monitor, name: str) -> bool:
    """Whether the kernel says that the hook's links are on that very interface."""
    fds = monitor.table()[name]["links"]
    index = ns.index(name)
    found = []
    for fd in fds:
        copy = os.open(f"/proc/{monitor.process.pid}/fdinfo/{fd}", os.O_RDONLY)
        with os.fdopen(copy) as file:
            found += [line.split()[1] for line in file if line.startswith("ifindex:")]
    return found == [str(index)] * 2


def test_a_new_name_counts(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    with Monitor(ns, exclude=["hidden*"]) as monitor:
        monitor.wait_hooked("v0", "v1")
        ns.ip("link set v0 name hidden0")
        monitor.wait_hooked("hidden0", hook="NONE")
        assert monitor.table()["hidden0"]["reason"] == "in interfaces.exclude"
        ns.ip("link set hidden0 name v0")
        monitor.wait_hooked("v0")


def test_211_create_and_delete_cycles_leave_nothing(net, ns):
    before = existing()
    with Monitor(ns) as monitor:
        own = held([monitor.process.pid])
        for number in range(CYCLES):
            ns.ip(f"link add v0 index {100 + number % 2} type veth peer name v1 index 300", "link set v0 up")
            if number % 10 == 0:
                monitor.wait_hooked("v0", seconds=1)
            ns.ip("link del v0")
        wait_for(lambda: set(monitor.table()) == {"lo"}, what="all forgotten")
        wait_for(lambda: held([monitor.process.pid]) == own, what="all released")
        counters = monitor.counters()
        assert counters["interfaces_TC_tcx"] == 1
        assert counters["interface_failures"] == 0
        assert monitor.stop() == ""
    assert not {one for one in existing() - before if one in own}


@pytest.mark.parametrize("mode", ["auto", "clsact"])
def test_211_veths_at_once(net, ns, mode):
    far = net.namespace()
    with Monitor(ns, mode=mode) as monitor:
        monitor.ask("beat")
        began = time.monotonic()
        ns.ip(*(f"link add h{i} type veth peer name c{i} netns {far.name}" for i in range(CYCLES)))
        ns.ip(*(f"link set h{i} up" for i in range(CYCLES)))
        made = time.monotonic()
        monitor.wait_hooked(*(f"h{i}" for i in range(CYCLES)), seconds=60)
        done = time.monotonic()
        stalled = monitor.ask("beat")
        print(
            f"{mode}: {CYCLES} veths made in {made - began:.2f} s, all hooked {done - made:.2f} s later; "
            f"the event loop was late by {1000 * stalled:.0f} ms at most"
        )
        assert stalled < 0.5
        ns.ip(*(f"link del h{i}" for i in range(CYCLES)))
        wait_for(lambda: set(monitor.table()) == {"lo"}, 60, "all forgotten")
        assert monitor.stop() == ""
    assert qdiscs(ns) == []


def test_an_interface_that_moves_to_another_namespace_is_let_go(net, ns):
    far = net.namespace()
    ns.ip("link add v0 type veth peer name v1")
    with Monitor(ns) as monitor:
        monitor.wait_hooked("v0", "v1")
        own = held([monitor.process.pid])
        for _ in range(7):
            ns.ip(f"link set v0 netns {far.name}")
            wait_for(lambda: "v0" not in monitor.table(), what="v0 forgotten")
            wait_for(lambda: len(held([monitor.process.pid])) == len(own) - 2, what="v0 released")
            far.ip(f"link set v0 netns {ns.name}")
            monitor.wait_hooked("v0", seconds=1)
            assert bpf_alive(ns, monitor, "v0")
        assert monitor.stop() == ""


def test_a_new_interface_with_the_name_and_index_of_the_old_is_hooked_anew(net, ns):
    with Monitor(ns) as monitor:
        for kind in ("veth peer name v1", "ifb", "bridge", "veth peer name v1"):
            ns.ip(f"link add v0 index 77 type {kind}", "link set v0 up")
            monitor.wait_hooked("v0", seconds=1)
            wait_for(lambda: bpf_alive(ns, monitor, "v0"), what="links on the new one")
            ns.ip("link del v0", f"link add v0 index 77 type {kind}", "link set v0 up")
            wait_for(
                lambda: monitor.table()["v0"]["hook"] == "TC" and bpf_alive(ns, monitor, "v0"),
                what="links on the newest one",
            )
            ns.ip("link del v0")
            wait_for(lambda: set(monitor.table()) == {"lo"}, what="forgotten")
        # The same index with another parser.
        ns.ip("link add v0 index 77 type veth peer name v1")
        monitor.wait_hooked("v0")
        assert monitor.stop() == ""


def test_lost_messages_are_noticed_and_made_good(net, ns):
    with Monitor(ns, buffer_bytes=4096) as monitor:
        for name in ("a", "b"):
            ns.ip(*(f"link add {name}{i} index {200 + i} type ifb" for i in range(53)))
            ns.ip(*(f"link set {name}{i} up" for i in range(53)))
            monitor.wait_hooked(*(f"{name}{i}" for i in range(53)), seconds=20)
            wait_for(
                lambda name=name: all(bpf_alive(ns, monitor, f"{name}{i}") for i in range(53)),
                20,
                "links on the interfaces of today",
            )
            ns.ip(*(f"link del {name}{i}" for i in range(53)))
        assert monitor.counters()["interface_overruns"] > 0
        wait_for(lambda: set(monitor.table()) == {"lo"}, 20, "all forgotten")
        assert monitor.stop() == ""


def test_a_killed_daemon_leaves_no_link(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    with Monitor(ns, mode="xdp") as monitor:
        monitor.wait_hooked("v0", "v1", hook="XDP")
        own = held([monitor.process.pid])
        monitor.kill()
    wait_for(lambda: not own & existing(), what="links and programs gone")
    assert qdiscs(ns) == []
    assert "xdp" not in json.loads(run("ip", "-n", ns.name, "-j", "-d", "link", "show", "v0"))[0]


def test_filters_of_a_killed_daemon_are_removed_by_the_next_not_those_of_a_living_one(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    ns.tc("qdisc add dev v1 clsact")
    with (
        Monitor(ns, mode="clsact") as dead,
        Monitor(ns, mode="clsact", include=["v0"]) as living,
    ):
        dead.wait_hooked("v0", "v1")
        living.wait_hooked("v0")
        dead.kill()
        assert len(filters(ns, "v0")) == 2
        successor(ns)
        assert living.stop() == ""
    assert filters(ns, "v0") == filters(ns, "v0", "egress") == []


def successor(ns: Namespace) -> None:
    with Monitor(ns, mode="tc") as monitor:
        assert len(filters(ns, "v0")) == 1
        assert filters(ns, "v1") == []
        assert sorted(qdiscs(ns)) == ["v0", "v1"]  # v1's was there before
        assert "removed filters" in monitor.stop()


def test_settings_take_effect_at_once(net, ns):
    ns.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    with Monitor(ns) as monitor:
        for mode, name, kind in (
            ("xdp", "XDP", "native"), ("clsact", "TC", "clsact"), ("xdp-generic", "XDP", "generic"),
            ("tc", "TC", "tcx"), ("off", "NONE", ""), ("auto", "TC", "tcx"),
        ):  # fmt: skip
            monitor.ask("reload", {"mode": mode})
            wait_for(
                lambda name=name, kind=kind: (
                    (monitor.table()["v0"]["hook"], monitor.table()["v0"]["mode"]) == (name, kind)
                ),
                what=f"{name} {kind}",
            )
        with stays(monitor):
            monitor.ask("reload", {"mode": "tc"})  # which is what they have
        monitor.ask("reload", {"mode": "tc", "include": ["v1"]})
        monitor.wait_hooked("v0", "lo", hook="NONE")
        assert monitor.table()["v1"]["hook"] == "TC"
        assert monitor.stop() == ""
    assert qdiscs(ns) == []


def test_packets_pass(net, ns):
    far = net.namespace()
    net.pair(ns, far)
    for mode in ("tc", "clsact", "xdp", "xdp-generic"):
        with Monitor(ns, mode=mode) as monitor:
            monitor.wait_hooked("eth0", hook="XDP" if "xdp" in mode else "TC")
            for address in ("10.91.0.2", "fd91::2"):
                say_hello(ns, far, address)
            assert monitor.stop() == ""


def say_hello(here: Namespace, there: Namespace, address: str) -> None:
    """A connection and a few bytes each way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(there):
        server = socket.create_server((address, 0), family=family)
    with inside(here):
        client = socket.socket(family)
    with server, client:
        client.settimeout(5)
        client.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"good day")
            assert client.recv(9) == b"good day"


def test_a_quiet_network_costs_nothing(net, ns):
    ns.ip(*(f"link add d{i} type ifb" for i in range(31)))
    with Monitor(ns) as monitor:
        monitor.wait_hooked("d30")
        wait_for(lambda: monitor.counters()["interfaces_TC_tcx"] == 32, what="all on links")

        def nothing_for_three_seconds() -> bool:
            time.sleep(0.5)
            before = cpu_and_switches(monitor.process.pid)
            time.sleep(3)
            return cpu_and_switches(monitor.process.pid) == before

        # What it still had to do when the last hook was there may be done late.
        assert any(nothing_for_three_seconds() for _ in range(3))


def cpu_and_switches(pid: int) -> tuple[int, ...]:
    """Clock ticks used, and times that any thread went to sleep."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return int(ticks[11]) + int(ticks[12]), switches
