"""Link messages: what the kernel says of an interface, whole, strange and broken."""

import struct

import pyroute2
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from spliffd.interfaces import devices
from spliffd.interfaces.devices import Device
from spliffd.kernel import rtnetlink
from spliffd.kernel.rtnetlink import attribute


def link(*attributes: bytes, family=0, kind=1, index=5, flags=0x41) -> bytes:
    return rtnetlink.LINK.pack(family, kind, index, flags, 0xFFFFFFFF) + b"".join(attributes)


def test_a_veth():
    body = link(
        attribute(3, b"veth5\0"), attribute(4, (1500).to_bytes(4, "little")),
        attribute(18, attribute(1, b"veth\0")), attribute(10, (9).to_bytes(4, "little")),
    )  # fmt: skip
    assert devices.read(body) == Device(5, "veth5", 1, 0x41, "veth", 9, "")
    assert devices.read(body).is_up


def test_hardware():
    body = link(attribute(3, b"eth0\0"), attribute(56, b"0000:00:1f.6\0"), flags=0)
    assert devices.read(body) == Device(5, "eth0", 1, 0, "", 0, "0000:00:1f.6")
    assert not devices.read(body).is_up


def test_a_nested_attribute_may_say_that_it_is_nested():
    body = link(attribute(3, b"tun0\0"), attribute(18 | 0x8000, attribute(1, b"tun\0")), kind=65534)
    assert devices.read(body).kind == "tun"


def test_a_port_that_leaves_a_bridge_is_no_interface_that_goes():
    assert devices.read(link(attribute(3, b"veth5\0"), family=7)) is None


def test_names_are_bytes_to_the_kernel():
    assert devices.read(link(attribute(3, b"w\xfflan\0"))).name == "w�lan"


@given(st.binary(max_size=200))
def test_nothing_raises(data):
    devices.read(data)
    list(rtnetlink.split(data))


@given(st.binary(max_size=100), st.integers(0, 120))
def test_a_message_cut_short_is_not_misread(tail, cut):
    whole = link(attribute(3, b"veth5\0"), attribute(18, attribute(1, b"veth\0")), tail)
    found = devices.read(whole[:cut])
    assert found is None or (found.name in ("", "veth5") and found.ifindex == 5)


def test_this_hosts_interfaces_are_those_that_pyroute2_reads():
    requests = rtnetlink.Requests()
    found = [devices.read(body) for body in requests.dump(rtnetlink.GET_LINK, devices.DUMP)]
    requests.close()
    with pyroute2.IPRoute() as oracle:
        expected = [_device(one) for one in oracle.get_links()]
    assert found == expected
    assert "lo" in [one.name for one in found]


def _device(one: ifinfmsg) -> Device:
    information = one.get_attr("IFLA_LINKINFO")
    return Device(
        one["index"], one.get_attr("IFLA_IFNAME"), one["ifi_type"], one["flags"],
        (information and information.get_attr("IFLA_INFO_KIND")) or "",
        one.get_attr("IFLA_MASTER") or 0, one.get_attr("IFLA_PARENT_DEV_NAME") or "",
    )  # fmt: skip


def test_splitting_stops_at_a_length_that_cannot_be():
    good = struct.pack("=IHHII", 20, 16, 0, 7, 0) + b"body"
    assert [m.body for m in rtnetlink.split(good + good)] == [b"body", b"body"]
    for length in (0, 15, 21, 0xFFFFFFFF):
        assert [m.body for m in rtnetlink.split(good + struct.pack("=I", length) + good[4:])] == [b"body"]
