"""Packet programs on an interface: XDP links, TCX links, and clsact filters where TCX is missing.

Takes program fds and interface indices; a refusal is an ``OSError``. Links vanish with their fd. A clsact
filter does not, so ours carry the daemon's *token* in their name: a later daemon sees that nobody holds the
token any more and takes them away. Other tools' programs, filters and qdiscs are never replaced or removed.

Everything here may wait for the kernel's interface lock, and a TCX link for an RCU grace period on top
(8 ms each on the development machine): not for an event loop.
Source: kernel/bpf/tcx.c, net/core/dev.c (dev_xdp_attach), net/sched/cls_bpf.c; uapi/linux/pkt_cls.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import secrets
import socket
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from spliffd.kernel import bpf, rtnetlink

_Whose = Callable[[str], bool]

_LINK_UPDATE = 29
_XDP_GENERIC, _XDP_NATIVE = 1 << 1, 1 << 2
_BEFORE = 1 << 3
"""BPF_F_BEFORE with no one named: first in the list. A program of another tool that ends the list
(TCX_PASS, a redirect) would otherwise hide packets from us; ours always lets the next one have its say."""

_NEXT = bytes.fromhex("b4000000ffffffff9500000000000000")
"""mov32 r0, -1 (TCX_NEXT); exit"""

_CLSACT, INGRESS, EGRESS = 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_QDISC_HANDLE = 0xFFFF0000
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1
_ALL_PROTOCOLS = socket.htons(3)

_PREFERENCES = (1, 2, 3, 4)
"""Places in the list of filters, first to last: one that is taken by a filter of another kind or protocol
cannot be shared. Where all are, the tool that holds them wants to be asked first, and the attach fails."""

_NAME = re.compile(r"spliff_([0-9a-f]{8})_(?:in|out)(q?)")
"""Name of our filters: token, direction, and q when the qdisc was made by the same daemon."""


def xdp_link(prog_fd: int, index: int, *, generic: bool) -> int:
    """XDP in the driver, or generic. EBUSY, EEXIST: another program has it; else the driver's refusal."""
    return bpf.link_create(prog_fd, index, bpf.ATTACH_XDP, flags=_XDP_GENERIC if generic else _XDP_NATIVE)


def tcx_link(prog_fd: int, index: int, *, egress: bool) -> int:
    """TC without a qdisc (6.6), ahead of others. EINVAL: this kernel has no TCX."""
    where = bpf.ATTACH_TCX_EGRESS if egress else bpf.ATTACH_TCX_INGRESS
    return bpf.link_create(prog_fd, index, where, flags=_BEFORE)


def update(link: int, prog_fd: int) -> None:
    """Puts another program into a link, in place and at once."""
    attr = bytearray(bpf.ATTR_BYTES)
    struct.pack_into("=II", attr, 0, link, prog_fd)
    bpf.call(_LINK_UPDATE, attr)


def interface(link: int) -> int:
    """Index of the interface that an XDP or TCX link is attached to; 0 when that interface is gone."""
    info = ctypes.create_string_buffer(24)  # struct bpf_link_info: type, id, prog_id, pad, ifindex, ...
    attr = bytearray(bpf.ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, link, len(info), ctypes.addressof(info))
    bpf.call(bpf.OBJ_GET_INFO, attr)
    return int(struct.unpack_from("=I", info.raw, 16)[0])


def tcx_placeholder() -> int:
    """A program that lets everything pass: what a TCX link may hold until its place is to be taken."""
    return bpf.prog_load(bpf.PROG_SCHED_CLS, _NEXT, "spliff_hold", 0)


def has_tcx(prog_fd: int) -> bool:
    """Whether the kernel knows TCX links (6.6), asked by way of an interface that cannot be.

    Raises PermissionError where links to interfaces are refused altogether.
    """
    try:
        bpf.link_create(prog_fd, 0x7FFFFFFF, bpf.ATTACH_TCX_INGRESS)
    except PermissionError:
        raise
    except OSError as error:
        return error.errno == errno.ENODEV
    return True


class Filter(NamedTuple):
    """One cls_bpf filter, by what names it to the kernel."""

    ifindex: int
    parent: int
    info: int
    """Preference and protocol."""
    handle: int
    name: str


class Token:
    """Says that this daemon lives, to whoever finds its filters: an abstract socket of that name.

    Abstract sockets belong to a network namespace, as filters do, and go with their process.
    """

    def __init__(self) -> None:
        self.text = secrets.token_hex(4)
        self._socket = _claim(self.text)

    def close(self) -> None:
        """Lets go of it."""
        if self._socket is not None:
            self._socket.close()


def _claim(token: str) -> socket.socket | None:
    """Binds the token's name; None when somebody has it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0spliff-{token}")
    except OSError:
        held.close()
        return None
    return held


def _is_held(token: str) -> bool:
    held = _claim(token)
    if held is None:
        return True
    held.close()
    return False


class Clsact:
    """Filters on clsact qdiscs, of this daemon and of dead ones."""

    def __init__(self, requests: rtnetlink.Requests, token: str) -> None:
        self._requests = requests
        self._token = token

    def attach(self, index: int, ingress_fd: int | None, egress_fd: int | None) -> str:
        """Adds our filters; returns what is missing ("" when nothing is). Raises OSError."""
        made = True
        body = _traffic(index, _QDISC_HANDLE, _CLSACT, 0) + _string(_KIND, "clsact")
        try:
            self._requests.order(rtnetlink.NEW_QDISC, rtnetlink.F_CREATE | rtnetlink.F_EXCL, body)
        except FileExistsError:
            made = False
            # On an "ingress" qdisc a filter for egress would land on ingress (sch_ingress.c).
            if self._qdisc(index) == "ingress":
                if ingress_fd is not None:
                    self._add(index, INGRESS, ingress_fd, made=False)
                return "another tool's ingress qdisc: sent packets unseen"
        try:
            if ingress_fd is not None:
                self._add(index, INGRESS, ingress_fd, made=made)
            if egress_fd is not None:
                self._add(index, EGRESS, egress_fd, made=made)
        except OSError:
            with contextlib.suppress(OSError):
                self.detach(index)
            raise
        return ""

    def _add(self, index: int, parent: int, prog_fd: int, *, made: bool) -> None:
        name = f"spliff_{self._token}_{'in' if parent == INGRESS else 'out'}{'q' if made else ''}"
        options = (
            rtnetlink.attribute(_BPF_FD, prog_fd.to_bytes(4, sys.byteorder))
            + _string(_BPF_NAME, name)
            + rtnetlink.attribute(_BPF_FLAGS, _DIRECT_ACTION.to_bytes(4, sys.byteorder))
        )
        rest = _string(_KIND, "bpf") + rtnetlink.attribute(_OPTIONS, options)
        for preference in _PREFERENCES:
            body = _traffic(index, 0, parent, preference << 16 | _ALL_PROTOCOLS) + rest
            try:
                self._requests.order(rtnetlink.NEW_FILTER, rtnetlink.F_CREATE | rtnetlink.F_EXCL, body)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EEXIST) or preference == _PREFERENCES[-1]:
                    raise

    def is_attached(self, index: int) -> bool:
        """Whether filters of ours are there."""
        return any(_owner(one.name) == self._token for one in self._filters(index))

    def detach(self, index: int, parents: tuple[int, ...] = (INGRESS, EGRESS)) -> None:
        """Removes this daemon's filters, and the qdisc if it is ours and nobody else uses it."""
        self._remove(index, lambda token: token == self._token, parents)

    def sweep(self) -> int:
        """Removes what dead daemons left on any interface; returns how many filters."""
        removed = 0
        for body in self._requests.dump(rtnetlink.GET_QDISC, _traffic(0, 0, 0, 0)):
            kind = rtnetlink.text(rtnetlink.attributes(body, rtnetlink.TRAFFIC.size).get(_KIND))
            if kind in ("clsact", "ingress"):
                index = rtnetlink.TRAFFIC.unpack_from(body)[1]
                with contextlib.suppress(OSError):  # it vanished meanwhile
                    removed += self._remove(index, lambda token: not _is_held(token))
        return removed

    def _remove(self, index: int, whose: _Whose, parents: tuple[int, ...] = (INGRESS, EGRESS)) -> int:
        ours = [
            one
            for one in self._filters(index)
            if one.parent in parents and (token := _owner(one.name)) and whose(token)
        ]
        for one in ours:
            body = _traffic(index, one.handle, one.parent, one.info) + _string(_KIND, "bpf")
            with contextlib.suppress(FileNotFoundError):
                self._requests.order(rtnetlink.DEL_FILTER, 0, body)
        if any(one.name.endswith("q") for one in ours) and not self._filters(index):
            self._requests.order(
                rtnetlink.DEL_QDISC, 0, _traffic(index, _QDISC_HANDLE, _CLSACT, 0) + _string(_KIND, "clsact")
            )
        return len(ours)

    def _qdisc(self, index: int) -> str:
        """Kind of the qdisc that stands where clsact does; "" when there is none."""
        for body in self._requests.dump(rtnetlink.GET_QDISC, _traffic(index, 0, 0, 0)):
            _, at, handle, _, _ = rtnetlink.TRAFFIC.unpack_from(body)
            if at == index and handle == _QDISC_HANDLE:
                return rtnetlink.text(rtnetlink.attributes(body, rtnetlink.TRAFFIC.size).get(_KIND))
        return ""

    def _filters(self, index: int) -> list[Filter]:
        """All filters on both sides of the interface, other tools' included."""
        found = []
        for parent in (INGRESS, EGRESS):
            try:
                bodies = self._requests.dump(rtnetlink.GET_FILTER, _traffic(index, 0, parent, 0))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                    continue  # no such qdisc
                raise
            for body in bodies:
                _, _, handle, _, info = rtnetlink.TRAFFIC.unpack_from(body)
                read = rtnetlink.attributes(body, rtnetlink.TRAFFIC.size)
                options = rtnetlink.attributes(read.get(_OPTIONS, b""))
                # The first message of a preference tells of the list itself: no options, handle 0.
                name = rtnetlink.text(options.get(_BPF_NAME)) if handle else ""
                found.append(Filter(index, parent, info, handle, name))
        return found


def _owner(name: str) -> str:
    """The token in the name of a filter of ours; "" for other tools' filters."""
    match = _NAME.fullmatch(name)
    return match[1] if match else ""


def _traffic(index: int, handle: int, parent: int, info: int) -> bytes:
    return rtnetlink.TRAFFIC.pack(0, index, handle, parent, info)


def _string(kind: int, value: str) -> bytes:
    return rtnetlink.attribute(kind, value.encode() + b"\0")
