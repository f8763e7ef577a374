"""Which hook an interface gets, decided from its description and the configuration alone.

Takes a ``Device`` and the ``[interfaces]`` settings, returns a ``Plan``: what to try, which of the two
packet parsers, and why. What the driver says to it is found out in ``hooks``. Does no I/O.

XDP costs least, and native XDP only hardware drivers do well: on a veth it turns off segmentation
offload, on tunnels it does not exist, and a bridge's port is left to the bridge. TC does the rest.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from spliffd.config import Interfaces
from spliffd.interfaces.devices import IFF_LOOPBACK, Device

ETHERNET = (1, 772)
"""ARPHRD_ETHER, and ARPHRD_LOOPBACK, whose packets have an Ethernet header too."""

RAW_IP = (512, 519, 768, 769, 776, 778, 823, 65534)
"""ARPHRD_PPP, RAWIP, TUNNEL (ipip), TUNNEL6, SIT, IPGRE, IP6GRE, NONE (tun, WireGuard): IP at once."""

OFF, XDP_NATIVE, XDP_GENERIC, TC, CLSACT = "off", "xdp", "xdp-generic", "tc", "clsact"


class Plan(NamedTuple):
    """What to try on an interface."""

    hook: str
    """OFF, XDP_NATIVE, XDP_GENERIC, TC (TCX links, else clsact) or CLSACT."""
    layer: int
    """2: packets begin with an Ethernet header, 3: with the IP header; 0 when there is no hook."""
    reason: str
    """Why, in a few words for `spliffctl interfaces`."""


def plan(device: Device, settings: Interfaces) -> Plan:
    """The hook for ``device``; its links stay when only things change that do not matter here."""
    if settings.mode == "off":
        return Plan(OFF, 0, "interfaces.mode is off")
    if settings.include and not any(fnmatchcase(device.name, glob) for glob in settings.include):
        return Plan(OFF, 0, "not in interfaces.include")
    if any(fnmatchcase(device.name, glob) for glob in settings.exclude):
        return Plan(OFF, 0, "in interfaces.exclude")
    if device.type in ETHERNET:
        layer = 2
    elif device.type in RAW_IP:
        layer = 3
    else:
        return Plan(OFF, 0, f"link type {device.type} carries no IP")
    if settings.mode != "auto":
        return Plan(settings.mode, layer, f"interfaces.mode is {settings.mode}")
    if device.flags & IFF_LOOPBACK:
        return Plan(TC, layer, "loopback")
    if device.kind:
        return Plan(TC, layer, device.kind)
    if device.master:
        return Plan(TC, layer, "port of a bridge or bond")
    if layer == 3:
        return Plan(TC, layer, "no Ethernet header")
    if not device.parent:
        return Plan(TC, layer, "virtual")
    return Plan(XDP_NATIVE, layer, "hardware")
