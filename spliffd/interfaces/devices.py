"""A network interface as the kernel describes it, and its description taken apart.

Takes the body of an RTM_NEWLINK or RTM_DELLINK message, returns a ``Device``, or None for what is no
interface's own message. Never raises on any bytes, and never asks the kernel.
Source: uapi/linux/if_link.h, if_arp.h; rtnetlink(7).
"""

from __future__ import annotations

from typing import NamedTuple

from spliffd.kernel import rtnetlink

_NAME, _MASTER, _LINK_INFO, _EXTENSIONS, _PARENT = 3, 10, 18, 29, 56
_INFO_KIND = 1
_SKIP_STATISTICS = 8
IFF_UP, IFF_LOOPBACK = 0x1, 0x8

DUMP = rtnetlink.LINK.pack(0, 0, 0, 0, 0) + rtnetlink.attribute(
    _EXTENSIONS, _SKIP_STATISTICS.to_bytes(4, "little")
)
"""Body of the question for all interfaces, without their statistics."""


class Device(NamedTuple):
    """One interface of the daemon's network namespace."""

    ifindex: int
    name: str
    type: int
    """ARPHRD_*: what its packets begin with."""
    flags: int
    """IFF_*."""
    kind: str
    """veth, tun, bridge, ...; empty for hardware, loopback and a few old virtual devices."""
    master: int
    """Index of the bridge or bond it belongs to, or 0."""
    parent: str
    """Device it sits on (a PCI address, virtio0); empty for everything virtual."""

    @property
    def is_up(self) -> bool:
        """Whether it may carry packets."""
        return bool(self.flags & IFF_UP)


def read(body: bytes) -> Device | None:
    """What a link message says; None when it is about a bridge's port table, or cannot be read."""
    if len(body) < rtnetlink.LINK.size:
        return None
    family, kind, index, flags, _ = rtnetlink.LINK.unpack_from(body)
    # AF_BRIDGE messages of the same type say that a port joined or left: the interface lives on.
    if family or index <= 0:
        return None
    found = rtnetlink.attributes(body, rtnetlink.LINK.size)
    info = rtnetlink.attributes(found.get(_LINK_INFO, b""))
    return Device(
        index,
        rtnetlink.text(found.get(_NAME)),
        kind,
        flags,
        rtnetlink.text(info.get(_INFO_KIND)),
        int.from_bytes(found.get(_MASTER, b""), "little"),
        rtnetlink.text(found.get(_PARENT)),
    )
