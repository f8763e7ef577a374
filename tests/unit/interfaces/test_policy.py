"""Which hook an interface gets, case by case."""

import pytest

from spliffd.config import Interfaces
from spliffd.interfaces.devices import Device
from spliffd.interfaces.policy import Plan, plan

UP = 0x1 | 0x40
LOOPBACK = 0x8


def device(name="eth0", link_type=1, kind="", master=0, parent="", flags=UP):
    return Device(7, name, link_type, flags, kind, master, parent)


@pytest.mark.parametrize(
    ("interface", "hook", "layer", "reason"),
    [
        (device(parent="0000:00:1f.6"), "xdp", 2, "hardware"),
        (device(parent="0000:00:1f.6", flags=0), "xdp", 2, "hardware"),
        (device(parent="0000:00:1f.6", master=3), "tc", 2, "port of a bridge or bond"),
        (device("lo", 772, flags=UP | LOOPBACK), "tc", 2, "loopback"),
        (device("veth1", kind="veth"), "tc", 2, "veth"),
        (device("br0", kind="bridge"), "tc", 2, "bridge"),
        (device("eth0.5", kind="vlan"), "tc", 2, "vlan"),
        (device("mv0", kind="macvlan"), "tc", 2, "macvlan"),
        (device("vx0", kind="vxlan"), "tc", 2, "vxlan"),
        (device("tap0", kind="tun"), "tc", 2, "tun"),
        (device("tun0", 65534, kind="tun"), "tc", 3, "tun"),
        (device("wg0", 65534, kind="wireguard"), "tc", 3, "wireguard"),
        (device("ppp0", 512, kind="ppp"), "tc", 3, "ppp"),
        (device("ipip1", 768, kind="ipip"), "tc", 3, "ipip"),
        (device("ip6tnl1", 769, kind="ip6tnl"), "tc", 3, "ip6tnl"),
        (device("sit1", 776, kind="sit"), "tc", 3, "sit"),
        (device("gre1", 778, kind="gre"), "tc", 3, "gre"),
        (device("gre6", 823, kind="ip6gre"), "tc", 3, "ip6gre"),
        (device("wwan0", 519, parent="1-2"), "tc", 3, "no Ethernet header"),
        (device("teql0"), "tc", 2, "virtual"),
        (device("can0", 280, parent="spi0"), "off", 0, "link type 280 carries no IP"),
        (device("ib0", 32, parent="0000:01:00.0"), "off", 0, "link type 32 carries no IP"),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else None,
)
def test_by_itself(interface, hook, layer, reason):
    assert plan(interface, Interfaces()) == Plan(hook, layer, reason)


@pytest.mark.parametrize("mode", ["tc", "clsact", "xdp", "xdp-generic"])
@pytest.mark.parametrize(("link_type", "layer"), [(1, 2), (65534, 3)])
def test_a_mode_holds_for_every_interface(mode, link_type, layer):
    interface = device(link_type=link_type, kind="veth", parent="0000:00:1f.6")
    assert plan(interface, Interfaces(mode=mode)) == Plan(mode, layer, f"interfaces.mode is {mode}")


@pytest.mark.parametrize(
    ("include", "exclude", "reason"),
    [
        ([], [], "veth"),
        (["*"], [], "veth"),
        (["eth*", "veth?"], [], "veth"),
        (["eth*"], [], "not in interfaces.include"),
        (["VETH*"], [], "not in interfaces.include"),
        ([], ["veth*"], "in interfaces.exclude"),
        (["veth1"], ["veth1"], "in interfaces.exclude"),
        (["veth1"], ["eth*"], "veth"),
    ],
)
def test_names_are_included_and_excluded_by_globs(include, exclude, reason):
    found = plan(device("veth1", kind="veth"), Interfaces(include, exclude))
    assert found.reason == reason
    assert (found.hook == "off") is (reason != "veth")


def test_off_is_off():
    assert plan(device(), Interfaces(mode="off")) == Plan("off", 0, "interfaces.mode is off")
