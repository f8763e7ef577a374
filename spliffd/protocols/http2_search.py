"""Finds where frames begin again, when bytes of unknown meaning stand in the way.

Takes bytes of one direction and says from where on they are frames again. What it decides depends on the
bytes alone, never on how they were cut. Keeps at most twice SEARCH_KEEP; never raises.

Right behind a loss a frame often begins, because what is lost is whole records, and writers put whole frames
into them. There one plausible header is enough, of DATA only for an open stream. Anywhere else a candidate
must

* be followed by as many plausible headers, each where the last one's length says, as the reader wants
  before it trusts (``TRUSTED``), or
* be, or lead to, a HEADERS frame whose block begins with fields that only that direction sends, and
  decodes.

A chance of some 10^-7 per random position remains for the first rule; what reads on checks further headers
and searches again if they fail.
"""

from __future__ import annotations

import heapq
import re
from typing import Final

from spliffd.protocols import http2_frames as frames
from spliffd.protocols.hpack import Decoder
from spliffd.protocols.http2_frames import HEADER_SIZE, plausible, read_header
from spliffd.protocols.http2_table import StreamTable

MAX_TRIALS: Final = 16
"""Header blocks decoded on trial for one search: 1 ms each at worst. Then only rows of headers count."""
MAX_TRIAL: Final = 4096
"""Longest block decoded on trial; a client's first is 200 to 2,000 bytes, later ones are shorter."""
SEARCH_KEEP: Final = 64 * 1024
"""Most bytes kept for a decision: three frames of usual size. A row that is longer is no candidate."""
MAX_CANDIDATES: Final = 1024
"""Most candidates under consideration; text has none, other bytes one in some thousands."""

# Nine bytes that can be a frame header at all: usual length, type, its flags, reserved bit clear.
_CANDIDATE = re.compile(
    rb"(?=\x00[\x00-\x40][\x00-\xff](?:"
    rb"\x00[\x00\x01\x08\x09]|\x01[\x00\x01\x04\x05\x08\x09\x0c\x0d\x20\x21\x24\x25\x28\x29\x2c\x2d]|"
    rb"[\x02\x03\x07\x08]\x00|[\x04\x06][\x00\x01]|\x05[\x00\x04\x08\x0c]|\x09[\x00\x04]"
    rb")[\x00-\x7f][\x00-\xff]{3})"
)

# In place of the number of headers that fit.
_FRESH: Final = -1
_PREFACE: Final = -2
_TRIAL: Final = -3


def believable(
    streams: StreamTable, length: int, kind: int, flags: int, stream_id: int, *, is_response: bool
) -> bool:
    """Whether a peer would send this frame here. Zeros are common and must not look like frames."""
    if not plausible(length, kind, flags, stream_id, is_response=is_response):
        return False
    if kind == frames.DATA and not length and flags != frames.END_STREAM:
        return False  # of no use, or padding that is not there
    return not stream_id or streams.credible(stream_id, is_response=is_response)


class Search:
    """One search, from where frames were lost. Offsets count from the beginning of the direction."""

    __slots__ = (
        "_events",
        "_scanned",
        "_trials",
        "base",
        "buffer",
        "fresh",
        "is_response",
        "start",
        "streams",
    )

    def __init__(self, start: int, streams: StreamTable, *, is_response: bool, fresh: bool) -> None:
        self.start = start
        """Where it began."""
        self.streams = streams
        """Which streams there can be."""
        self.is_response = is_response
        self.fresh = fresh
        """Whether ``start`` stands right behind a loss, or where we joined."""
        self.buffer = bytearray()
        """Kept bytes, the first at ``base``."""
        self.base = start
        self._scanned = start
        self._trials = 0
        self._events: list[tuple[int, int, int, int]] = []
        """A heap of what can be decided once the bytes before an offset are there: that offset, where the
        candidate begins, where the header to look at begins, how many headers fit so far (or _TRIAL). So
        decisions come in the order of the bytes that they need, however those arrive."""
        if fresh:
            self._events.append((start + HEADER_SIZE, start, start, _FRESH))
            self._scanned += 1

    def feed(self, data: bytes) -> int:
        """Takes the next bytes; returns the offset of a frame (or of the client's preface), or -1."""
        buffer = self.buffer
        buffer += data
        end = self.base + len(buffer)
        for candidate in _CANDIDATE.finditer(buffer, max(0, self._scanned - self.base)):
            pos = self.base + candidate.start()
            found = self._decide(pos + HEADER_SIZE)
            if found >= 0:
                return found
            if len(self._events) < MAX_CANDIDATES:
                heapq.heappush(self._events, (pos + HEADER_SIZE, pos, pos, 0))
        found = self._decide(end)
        if found >= 0:
            return found
        self._scanned = max(self._scanned, end - HEADER_SIZE + 1)
        if not self._events:
            self._forget(self._scanned)
        elif len(buffer) > 2 * SEARCH_KEEP:
            self._forget(end - SEARCH_KEEP)
        return -1

    def _forget(self, before: int) -> None:
        if before > self.base:
            del self.buffer[: before - self.base]
            self.base = before

    def _decide(self, end: int) -> int:
        """Decides all that the bytes before ``end`` allow; returns the first frame found, or -1."""
        events = self._events
        while events and events[0][0] <= end:
            _, start, at, fitting = heapq.heappop(events)
            if fitting == _PREFACE:
                if self.buffer.startswith(frames.PREFACE, at - self.base):
                    return start
                continue
            length, kind, flags, stream_id = read_header(self.buffer, at - self.base)
            if fitting == _TRIAL:
                if self._try(at, length, flags):
                    # Rows that pass through a frame that is certain are certain too.
                    following = at + HEADER_SIZE + length
                    return min([start, *[event[1] for event in events if event[2] == following]])
                continue
            if fitting == _FRESH and self.buffer.startswith(frames.PREFACE[:HEADER_SIZE]):
                heapq.heappush(events, (start + len(frames.PREFACE), start, at, _PREFACE))
                continue
            if not believable(self.streams, length, kind, flags, stream_id, is_response=self.is_response):
                continue
            if fitting == frames.TRUSTED - 1 or (
                fitting == _FRESH and (kind != frames.DATA or stream_id in self.streams.open)
            ):
                return start
            following = at + HEADER_SIZE + length
            if following + HEADER_SIZE - start <= SEARCH_KEEP:
                heapq.heappush(events, (following + HEADER_SIZE, start, following, max(fitting, 0) + 1))
            if kind == frames.HEADERS and not fitting and flags & frames.END_HEADERS and length <= MAX_TRIAL:
                heapq.heappush(events, (following, start, at, _TRIAL))
        return -1

    def _try(self, at: int, length: int, flags: int) -> bool:
        self._trials += 1
        if self._trials > MAX_TRIALS:
            return False
        pos = at - self.base + HEADER_SIZE
        return is_head(
            strip_padding(bytes(self.buffer[pos : pos + length]), flags), is_response=self.is_response
        )


def strip_padding(payload: bytes, flags: int) -> bytes:
    """The fragment of a header block in a HEADERS payload (RFC 9113 section 6.2)."""
    start = 0
    end = len(payload)
    if flags & frames.PADDED and payload:
        end -= payload[0]
        start = 1
    if flags & frames.WITH_PRIORITY:
        start += 5
    return payload[start:end] if start < end else b""


def is_head(block: bytes, *, is_response: bool) -> bool:
    """Whether a block is a valid one and the beginning of a request or of a response."""
    decoder = Decoder(joined=True)
    fields = decoder.decode(block)
    if decoder.broken or not fields or fields[0][0][:1] not in (b":", b"("):
        return False
    wanted = b":status" if is_response else b":method"
    return any(name == wanted for name, _ in fields[:8])
