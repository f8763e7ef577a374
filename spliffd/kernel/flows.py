"""TCP connections as the kernel's programs keep them: struct flow of bpf/flows.h, read and swept.

Takes the fd of the ``flows`` map; returns ``Flow`` values by socket cookie. Workers look single ones up
by a read-only fd, the supervisor reads all of them for `spliffctl flows` and removes those that closed a
while ago: closing keeps an entry, so that the exchange that ended with it still finds it. Entries are made
by the programs only. Times are ktime (CLOCK_MONOTONIC) ns; the 32,768 entries of the map are least recently
used first out. The kernel does not count that, but what was made and is neither there nor removed was
evicted.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from spliffd.kernel import bpf

KEY_SIZE = 8
FLOW_SIZE = 384
HOPS = 4
"""Interfaces that one connection is followed over: container veth, bridge, tunnel, physical."""

# enum hook
HOOKS = ("NONE", "XDP", "TC")
# enum flow_flag
CLIENT_HELLO, MORE_HOPS, SEEDED, SHARED = 1, 2, 4, 8
# enum flow_state
CONNECTING, ESTABLISHED, CLOSED = range(3)

LINGER_NS = 10_000_000_000
"""How long a closed connection stays: the retry queue gives up after 50 ms, a busy worker after seconds."""

_FLOW = struct.Struct("=QQQQ16s16sHHBBBBIBBBBQQ")
_HOP = struct.Struct("=IIQQQQQ")
_USED_AT = 70
_HOPS_AT = 96
assert _FLOW.size == _HOPS_AT
_SIDE = struct.Struct("=QQQQIIIHH")
_SIDES_AT = _HOPS_AT + HOPS * _HOP.size
assert _SIDES_AT + 2 * _SIDE.size == FLOW_SIZE

_BATCH = 1024
_STEP = 64
"""Flows of one system call: 300 KB; a bucket of the kernel's hash holds a handful."""


class Hop(NamedTuple):
    """One interface that packets of a connection went through."""

    ifindex: int
    hook: int
    """1 XDP, 2 TC: an index of HOOKS."""
    packets_sent: int
    packets_received: int
    bytes_sent: int
    """As the interface sees them, headers included; GRO and TSO make one large packet of several."""
    bytes_received: int
    first_ns: int


class RecordSide(NamedTuple):
    """What the lengths of one direction's TLS records say, from the ClientHello on, as far as all are known.

    Of records of application data only: in TLS 1.3 all that are encrypted, the end of the handshake included.
    """

    walk: int
    """Where the next record begins, and more; 0: no ClientHello was seen."""
    size: int
    """Sum of their lengths, without the headers' five bytes."""
    flight_size: int
    """As much when the client began to encrypt; 0 for the client's own side."""
    first: int
    """Lengths of the first four behind that flight, 16 bits each, the first one lowest."""
    records: int
    flight_records: int
    last: int
    """Length of the last one."""
    begun: int
    """Whether the client has begun to encrypt."""
    client: int
    """Whether it is the client's."""


class Flow(NamedTuple):
    """One TCP connection of a socket in scope."""

    first_ns: int
    last_ns: int
    closed_ns: int
    """0 while the socket lives."""
    netns_cookie: int
    local: bytes
    """16 bytes; IPv4 in the first four. ``address`` makes text of it."""
    remote: bytes
    local_port: int
    remote_port: int
    family: int
    """4 or 6; IPv4-mapped IPv6 is IPv4."""
    role: int
    """1 client, 2 server: an index of records.ROLES; 0 for a seeded socket."""
    hops: tuple[Hop, ...]
    """In order of the first packet."""
    flags: int
    tgid: int
    """Who connected, or holds it; 0 where that is not known, or several do (SHARED)."""
    state: int
    tcp_sent: int
    """Bytes of the socket's whole life that the peer has acknowledged, as of the last change of state."""
    tcp_received: int
    plaintext: bool = False
    """Whether bytes of it passed a probe: some of what it carries is seen decrypted."""
    ktls: bool = False
    """Whether the kernel encrypts for it (setsockopt TCP_ULP "tls"), as of the last look, or its end."""
    sides: tuple[RecordSide, RecordSide] = (RecordSide(0, 0, 0, 0, 0, 0, 0, 0, 0),) * 2
    """Its TLS records: sent, received."""
    handshake: bool = False
    """Whether a probe saw it begin, which says nothing of the bytes."""

    @property
    def wire(self) -> str:
        """The hook that saw its first packet: XDP, TC, or NONE."""
        return HOOKS[self.hops[0].hook] if self.hops else HOOKS[0]


def address(raw: bytes, family: int) -> str:
    """An address of ``Flow`` as text."""
    return str(ipaddress.IPv4Address(raw[:4]) if family == 4 else ipaddress.IPv6Address(raw))


def unpack_hops(data: bytes | memoryview, used: int) -> tuple[Hop, ...]:
    """The hops of a struct flow; one that another processor is just taking (hook 0) is left out."""
    hops = (Hop._make(_HOP.unpack_from(data, _HOPS_AT + i * _HOP.size)) for i in range(min(used, HOPS)))
    return tuple(hop for hop in hops if 0 < hop.hook < len(HOOKS))


def unpack_sides(data: bytes | memoryview) -> tuple[RecordSide, RecordSide]:
    """The TLS records of a struct flow, as its packets showed them: sent, received."""
    unpack = _SIDE.unpack_from
    return RecordSide._make(unpack(data, _SIDES_AT)), RecordSide._make(unpack(data, _SIDES_AT + _SIDE.size))


class HopLookup:
    """Looks up where packets of a socket went, and nothing else of its flow: fit for every exchange."""

    def __init__(self, fd: int) -> None:
        self._look = bpf.Lookup(fd, FLOW_SIZE)

    def __call__(self, cookie: int) -> tuple[Hop, ...]:
        """The hops of a socket's flow; none where no packet was seen. Raises OSError where refused."""
        look = self._look
        if not look(cookie):
            return ()
        value = look.value
        return unpack_hops(value, value[_USED_AT])

    def sides(self) -> tuple[RecordSide, RecordSide]:
        """The TLS records of what was looked up last."""
        return unpack_sides(self._look.value)


def unpack_flow(data: bytes) -> Flow:
    """Decodes a struct flow; any FLOW_SIZE bytes give a result, fewer raise struct.error."""
    (
        first, received, closed, netns, local, remote, local_port, remote_port, family, role, used, flags,
        tgid, state, plaintext, ktls, handshake, sent, last,
    ) = _FLOW.unpack_from(data)  # fmt: skip
    return Flow(
        first, last, closed, netns, local, remote, local_port, remote_port, family, role,
        unpack_hops(data, used), flags, tgid, state, sent, received, bool(plaintext), bool(ktls),
        unpack_sides(data), bool(handshake),
    )  # fmt: skip


def look_up(fd: int, cookie: int) -> Flow | None:
    """The flow of a socket cookie, None when there is none; raises OSError where looking is refused."""
    data = bpf.map_lookup(fd, cookie.to_bytes(KEY_SIZE, "little"), FLOW_SIZE)
    return None if data is None else unpack_flow(data)


def read_flows(fd: int) -> list[tuple[int, Flow]]:
    """All flows by cookie, closed ones included. Those that come or go meanwhile may be missing."""
    found: dict[int, Flow] = {}
    for some in _read_flows(fd, _BATCH):
        found.update(some)
    return list(found.items())


def _read_flows(fd: int, at_a_time: int) -> Iterator[Iterable[tuple[int, Flow]]]:
    after = b""
    while True:
        entries, after = bpf.map_lookup_batch(fd, after, KEY_SIZE, FLOW_SIZE, _BATCH)
        for at in range(0, len(entries), at_a_time):
            some = entries[at : at + at_a_time]
            yield ((int.from_bytes(key, "little"), unpack_flow(data)) for key, data in some)
        if not after:
            return


class Swept(NamedTuple):
    """What a look over all flows found."""

    removed: int
    """Closed ones that were removed, in all."""
    evicted: int
    """Those that had to give way to others because the map was full, in all."""


Looked = Callable[[Sequence[tuple[int, Flow]], Collection[int]], None]


class Sweeper:
    """Removes what closed over LINGER_NS ago, and finds out what the kernel evicted.

    ``looked`` is told of flows by cookie, and of those among them that are removed now: first all that stay,
    then the others, some at a time.

    Costs nothing while nothing closes: the map is read only when the kernel's counters say that something
    closed, or that it may have filled up.
    """

    def __init__(self, fd: int, room: int, looked: Looked = lambda _flows, _over: None) -> None:
        self._fd = fd
        self._room = room
        self._looked = looked
        self._seen = (0, 0)
        self._waiting = False
        self.swept = Swept(0, 0)
        """What was found so far."""

    def sweep(self, made: int, closed: int, now_ns: int) -> Swept:
        """Removes what closed over LINGER_NS before ``now_ns`` (CLOCK_MONOTONIC); raises OSError.

        ``made`` and ``closed`` are the kernel's counters ``flows_made`` and ``sockets_closed``, just read.
        """
        for _ in self.steps(made, closed, now_ns):
            pass
        return self.swept

    def steps(self, made: int, closed: int, now_ns: int) -> Iterator[None]:
        """The same a step at a time, each a millisecond, for whoever has other things to do between them."""
        filled = made - self._seen[0] > self._room // 2
        if closed == self._seen[1] and not self._waiting and not filled:
            return
        self._seen = (made, closed)
        found: dict[int, Flow] = {}
        for some in _read_flows(self._fd, _STEP):
            found.update(some)
            yield
        flows = list(found.items())
        over = [cookie for cookie, flow in flows if flow.closed_ns and now_ns - flow.closed_ns > LINGER_NS]
        staying = set(found).difference(over)
        self._looked([(cookie, found[cookie]) for cookie in staying], ())
        for at in range(0, len(over), _STEP):
            # Told and removed at once: nobody who looks in between finds a flow twice.
            step = over[at : at + _STEP]
            self._looked([(cookie, found[cookie]) for cookie in step], step)
            for cookie in step:
                bpf.map_delete(self._fd, cookie.to_bytes(KEY_SIZE, "little"))
            yield
        removed, present = self.swept.removed + len(over), len(flows) - len(over)
        self._waiting = any(found[cookie].closed_ns for cookie in staying)
        # Those made since the counter was read hide as many evictions until the next time.
        evicted = max(self.swept.evicted, made - removed - present)
        self.swept = Swept(removed, evicted)
