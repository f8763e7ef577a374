"""rtnetlink: the kernel's table of interfaces and traffic control, as messages over a socket.

Takes message types, fixed headers and attributes as bytes; returns message bodies, and attributes by
number. Every refusal is an ``OSError`` with the kernel's errno and, where it gave one, its own words.
Blocking, with a bound: whoever runs an event loop calls it from a thread. Only the network namespace of
the process is seen. Own code, not pyroute2: importing that costs the supervisor 14 MiB and 0.1 s for the
seven messages used here (the tests use it as their oracle).

Source: uapi/linux/netlink.h, rtnetlink.h, if_link.h, pkt_sched.h; netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, change."""
TRAFFIC = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, index, handle, parent, info."""

_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

NEW_LINK, DEL_LINK, GET_LINK = 16, 17, 18
NEW_QDISC, DEL_QDISC, GET_QDISC = 36, 37, 38
NEW_FILTER, DEL_FILTER, GET_FILTER = 44, 45, 46

F_REQUEST, F_ACK, F_EXCL, F_CREATE, F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_F_INTERRUPTED = 0x10
_F_ACK_ATTRIBUTES = 0x200
_ERROR, _DONE = 2, 3
_ERROR_TEXT = 1

GROUP_LINK = 1
"""Multicast group of RTM_NEWLINK and RTM_DELLINK, as the bit that bind() takes (RTMGRP_LINK)."""

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_RCVBUFFORCE = 33

RECEIVE_BYTES = 64 << 10
"""One read: the kernel fills a dump's messages up to 32 KiB."""

TIMEOUT_SECONDS = 5.0
"""The kernel answers at once, but for whoever else holds the lock of its tables."""

DUMP_ATTEMPTS = 5
"""A dump during which the table changed is asked for again; after that what came is taken as it is, and
the multicast that follows mends it."""


class Message(NamedTuple):
    """One message: its type, flags, sequence number and what follows the header."""

    kind: int
    flags: int
    sequence: int
    body: bytes


def split(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; stops at the first that does not fit."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield Message(kind, flags, sequence, data[at + HEADER.size : at + length])
        at += length + 3 & ~3


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Attributes by number from ``at`` on; stops at the first that does not fit."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def text(value: bytes | None) -> str:
    """A string attribute: up to its NUL; a name that is no UTF-8 gets replacement characters."""
    return (value or b"").partition(b"\0")[0].decode(errors="replace")


class Requests:
    """A socket for questions and orders, one at a time, each answered before the next."""

    def __init__(self) -> None:
        self._socket = _open(0)
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._sequence = 0

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        header = HEADER.pack(HEADER.size + len(body), kind, F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)
        return self._sequence

    def _answers(self, sequence: int) -> Iterator[Message]:
        while True:
            for message in split(self._socket.recv(RECEIVE_BYTES)):
                if message.sequence == sequence:  # else: what is left of a question that timed out
                    yield message

    def order(self, kind: int, flags: int, body: bytes) -> None:
        """Has the kernel do something; raises OSError when it refuses."""
        for message in self._answers(self._send(kind, F_ACK | flags, body)):
            if message.kind == _ERROR:
                _raise(message)
                return

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages of a table; raises OSError when the kernel refuses."""
        for _ in range(DUMP_ATTEMPTS):
            bodies: list[bytes] = []
            interrupted = False
            for message in self._answers(self._send(kind, F_DUMP, body)):
                interrupted |= bool(message.flags & _F_INTERRUPTED)
                if message.kind == _ERROR:
                    _raise(message)
                if message.kind in (_DONE, _ERROR):
                    break
                bodies.append(message.body)
            if not interrupted:
                break
        return bodies

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class Events:
    """A socket for what the kernel tells everybody. ``fileno()`` is readable when there is something."""

    def __init__(self, groups: int, buffer_bytes: int) -> None:
        self._socket = _open(groups)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def receive(self) -> list[Message] | None:
        """What has come, [] when nothing has, None when messages were lost (ENOBUFS, netlink(7))."""
        try:
            return list(split(self._socket.recv(RECEIVE_BYTES)))
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


def _open(groups: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    opened.bind((0, groups))
    for option in (_CAP_ACK, _EXT_ACK):
        opened.setsockopt(_SOL_NETLINK, option, 1)
    return opened


def _raise(message: Message) -> None:
    """Raises what an NLMSG_ERROR says; returns when it says that all is well."""
    number = -int.from_bytes(message.body[:4], "little", signed=True)
    if number == 0:
        return
    said = ""
    if message.flags & _F_ACK_ATTRIBUTES:
        said = text(attributes(message.body, 4 + HEADER.size).get(_ERROR_TEXT))
    raise OSError(number, f"{os.strerror(number)}{': ' + said if said else ''}")
