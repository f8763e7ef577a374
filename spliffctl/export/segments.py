"""Synthetic TCP: bytes of both directions of a connection as IP packets with its real addresses and ports.

Takes a connection of the contract, a direction and bytes; returns packets (IPv4 or IPv6 header, TCP header,
payload) without a link layer. Each stream opens with the three packets of a TCP handshake, so that readers
know who opened it, and counts sequence numbers from there; bytes that were not seen leave a gap in them.
Streams are kept in a bounded table: one that was forgotten opens anew, which readers take for a reused port.
Reads no clock, does no I/O. TCP is RFC 9293, IPv4 RFC 791, IPv6 RFC 8200.
"""

from __future__ import annotations

import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_STREAMS = 16_384
"""Connections whose sequence numbers are remembered, some 500 bytes each."""

MAX_PAYLOAD = 16_384
"""Payload of one packet: a TLS record's worth; IP allows 65,495."""

MAX_TUNNELS = 256
"""WebSockets within one HTTP/2 connection of which the stream is remembered."""

SYN, PSH, ACK = 0x02, 0x08, 0x10
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_TCP = struct.Struct(">HHIIBBHHH")
_TCP_PROTOCOL = 6
_WINDOW = 65535
_WRAP = 0xFFFFFFFF

Timed = tuple[int, bytes, str]
"""Time in ns, packet, comment."""


@dataclass(slots=True)
class Stream:
    """A connection: the ends, opener first, and how far each has sent."""

    ends: tuple[tuple[bytes, int], tuple[bytes, int]]
    sequence: list[int] = field(default_factory=lambda: [0, 0])
    """Next sequence number of opener and accepter."""
    offsets: list[int] = field(default_factory=lambda: [0, 0])
    """Where the next chunk begins in each direction, as the daemon counts."""
    prefaced: bool = False
    """Whether the HTTP/2 connection preface was written."""
    tunnels: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """HTTP/2 streams that are WebSockets, by the part key of their exchange."""

    def remember(self, part_key: int, stream_id: int) -> None:
        """Notes which stream the messages of an exchange belong to."""
        self.tunnels[part_key] = stream_id
        if len(self.tunnels) > MAX_TUNNELS:
            self.tunnels.popitem(last=False)

    def open(self, time_ns: int, comment: str) -> list[Timed]:
        """The three packets that open the connection."""
        packets = [
            (time_ns, self._packet(0, SYN, b""), comment),
            (time_ns, self._packet(1, SYN | ACK, b"", opening=True), ""),
        ]
        self.sequence = [1, 1]
        return [*packets, (time_ns, self._packet(0, ACK, b""), "")]

    def send(self, sender: int, time_ns: int, data: bytes, comment: str = "") -> list[Timed]:
        """Packets that carry ``data`` from ``sender`` (0: opener, 1: accepter)."""
        packets = []
        for at in range(0, len(data), MAX_PAYLOAD):
            piece = data[at : at + MAX_PAYLOAD]
            packets.append((time_ns, self._packet(sender, PSH | ACK, piece), "" if at else comment))
            self.skip(sender, len(piece))
        return packets

    def skip(self, sender: int, length: int) -> None:
        """Bytes that were sent but are not here."""
        self.sequence[sender] = (self.sequence[sender] + length) & _WRAP

    def _packet(self, sender: int, flags: int, data: bytes, *, opening: bool = False) -> bytes:
        (source, source_port), (target, target_port) = self.ends[sender], self.ends[1 - sender]
        acknowledged = 1 if opening else self.sequence[1 - sender] if flags & ACK else 0
        size = _TCP.size + len(data)

        def header(checksum: int) -> bytes:
            return _TCP.pack(
                *(source_port, target_port, self.sequence[sender], acknowledged),
                *(_TCP.size << 2, flags, _WINDOW, checksum, 0),
            )

        covered = source + target + struct.pack(">II", size, _TCP_PROTOCOL) + header(0) + data
        segment = header(_checksum(covered)) + data
        if len(source) == 16:
            return _IPV6.pack(6 << 28, size, _TCP_PROTOCOL, 64, source, target) + segment
        numbers = (0x45, 0, _IPV4.size + size, 0, 0, 64, _TCP_PROTOCOL)
        checksum = _checksum(_IPV4.pack(*numbers, 0, source, target))
        return _IPV4.pack(*numbers, checksum, source, target) + segment


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): a sum modulo 0xFFFF, which a division gives in one step."""
    rest = int.from_bytes(data + b"\0" if len(data) % 2 else data, "big") % 0xFFFF
    return 0xFFFF - rest


class Streams:
    """Streams by connection, the longest unused forgotten first."""

    def __init__(self, capacity: int = MAX_STREAMS) -> None:
        self._capacity = capacity
        self._streams: OrderedDict[tuple[object, ...], Stream] = OrderedDict()
        self._unknown = 0

    def of(self, connection: pb.Connection) -> tuple[Stream, bool]:
        """The stream of a connection, and whether it is new.

        Where the addresses are not known nothing tells connections apart: every call gives a new stream,
        from an address of 0.0.0.0/8 ("this network", RFC 791) that cannot be a host's.
        """
        local, remote = _end(connection.local), _end(connection.remote)
        if local is None or remote is None or len(local[0]) != len(remote[0]):
            self._unknown = self._unknown % 0xFFFFFF + 1
            return Stream(((self._unknown.to_bytes(4, "big"), 0), (bytes(4), 0))), True
        key = (connection.netns_cookie, connection.socket_cookie, local, remote)
        stream = self._streams.get(key)
        if stream:
            self._streams.move_to_end(key)
            return stream, False
        stream = Stream((remote, local) if connection.role == "server" else (local, remote))
        self._streams[key] = stream
        if len(self._streams) > self._capacity:
            self._streams.popitem(last=False)
        return stream, True


def _end(end: pb.Endpoint) -> tuple[bytes, int] | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, end.address), end.port & 0xFFFF
        except (OSError, ValueError):
            continue
    return None
