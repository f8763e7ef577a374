"""The interface monitor beside other tools: what is theirs stays, and nothing of ours is left."""

from __future__ import annotations

import json
import os

import pytest

from spliffd.kernel import bpf, netlinks, rtnetlink
from tests.support.interface_monitor import PASS_TC, PASS_XDP, Monitor, filters, qdiscs
from tests.support.lab import wait_for
from tests.support.net import Namespace, inside, run


def program(kind: int, code: bytes) -> int:
    return bpf.prog_load(kind, code, "foreign")


def test_a_foreign_xdp_program_stays(net, ns):
    ns.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    with inside(ns):
        theirs = netlinks.xdp_link(program(bpf.PROG_XDP, PASS_XDP), ns.index("v0"), generic=False)
    assert netlinks.interface(theirs) == ns.index("v0")
    shown = json.loads(run("ip", "-n", ns.name, "-j", "-d", "link", "show", "v0"))[0]["xdp"]
    with Monitor(ns, mode="xdp") as monitor:
        monitor.wait_hooked("v1", hook="XDP")
        monitor.wait_hooked("v0", "lo")
        found = monitor.table()
        assert (found["v0"]["hook"], found["v0"]["mode"]) == ("TC", "tcx")
        assert found["v0"]["reason"] == "XDP is in use by another program"
        assert (found["v1"]["hook"], found["v1"]["mode"]) == ("XDP", "native")
        assert (found["lo"]["hook"], found["lo"]["reason"]) == ("TC", "XDP: Operation not supported")
        monitor.ask("reload", {"mode": "xdp-generic"})
        wait_for(lambda: monitor.table()["v1"]["mode"] == "generic", what="generic XDP")
        wait_for(
            lambda: monitor.table()["v0"]["reason"] == "XDP is in use by another program",
            what="the foreign program noticed",
        )
        assert monitor.stop() == ""
    assert json.loads(run("ip", "-n", ns.name, "-j", "-d", "link", "show", "v0"))[0]["xdp"] == shown
    assert "xdp" not in json.loads(run("ip", "-n", ns.name, "-j", "-d", "link", "show", "v1"))[0]
    os.close(theirs)


def foreign_filter(ns: Namespace, name: str, kind: str) -> None:
    """A filter as other tools add them, at the place that ours wants."""
    if kind == "u32":
        ns.tc(f"filter add dev {name} ingress pref 1 protocol ip u32 match u32 0 0 classid 1:1")
        return
    options = (
        rtnetlink.attribute(6, program(bpf.PROG_SCHED_CLS, PASS_TC).to_bytes(4, "little"))
        + rtnetlink.attribute(7, b"theirs\0")
        + rtnetlink.attribute(8, (1).to_bytes(4, "little"))
    )
    with inside(ns):
        requests = rtnetlink.Requests()
    requests.order(
        rtnetlink.NEW_FILTER,
        rtnetlink.F_CREATE | rtnetlink.F_EXCL,
        rtnetlink.TRAFFIC.pack(0, ns.index(name), 0, netlinks.INGRESS, 1 << 16 | 0x0300)
        + rtnetlink.attribute(1, b"bpf\0")
        + rtnetlink.attribute(2, options),
    )
    requests.close()


@pytest.mark.parametrize("kind", ["u32", "bpf"])
@pytest.mark.parametrize("mode", ["tc", "clsact"])
def test_a_foreign_clsact_filter_stays(net, ns, mode, kind):
    ns.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    ns.tc("qdisc add dev v0 clsact")
    foreign_filter(ns, "v0", kind)
    before = ns.tc("filter show dev v0 ingress")
    assert ("theirs" if kind == "bpf" else "u32") in before
    with Monitor(ns, mode=mode) as monitor:
        monitor.wait_hooked("v0", "v1")
        assert monitor.table()["v0"]["mode"] == ("tcx" if mode == "tc" else "clsact")
        assert len(filters(ns, "v0")) == (mode == "clsact") + (kind == "bpf")
        assert monitor.stop() == ""
    assert ns.tc("filter show dev v0 ingress") == before
    assert qdiscs(ns) == ["v0"]


def test_a_foreign_filter_that_comes_later_keeps_its_qdisc(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    with Monitor(ns, mode="clsact", include=["v0"]) as monitor:
        monitor.wait_hooked("v0")
        ns.tc("filter add dev v0 egress pref 9 protocol ip u32 match u32 0 0 classid 1:1")
        assert monitor.stop() == ""
    assert qdiscs(ns) == ["v0"]
    assert "u32" in ns.tc("filter show dev v0 egress")
    assert filters(ns, "v0") == []


def test_a_foreign_ingress_qdisc_gets_no_sent_packets_by_mistake(net, ns):
    ns.ip("link add v0 type veth peer name v1")
    ns.tc("qdisc add dev v0 ingress")
    with Monitor(ns, mode="clsact", include=["v0"]) as monitor:
        monitor.wait_hooked("v0")
        assert monitor.table()["v0"]["reason"] == "another tool's ingress qdisc: sent packets unseen"
        assert len(filters(ns, "v0")) == 1
        assert monitor.stop() == ""
    assert "qdisc ingress" in ns.tc("qdisc show dev v0")
    assert filters(ns, "v0") == []


def test_clsact_sees_both_ways_and_leaves_nothing(net, ns):
    ns.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    run(*ns.enter("ip", "tuntap", "add", "tun0", "mode", "tun"))
    with Monitor(ns, mode="clsact") as monitor:
        monitor.wait_hooked("v0", "v1", "lo", "tun0")
        for side in ("ingress", "egress"):
            assert all(len(filters(ns, name, side)) == 1 for name in ("v0", "v1", "lo", "tun0"))
        assert sorted(qdiscs(ns)) == ["lo", "tun0", "v0", "v1"]
        for _ in range(7):
            ns.ip("link add w0 type veth peer name w1", "link set w0 up")
            monitor.wait_hooked("w0")
            ns.ip("link del w0")
        assert monitor.stop() == ""
    assert qdiscs(ns) == []
