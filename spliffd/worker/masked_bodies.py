"""One half's body on its way through the worker: decoded where that is needed to mask it, and masked.

Takes body bytes with their offsets as the parser finds them; returns runs to keep: (offset, bytes for all,
the same unmasked for those who may see secrets, where it differs). What is in a content coding and may hold
secrets is decoded, for secrets cannot be found in it otherwise: offsets then count decoded bytes, which
``HttpMessage.decoded_size`` tells. What cannot be decoded to its end (lost bytes, broken, a bomb) goes to
nobody from there on, and ``withheld`` counts it. Bodies of other types, and of codings that nobody here
knows, pass as they are.
"""

from __future__ import annotations

import re
from typing import Final

from spliffd.content.coding import Decoder, codings, is_known
from spliffd.protocols.mask_bodies import BodyMask, body_mask
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpMessage, text

MAX_DECODED: Final = 64 << 20
"""Decoded bytes of one body: 64 MiB of JSON takes half a second to decode and mask."""

MAX_RATIO: Final = 200
"""Decoded bytes for each one on the wire, beyond the first MiB: JSON reaches 50, bombs 1,000 and more."""

_FIELD: Final = re.compile(rb"^content-(type|encoding)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)

Run = tuple[int, bytes, bytes]


def content_of(message: HttpMessage) -> tuple[str, str]:
    """Content-Type and Content-Encoding, without reading a whole head for them."""
    block = message.block
    if block is None:  # read already
        return message.content_type, message.content_encoding
    if block.content is None:
        block.content = _content_of(message, block.lines)
    return block.content


def _content_of(message: HttpMessage, lines: bytes) -> tuple[str, str]:
    if lines[:1] in (b" ", b"\t") or b"\n " in lines or b"\n\t" in lines:  # folded
        return message.content_type, message.content_encoding
    kind = encoding = ""
    for name, value in _FIELD.findall(lines):
        if len(name) == 4:
            kind = text(value)
        else:
            encoding = text(value)
    return kind, encoding


class MaskedBody:
    """The state of one half. ``whole``: nothing of it is for those who may not see secrets."""

    def __init__(self, mask: BodyMask | None, decoder: Decoder | None, *, whole: bool, reveal: bool) -> None:
        self._mask = mask
        self._decoder = decoder
        self._whole = whole
        self._reveal = reveal
        self._next = 0
        """Offset on the wire of the next byte, when none is lost."""
        self._at = 0
        """Offset of the next byte that is handed out."""
        self._raw = b""
        """Unmasked bytes of what the mask holds back."""
        self._stopped = False
        self.withheld = 0
        """Bytes that are handed out to nobody."""

    @property
    def decodes(self) -> bool:
        """Whether offsets are those of decoded bytes."""
        return self._decoder is not None

    @property
    def decoded(self) -> int:
        """Decoded bytes; 0 when nothing is decoded here."""
        return 0 if self._decoder is None else self._decoder.size

    def feed(self, offset: int, data: bytes) -> list[Run]:
        """``data`` stands at ``offset`` of the body on the wire."""
        runs: list[Run] = []
        lost = offset != self._next
        self._next = offset + len(data)
        decoder = self._decoder
        if decoder is None:
            if lost:
                self._end_run(runs)
                self._at = offset
            self._pass(runs, data)
            return runs
        if lost or self._stopped:
            self._stopped = True
            self.withheld += len(data)
            return runs
        for piece in decoder.feed(data):
            self._pass(runs, piece)
        self._stopped = decoder.problem != ""
        return runs

    def finish(self) -> list[Run]:
        """The body is over, or given up: what was held back."""
        runs: list[Run] = []
        mask = self._mask
        if mask is not None:
            self._hand_out(runs, mask.feed(b"", True))
        return runs

    def _pass(self, runs: list[Run], data: bytes) -> None:
        mask = self._mask
        if self._reveal:
            self._raw += data
        if self._whole:
            self._hand_out(runs, b"", len(data))
        else:
            self._hand_out(runs, data if mask is None else mask.feed(data, False))

    def _end_run(self, runs: list[Run]) -> None:
        if self._mask is not None:
            self._hand_out(runs, self._mask.gap())

    def _hand_out(self, runs: list[Run], public: bytes, size: int = -1) -> None:
        size = len(public) if size < 0 else size
        raw = b""
        if self._reveal:
            raw, self._raw = self._raw[:size], self._raw[size:]
        if size:
            if public or raw:
                runs.append((self._at, public, b"" if raw == public else raw))
            else:
                self.withheld += size
            self._at += size


def masked_body(
    message: HttpMessage, first: bytes, masker: Masker, *, whole: bool, reveal: bool
) -> MaskedBody | None:
    """How the body of ``message``, which begins with ``first``, is treated; None: as it is."""
    if whole:
        return MaskedBody(None, None, whole=True, reveal=reveal)
    kind, encoding = content_of(message)
    coded = bool(encoding) and bool(codings(encoding)) and is_known(encoding)
    mask = body_mask(kind, b"{" if coded else first, masker)
    if mask is None:
        return None
    decoder = Decoder(encoding, max_size=MAX_DECODED, max_ratio=MAX_RATIO) if coded else None
    return MaskedBody(mask, decoder, whole=False, reveal=reveal)
