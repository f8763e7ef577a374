"""One frame on its way to the watchers: serialised once, shared by all who get the same bytes.

Takes an ``ipc.Frame`` and, for an exchange, its id; returns entries of ``WatchResponse.items``. What
every watcher gets alike is built once; what depends on a watcher's wishes (bodies, limit, what it got
ahead as parts) is built once for each such combination and shared as well. Never adds
``Frame.secret``: no role of this version may see secrets.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import DecodeError

from spliffd import ipc
from spliffd.api import wire
from spliffd.pb import spliff_pb2 as pb

KINDS: dict[int, str] = {
    ipc.EXCHANGE: "exchange",
    ipc.HANDSHAKE: "handshake",
    ipc.MESSAGE: "message",
    ipc.CHUNK: "chunk",
    ipc.BODY_PART: "body_part",
}
"""Frame kinds to fields of ``Item``; losses take another way."""


class Variant(NamedTuple):
    """An entry ready to be sent, and how many body bytes are in it."""

    entry: bytes
    body_bytes: int


class Delivery:
    """A frame together with the entries made of it so far. Raises ValueError for a broken frame."""

    __slots__ = ("_data", "_head", "_plain", "_variants", "frame", "has_body", "kind", "summary")

    def __init__(self, frame: ipc.Frame, number: int = 0) -> None:
        if frame.summary is None or frame.kind not in KINDS:
            raise ValueError(f"a frame of kind {frame.kind} without a summary")
        self.frame = frame
        self.kind = frame.kind
        self.summary: ipc.Summary = frame.summary
        self._variants: dict[tuple[int, int], Variant] = {}
        self._plain: bytes | None = None
        self._head: tuple[bytes, ...] = (frame.public,)
        self._data = b""
        self.has_body = bool(frame.request_body or frame.response_body)
        if self.kind == ipc.EXCHANGE:
            self._head = (frame.public, wire.ID_TAG, wire.varint(number))
        elif self.kind in (ipc.MESSAGE, ipc.CHUNK):
            # The payload counts as a body: whoever did not ask for bodies gets its size only.
            bare, inside = wire.split_field(frame.public, wire.DATA_FIELDS[KINDS[self.kind]])
            self._head = (bare,)
            self._data = inside or frame.request_body or frame.response_body
            self.has_body = bool(self._data)

    @property
    def plain(self) -> bytes:
        """The entry without any body."""
        if self._plain is None:
            self._plain = wire.entry(KINDS[self.kind], *self._head)
        return self._plain

    def with_bodies(self, limit: int, sent: int) -> Variant:
        """The entry with bodies up to ``limit`` bytes each (0: whole).

        ``sent`` is how many bytes of this exchange's bodies the watcher got ahead as parts: what is
        neither there nor here is stated as ``completeness.body_not_sent``.
        """
        key = (limit, sent)
        found = self._variants.get(key)
        if found is None:
            if self.kind == ipc.EXCHANGE:
                found = self._exchange(limit, sent)
            elif self.kind == ipc.BODY_PART:
                found = self._part(limit)
            else:
                data = self._data[:limit] if limit else self._data
                head = (wire.DATA_TAGS[KINDS[self.kind]], wire.varint(len(data)), data) if data else ()
                found = Variant(wire.entry(KINDS[self.kind], *self._head, *head), len(data))
            self._variants[key] = found
        return found

    def without_bodies(self, sent: int) -> bytes:
        """The entry after its bodies were shed: the bytes that are not there are stated."""
        if self.kind != ipc.EXCHANGE:
            return self.plain
        return wire.entry("exchange", *self._head, wire.not_sent_piece(max(0, self._known(0) - sent)))

    def _exchange(self, limit: int, sent: int) -> Variant:
        frame = self.frame
        pieces = list(self._head)
        shown = 0
        for response, data, offset in (
            (False, frame.request_body, frame.request_offset),
            (True, frame.response_body, frame.response_offset),
        ):
            part = data[: max(0, limit - offset)] if limit else data
            if part:
                pieces += wire.body_pieces(part, offset, response=response)
            shown += len(part)
        missing = self._known(limit) - shown - sent
        if missing > 0:
            pieces.append(wire.not_sent_piece(missing))
        return Variant(wire.entry("exchange", *pieces), shown)

    def _known(self, limit: int) -> int:
        """How many body bytes were seen of both halves."""
        frame = self.frame
        request = frame.request_offset + len(frame.request_body)
        response = frame.response_offset + len(frame.response_body)
        if not frame.part_key and not (limit and max(request, response) >= limit):
            return request + response
        # Of bytes sent as parts the frame says nothing, and the worker stops at the largest limit that
        # anybody set: only the message itself knows how long the bodies were.
        message = _parsed(frame.public)
        total = max(request, message.request.body_size) + max(response, message.response.body_size)
        # What capture missed is stated elsewhere (completeness.missing_bytes).
        return max(0, total - message.completeness.missing_bytes)

    def _part(self, limit: int) -> Variant:
        frame = self.frame
        response = bool(frame.response_body)
        data = frame.response_body if response else frame.request_body
        offset = frame.response_offset if response else frame.request_offset
        if limit:
            data = data[: max(0, limit - offset)]
        part = pb.BodyPart(part_key=frame.part_key, response=response, offset=offset, data=data)
        return Variant(wire.entry("body_part", part.SerializeToString()), len(data))


def _parsed(public: bytes) -> pb.Exchange:
    try:
        return pb.Exchange.FromString(public)
    except DecodeError:
        return pb.Exchange()  # then the bytes at hand are all that is known of the size
