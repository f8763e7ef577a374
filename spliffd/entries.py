"""Exchanges on their way from a worker to all watchers at once: written ready to be sent, numbered in place.

``Writer`` (the worker's side) takes serialised exchanges that every watcher gets alike; returns an
``ipc.Exchanges``, in which each is a whole entry of ``WatchResponse.items`` with room for its id. ``Entries``
(the api's side) takes that, writes the ids into the room, and gives single ones of them to whoever chooses.
The id is the last field of an entry and a varint of always ID_BYTES, so that giving one costs a store;
protobuf allows varints to be longer than they must (protobuf.dev, "Encoding"). Never takes an exchange apart.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate
from typing import Final, Literal

from spliffd import ipc
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.protobuf import Field, varint

ID_BYTES: Final = 7
"""49 bits: three hundred years at 50,000 exchanges/s."""


def _padded(value: int, size: int) -> bytes:
    """A varint of ``size`` bytes."""
    low = [value >> 7 * place & 127 | 128 for place in range(size - 1)]
    return bytes([*low, value >> 7 * (size - 1)])


_ITEMS: Final = Field(pb.WatchResponse, "items").tag
_EXCHANGE: Final = Field(pb.Item, "exchange").tag
_ID: Final = Field(pb.Exchange, "id").tag

BLANK: Final = _ID + _padded(0, ID_BYTES)
"""What ends every entry, before it has its id."""

_KNOWN: Final = 2048
"""Exchanges shorter than this have their head from a table (120 KiB): nearly all."""


def _head(size: int) -> bytes:
    size += len(BLANK)
    inner = _EXCHANGE + varint(size)
    return _ITEMS + varint(len(inner) + size) + inner


_HEADS: Final = [_head(size) for size in range(_KNOWN)]
_SHORTEST: Final = len(_head(0)) + len(BLANK)


def _content_size(size: int) -> int:
    """Bytes behind an entry's head, from the length of the whole entry: found without looking at any byte."""
    size -= len(_ITEMS)
    size -= _size_of_length(size)
    size -= len(_EXCHANGE)
    return size - _size_of_length(size)


def _size_of_length(size: int) -> int:
    """Bytes of the length that stands before the rest of ``size`` bytes, which it is part of."""
    for more in range(1, 5):
        if size - more < 1 << 7 * more:
            return more
    return 5


_PUT: Final = struct.Struct("<HIB").pack_into
_NO_SUMMARY: Final = ipc.encode(ipc.UNKNOWN)


class Writer:
    """Collects exchanges; ``take`` gives what was collected and begins anew."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ends: list[int] = []
        self._at = 0
        self._connections: dict[bytes, int] = {}
        self._uids: list[int] = []
        self._of: list[int] = []
        self._told: list[bytes] = []
        self._told_ends: list[int] = []
        self._told_at = 0

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, public: bytes, connection: bytes, rest: bytes, uid: int) -> None:
        """``public`` as of an ``ipc.Frame``; its summary is ``connection`` and then ``rest``.

        Exchanges of one connection have the same ``connection``, and so the same ``uid``.
        """
        size = len(public)
        head = _HEADS[size] if size < _KNOWN else _head(size)
        self._pieces += (head, public, BLANK)
        self._at += len(head) + size + len(BLANK)
        self._ends.append(self._at)
        place = self._connections.get(connection)
        if place is None:
            place = self._connections[connection] = len(self._uids)
            self._uids.append(uid)
        self._of.append(place)
        self._told.append(rest)
        self._told_at += len(rest)
        self._told_ends.append(self._told_at)

    def take(self) -> ipc.Exchanges:
        """All that were added since the last time."""
        connections = list(self._connections)
        told = ipc.Exchanges(
            memoryview(b"".join(self._pieces)),
            array("I", self._ends).tobytes(),
            b"".join(connections),
            array("I", accumulate(map(len, connections))).tobytes(),
            array("q", self._uids).tobytes(),
            array("I", self._of).tobytes(),
            b"".join(self._told),
            array("I", self._told_ends).tobytes(),
        )
        self._pieces.clear()
        self._ends.clear()
        self._connections.clear()
        self._uids.clear()
        self._of.clear()
        self._told.clear()
        self._told_ends.clear()
        self._at = self._told_at = 0
        return told


def _numbers(kind: Literal["I", "q"], data: bytes) -> array[int]:
    numbers = array(kind)
    numbers.frombytes(data)
    return numbers


class Entries:
    """Exchanges with their ids, from ``first`` on. Raises ValueError for what no Writer has written."""

    __slots__ = (
        "_connection_uids",
        "_summaries",
        "_tails",
        "_tails_ends",
        "connections",
        "data",
        "ends",
        "first",
        "of",
    )

    def __init__(self, told: ipc.Exchanges, first: int) -> None:
        self.data = bytearray(told.entries)
        """To be sent as it is; nobody changes it any more."""
        self.ends = _numbers("I", told.ends)
        self.first = first
        self.connections = _pieces(told.connections, _numbers("I", told.connection_ends))
        """What summaries of the connections' exchanges begin with."""
        self._connection_uids = _numbers("q", told.uids)
        self.of = _numbers("I", told.of)
        """For each exchange the place of its connection in ``connections``."""
        self._tails = told.summaries
        self._tails_ends = told.summary_ends
        self._summaries: dict[int, ipc.Summary] | None = None
        count = len(self.ends)
        if len(self._connection_uids) != len(self.connections):
            raise ValueError("users are missing")
        if len(self.of) != count or max(self.of, default=-1) >= len(self.connections):
            raise ValueError("connections are missing")
        if len(self.connections) > count:
            raise ValueError("more connections than exchanges")  # history counts what it holds by exchanges
        if len(self._tails_ends) != 4 * count:
            raise ValueError("summaries are missing")
        self._number()

    def _number(self) -> None:
        data, before, number = self.data, 0, self.first
        high = four = last = -1
        for end in self.ends:
            if end < before + _SHORTEST or end > len(data):
                raise ValueError("an entry ends where it cannot")
            if number >> 14 != high:
                high = number >> 14
                more = _padded(high, ID_BYTES - 2)
                four, last = int.from_bytes(more[:4], "little"), more[4]
            low = number & 127 | 128 | (number >> 7 & 127 | 128) << 8
            _PUT(data, end - ID_BYTES, low, four, last)
            before = end
            number += 1
        if before != len(data):
            raise ValueError("bytes behind the last entry")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def summary_bytes(self) -> int:
        """Of all of them together."""
        return sum(map(len, self.connections)) + len(self._tails)

    @property
    def uids(self) -> list[int]:
        """Whose they are."""
        uids = self._connection_uids
        return [uids[place] for place in self.of]

    def entry(self, index: int) -> bytes:
        """One of them as it is sent."""
        return bytes(self.slice(index, index + 1))

    def slice(self, start: int, end: int) -> bytearray:
        """Some that follow one another as they are sent; not to be changed."""
        if end - start == len(self.ends):
            return self.data
        return self.data[self.ends[start - 1] if start else 0 : self.ends[end - 1]]

    def summary(self, index: int) -> ipc.Summary:
        """What filters need of one; taken apart when the first of them asks, and kept until ``forget``."""
        if self._summaries is None:
            self._summaries = {}
        found = self._summaries.get(index)
        if found is None:
            found = self._summaries[index] = ipc.summary_of(self._summary(index))
        return found

    def forget(self) -> None:
        """Every filter has asked: what it asked for is larger than all the rest."""
        self._summaries = None

    def frame(self, index: int) -> ipc.Frame:
        """One of them as a worker sends what is not alike."""
        start, end = self.ends[index - 1] if index else 0, self.ends[index]
        public = bytes(self.data[end - _content_size(end - start) : end - len(BLANK)])
        uid = self._connection_uids[self.of[index]]
        return ipc.Frame(ipc.EXCHANGE, 0, self._summary(index), public, uid=uid)

    def _summary(self, index: int) -> bytes:
        (end,) = _END(self._tails_ends, 4 * index)
        start = _END(self._tails_ends, 4 * index - 4)[0] if index else 0
        # Only a worker that lies has none.
        return self.connections[self.of[index]] + _between(self._tails, start, end) or _NO_SUMMARY


def _pieces(joined: bytes, ends: array[int]) -> list[bytes]:
    start = 0
    found: list[bytes] = []
    for end in ends:
        found.append(_between(joined, start, end))
        start = end
    return found


def _between(data: bytes, start: int, end: int) -> bytes:
    """A slice. Ends that cannot be are asked about first: a compiled module raises SystemError for them."""
    return data[start:end] if start < end else b""


_END: Final = struct.Struct("=I").unpack_from
