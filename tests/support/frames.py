"""Builds packets byte by byte, and reads them back without a line of the code under test.

``dissect`` is the oracle of the packet programs: the same question answered from the RFCs with ``struct``
and ``ipaddress``, slowly and plainly (RFC 791, 8200, 9293, 4302; IEEE 802.1Q for tags).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

CLIENT, SERVER = ("192.0.2.11", 40009), ("198.51.100.7", 443)
CLIENT6, SERVER6 = ("2001:db8::11", 40009), ("2001:db8:7::7", 443)
HELLO = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
"""What a TLS ClientHello starts with: a handshake record (22) whose first message is of type 1."""

VLANS = (0x8100, 0x88A8, 0x9100)
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60


def tcp(
    source: int,
    destination: int,
    payload: bytes = b"",
    options: bytes = b"",
    flags: int = 0x18,
    sequence: int = 7,
    acknowledgement: int = 9,
) -> bytes:
    """A TCP segment; ``options`` are filled up to whole words."""
    options += b"\x01" * (-len(options) % 4)
    words = 5 + len(options) // 4
    return struct.pack(
        ">HHIIBBHHH", source, destination, sequence, acknowledgement, words << 4, flags, 512, 0, 0
    ) + options + payload  # fmt: skip


def ipv4(
    source: str, destination: str, payload: bytes, options: bytes = b"", fragment: int = 0, protocol: int = 6
) -> bytes:
    """An IPv4 packet; ``fragment`` is the whole 16-bit word, flags included."""
    options += b"\x01" * (-len(options) % 4)
    words = 5 + len(options) // 4
    return (
        struct.pack(">BBHHHBBH", 4 << 4 | words, 0, words * 4 + len(payload), 1, fragment, 64, protocol, 0)
        + ipaddress.IPv4Address(source).packed
        + ipaddress.IPv4Address(destination).packed
        + options
        + payload
    )


def ipv6(
    source: str,
    destination: str,
    payload: bytes,
    extensions: tuple[tuple[int, bytes], ...] = (),
    last: int = 6,
) -> bytes:
    """An IPv6 packet with extension headers given as (number, bytes without the first: next header)."""
    numbers = [*(number for number, _ in extensions), last]
    chain = b"".join(
        bytes([following]) + body for (_, body), following in zip(extensions, numbers[1:], strict=True)
    )
    return (
        struct.pack(">IHBB", 6 << 28, len(chain) + len(payload), numbers[0], 64)
        + ipaddress.IPv6Address(source).packed
        + ipaddress.IPv6Address(destination).packed
        + chain
        + payload
    )


def extension(number: int, size: int = 8, fragment: int = 0) -> tuple[int, bytes]:
    """An extension header of ``size`` bytes for ``ipv6``."""
    if number == FRAGMENT:
        return number, struct.pack(">BHI", 0, fragment, 77)
    length = size // 4 - 2 if number == AH else size // 8 - 1
    return number, bytes([length]) + b"\x00" * (size - 2)


def ethernet(payload: bytes, kind: int, tags: tuple[int, ...] = ()) -> bytes:
    """An Ethernet frame, with VLAN tags of these types outside in."""
    types = [*tags, kind]
    tagged = b"".join(struct.pack(">HH", 5, following) for following in types[1:])
    return (
        b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02" + struct.pack(">H", types[0]) + tagged + payload
    )


def frame4(payload: bytes = b"", **options) -> bytes:
    """An IPv4 packet from CLIENT to SERVER, without Ethernet."""
    return ipv4(CLIENT[0], SERVER[0], tcp(CLIENT[1], SERVER[1], payload), **options)


def frame6(payload: bytes = b"", *extensions: tuple[int, bytes]) -> bytes:
    """An IPv6 packet from CLIENT6 to SERVER6, without Ethernet."""
    return ipv6(CLIENT6[0], SERVER6[0], tcp(CLIENT6[1], SERVER6[1], payload), extensions)


class Seen(NamedTuple):
    """What a packet is: ``kind`` as in spliffd/counters.py PACKET_OUTCOMES, "tcp" when it has ports."""

    kind: str
    source: tuple[str, int] = ("", 0)
    destination: tuple[str, int] = ("", 0)
    payload: bytes = b""
    syn: bool = False


def dissect(data: bytes, is_ethernet: bool) -> Seen:
    """What ``data`` is; never raises."""
    try:
        return _ethernet(data) if is_ethernet else _ip(data, data[0] >> 4)
    except (struct.error, IndexError):
        return Seen("malformed")


def _ethernet(data: bytes) -> Seen:
    at = 12
    (kind,) = struct.unpack_from(">H", data, at)
    for _ in range(2):
        if kind in VLANS:
            at += 4
            (kind,) = struct.unpack_from(">H", data, at)
    version = {0x0800: 4, 0x86DD: 6}.get(kind)
    return _ip(data[at + 2 :], version) if version else Seen("not_tcp")


def _ip(data: bytes, version: int) -> Seen:
    if version not in (4, 6) or data[0] >> 4 != version:
        return Seen("malformed")
    if version == 4:
        words, total, offset, protocol = data[0] & 15, *struct.unpack_from(">H2xHxB", data, 2)
        if len(data) < 20 or words < 5:
            return Seen("malformed")
        if protocol != 6:
            return Seen("not_tcp")
        if offset & 0x1FFF:
            return Seen("fragments")
        if total > len(data):
            return Seen("malformed")
        source, destination = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
        return _tcp(data[words * 4 : total], source, destination)
    if len(data) < 40:
        return Seen("malformed")
    size, following = struct.unpack_from(">HB", data, 4)
    at, end = 40, 40 + size
    for _ in range(8):
        if following == 6:
            break
        if following not in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION):
            return Seen("not_tcp")
        if len(data) < at + 4:
            return Seen("malformed")
        if following == FRAGMENT:
            if struct.unpack_from(">H", data, at + 2)[0] >> 3:
                return Seen("fragments")
            length = 8
        else:
            length = (data[at + 1] + 2) * 4 if following == AH else (data[at + 1] + 1) * 8
        following = data[at]
        at += length
    if following != 6 or end > len(data):
        return Seen("malformed")
    source, destination = (str(ipaddress.IPv6Address(data[at_ : at_ + 16])) for at_ in (8, 24))
    return _tcp(data[at:end], source, destination)


def _tcp(data: bytes, source: str, destination: str) -> Seen:
    if len(data) < 20 or not 20 <= (data[12] >> 4) * 4 <= len(data):
        return Seen("malformed")
    ports = struct.unpack_from(">HH", data)
    if 0 in ports:
        return Seen("malformed")
    return Seen(
        "tcp", (source, ports[0]), (destination, ports[1]), data[(data[12] >> 4) * 4 :], bool(data[13] & 2)
    )
