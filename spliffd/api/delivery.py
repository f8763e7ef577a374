"""One frame on its way to the watchers: serialised once, shared by all who get the same bytes.

Takes an ``ipc.Frame`` and, for an exchange, its id; returns entries of ``WatchResponse.items``. What
every watcher gets alike is built once; what depends on a watcher's wishes (bodies, limit, what it got
ahead as parts) is built once for each such combination and shared as well. What is secret is added only
for watchers who may see it (``reveal``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import DecodeError, Message

from spliffd import ipc
from spliffd.api import wire
from spliffd.api.mask import Mask
from spliffd.pb import spliff_pb2 as pb

KINDS: Final[dict[int, str]] = {
    ipc.EXCHANGE: "exchange",
    ipc.HANDSHAKE: "handshake",
    ipc.MESSAGE: "message",
    ipc.CHUNK: "chunk",
    ipc.BODY_PART: "body_part",
    ipc.PROGRESS: "progress",
}
"""Frame kinds to fields of ``Item``; losses take another way."""

MESSAGES: Final[dict[int, type[Message]]] = {
    ipc.EXCHANGE: pb.Exchange,
    ipc.HANDSHAKE: pb.Handshake,
    ipc.MESSAGE: pb.Message,
    ipc.CHUNK: pb.Chunk,
    ipc.BODY_PART: pb.Exchange,
    ipc.PROGRESS: pb.Exchange,
}
"""Of a body part the frame holds no message: what is asked of one is empty."""


class Variant(NamedTuple):
    """An entry ready to be sent, and how many body bytes are in it."""

    entry: bytes
    body_bytes: int


class Delivery:
    """A frame together with the entries made of it so far. Raises ValueError for a broken frame."""

    __slots__ = (
        "_data",
        "_head",
        "_masked",
        "_message",
        "_own",
        "_own_number",
        "_plain",
        "_summary",
        "_variants",
        "frame",
        "kind",
    )

    def __init__(self, frame: ipc.Frame, number: int = 0, own_number: int = 0) -> None:
        if not frame.summary or frame.kind not in KINDS:
            raise ValueError(f"a frame of kind {frame.kind} without a summary")
        self.frame = frame
        self.kind = frame.kind
        self._summary: ipc.Summary | None = None
        self._variants: dict[tuple[int, int, bool], Variant] | None = None
        self._plain: bytes | None = None
        self._message: Message | None = None
        self._masked: dict[tuple[bytes, tuple[str, ...]], bytes] | None = None
        self._own: Delivery | None = None
        self._own_number = own_number
        self._head: tuple[bytes, ...] = (frame.public,)
        self._data = b""
        if self.kind == ipc.EXCHANGE:
            self._head = (frame.public, wire.ID_TAG, wire.varint(number))
        elif self.kind == ipc.PROGRESS:
            self._head = wire.progress_pieces(frame.public)
        elif self.kind in (ipc.MESSAGE, ipc.CHUNK):
            # The payload counts as a body: whoever did not ask for bodies gets its size only.
            bare, inside = wire.split_field(frame.public, wire.DATA_FIELDS[KINDS[self.kind]])
            self._head = (bare,)
            self._data = inside or frame.request_body or frame.response_body

    @property
    def summary(self) -> ipc.Summary:
        """The few facts that filters need, taken apart when the first of them asks."""
        if self._summary is None:
            self._summary = ipc.summary_of(self.frame.summary)
        return self._summary

    def has_body(self, *, reveal: bool) -> bool:
        """Whether there are body bytes for such a watcher."""
        frame = self.frame
        if frame.request_body or frame.response_body or frame.withheld or self._data:
            return True
        return reveal and bool(frame.secret or frame.secret_request_body or frame.secret_response_body)

    @property
    def own(self) -> Delivery:
        """The same for watchers who may know of one user's processes only.

        Ids and part keys count what everybody does: theirs are the number among the exchanges of this user,
        and a keyed hash.
        """
        if self._own is None:
            frame = self.frame
            key = wire.hidden(frame.part_key) if frame.part_key else 0
            public = frame.public
            if self.kind in (ipc.EXCHANGE, ipc.PROGRESS) and key:
                public += wire.PART_KEY_TAG + wire.varint(key)
            elif self.kind == ipc.MESSAGE:
                public = wire.hide_exchange(public)
            copied = ipc.Frame(
                frame.kind,
                key,
                frame.summary,
                public,
                frame.secret,
                frame.request_body,
                frame.request_offset,
                frame.response_body,
                frame.response_offset,
                frame.secret_request_body,
                frame.secret_response_body,
                frame.withheld,
                frame.uid,
            )
            self._own = Delivery(copied, self._own_number)
        return self._own

    def masked(self, entry: bytes, mask: Mask) -> bytes:
        """The entry with the fields of ``mask`` only; made once for all watchers with the same."""
        key = (entry, mask.key)
        if self._masked is None:
            self._masked = {}
        found = self._masked.get(key)
        if found is None:
            found = self._masked[key] = mask.apply(entry)
        return found

    @property
    def message(self) -> Message:
        """The parsed message, without id and bodies: for filters that look at more than the summary."""
        if self._message is None:
            message = MESSAGES[self.kind]()
            try:
                message.MergeFromString(self.frame.public)
            except DecodeError:
                message = MESSAGES[self.kind]()  # then nothing is known but the summary
            self._message = message
        return self._message

    @property
    def plain(self) -> bytes:
        """The entry without any body and without secrets."""
        if self._plain is None:
            self._plain = wire.entry(KINDS[self.kind], *self._head)
        return self._plain

    def bare(self, *, reveal: bool) -> bytes:
        """The entry without any body."""
        if not (reveal and self.frame.secret):
            return self.plain
        head, _ = self._revealed()
        return wire.entry(KINDS[self.kind], *head)

    def with_bodies(self, limit: int, sent: int, *, reveal: bool = False) -> Variant:
        """The entry with bodies up to ``limit`` bytes each (0: whole).

        ``sent`` is how many bytes of this exchange's bodies the watcher got ahead as parts: what is
        neither there nor here is stated as ``completeness.body_not_sent``.
        """
        key = (limit, sent, reveal)
        if self._variants is None:
            self._variants = {}
        found = self._variants.get(key)
        if found is None:
            if self.kind == ipc.EXCHANGE:
                found = self._exchange(limit, sent, reveal=reveal)
            elif self.kind == ipc.BODY_PART:
                found = self._part(limit, reveal=reveal)
            else:
                known, data = self._revealed() if reveal and self.frame.secret else (self._head, self._data)
                data = data[:limit] if limit else data
                head = (wire.DATA_TAGS[KINDS[self.kind]], wire.varint(len(data)), data) if data else ()
                found = Variant(wire.entry(KINDS[self.kind], *known, *head), len(data))
            self._variants[key] = found
        return found

    def without_bodies(self, sent: int, *, reveal: bool = False) -> bytes:
        """The entry after its bodies were shed: the bytes that are not there are stated."""
        if self.kind != ipc.EXCHANGE:
            return self.bare(reveal=reveal)
        head, _ = self._revealed() if reveal else (self._head, b"")
        return wire.entry("exchange", *head, wire.not_sent_piece(max(0, self._known(0) - sent)))

    def _revealed(self) -> tuple[tuple[bytes, ...], bytes]:
        """The head with what is secret, and the payload of a message or chunk unmasked."""
        secret, data = self.frame.secret, self._data
        if self.kind in (ipc.MESSAGE, ipc.CHUNK):
            secret, inside = wire.split_field(secret, wire.DATA_FIELDS[KINDS[self.kind]])
            data = inside or data
        elif self.kind == ipc.PROGRESS:
            return (*self._head, *wire.progress_pieces(secret)), data
        return (*self._head, secret), data

    def _body(self, *, response: bool, reveal: bool) -> tuple[bytes, int]:
        """Bytes and offset of a half's body, as such a watcher may see them."""
        frame = self.frame
        if response:
            data = (reveal and frame.secret_response_body) or frame.response_body
            return data, frame.response_offset
        return (reveal and frame.secret_request_body) or frame.request_body, frame.request_offset

    def _exchange(self, limit: int, sent: int, *, reveal: bool) -> Variant:
        pieces = list(self._revealed()[0] if reveal else self._head)
        shown = 0
        for response in (False, True):
            data, offset = self._body(response=response, reveal=reveal)
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
        request = frame.request_offset + max(len(frame.request_body), len(frame.secret_request_body))
        response = frame.response_offset + max(len(frame.response_body), len(frame.secret_response_body))
        if not frame.part_key and not (limit and max(request, response) >= limit):
            return request + response + frame.withheld
        # Of bytes sent as parts the frame says nothing, and the worker stops at the largest limit that
        # anybody set: only the message itself knows how long the bodies were.
        message = _parsed(frame.public)
        total = max(request, _size(message.request)) + max(response, _size(message.response))
        # What capture missed is stated elsewhere (completeness.missing_bytes).
        return max(0, total + frame.withheld - message.completeness.missing_bytes)

    def _part(self, limit: int, *, reveal: bool) -> Variant:
        frame = self.frame
        response = bool(frame.response_body or frame.secret_response_body)
        data, offset = self._body(response=response, reveal=reveal)
        if limit:
            data = data[: max(0, limit - offset)]
        part = pb.BodyPart(part_key=frame.part_key, response=response, offset=offset, data=data)
        return Variant(wire.entry("body_part", part.SerializeToString()), len(data))


def _size(half: pb.Request | pb.Response) -> int:
    """Bytes of a body in the form in which it is sent: decoded, where the worker did that."""
    return half.decoded_size or half.body_size


def _parsed(public: bytes) -> pb.Exchange:
    try:
        return pb.Exchange.FromString(public)
    except DecodeError:
        return pb.Exchange()  # then the bytes at hand are all that is known of the size
