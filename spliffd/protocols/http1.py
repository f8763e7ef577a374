"""HTTP/1.1 as a spectator reads it: two byte streams in, finished exchanges out (RFC 9112).

``Http1`` takes the plaintext of both directions as it was captured, cut anywhere, and the losses between,
and returns exchanges as they finish. It does no I/O, reads no clock (``now`` comes with the bytes), never
raises on any input, and keeps no more than the beginning of one head a direction (``held``). Where bytes are
cut makes no difference to what comes out, times aside.

Below it: ``http1_reader`` goes through the bytes, ``http1_head`` reads heads, ``http1_chunked`` the chunked
coding, ``http1_search`` finds the next message when boundaries are lost, ``http1_pairing`` says
which response answers which request.

What happens where an endpoint would give up:

* garbage in place of a start line, a broken chunk, Content-Lengths that differ or are no numbers, a head
  beyond the limits: the message is marked ``truncated`` (its framing cannot be known) and the next plausible
  start line is looked for; bytes skipped count as ``garbage_bytes``.
* Transfer-Encoding and Content-Length together: Transfer-Encoding counts (RFC 9112 section 6.3, rule 3).
* a gap inside a body of known length, a chunk, or a body that lasts until close: reading goes on behind it,
  the exchange is marked ``gap``. A gap that hides where messages end: the message that it cut is marked and
  ends there, and the next plausible start line is looked for.
* messages that nobody wanted, and that were left out (``spare``): as with a gap that hides where messages
  end, but it is not known how much is missing.
* a connection that ends inside a message: ``aborted``; also where a body lasts until close but no
  close_notify came (RFC 9112 section 9.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spliffd.protocols import http1_stream as phase
from spliffd.protocols.http1_pairing import UNKNOWN, most_lost
from spliffd.protocols.http1_reader import REQUEST, RESPONSE, Reader
from spliffd.protocols.http1_stream import Stream
from spliffd.protocols.messages import ABORTED, COMPLETE, HttpExchange

__all__ = ["NOTHING", "REQUEST", "RESPONSE", "Http1"]

NOTHING: Final[Sequence[HttpExchange]] = ()


MAX_UNDER_WAY: Final = 64
"""Pipelining clients have tens of requests on their way; those behind have their turn later."""


class Http1(Reader):
    """One connection. ``joined``: its beginning was not seen.

    ``on_body(exchange, is_response, data)`` is handed body bytes in order, transfer coding removed; while it
    runs, ``body_size`` of the half is the offset of ``data`` (a gap makes it jump). It may be None, and be
    changed at any time.
    """

    def feed(self, direction: int, data: bytes, now: int) -> Sequence[HttpExchange]:
        """Takes the next bytes of a direction; returns the exchanges that they finished."""
        stream = self._streams[direction]
        size = len(data)
        stream.offset += size
        if stream.phase == phase.LENGTH and size < stream.remaining:
            # The record in the middle of a body, nearly all bytes of a download: nothing to decide.
            exchange, message = stream.current()
            if self.on_body is not None:
                self.on_body(exchange, stream.is_response, data)
            message.body_size += size
            message.end_ns = now
            stream.remaining -= size
            return NOTHING
        pos = 0
        if stream.buffer:
            if stream.phase < phase.TUNNEL:
                whole = stream.gather(data)
                if whole is None:
                    return NOTHING
                data = whole
        elif stream.phase == phase.HEAD and size:
            pos = self._read_head(stream, data, 0, now)
        if pos < len(data):
            self._run(stream, data, pos, now)
        if not self._out:
            return NOTHING
        out = self._out[:]
        self._out.clear()
        return out

    def gap(self, direction: int, size: int, now: int) -> Sequence[HttpExchange]:
        """``size`` bytes of the direction are lost here; returns the exchanges that this ended."""
        stream = self._streams[direction]
        if size <= 0 or stream.phase >= phase.TUNNEL:
            return NOTHING
        if stream.phase == phase.HOLD:
            self._release(now)
        self._gap(stream, size)
        stream.offset += size
        return self._finished()

    def body_left(self, direction: int) -> int:
        """Bytes that are left of a body of known length; 0 where none is being read."""
        stream = self._streams[direction]
        return stream.remaining if stream.phase == phase.LENGTH else 0

    def skip_body(self, direction: int, size: int, now: int) -> bool:
        """``size`` bytes of a body of known length, and not the last, did not come: nobody wanted them.

        Nothing is lost by that, unless somebody wants bodies by now. False: no such body is being read.
        """
        stream = self._streams[direction]
        if stream.phase != phase.LENGTH or size >= stream.remaining:
            return False
        exchange, message = stream.current()
        if self.on_body is not None:
            exchange.mark_gap(stream.offset, size)
        message.body_size += size
        message.end_ns = now
        stream.remaining -= size
        stream.offset += size
        return True

    def spare(self, direction: int, now: int) -> Sequence[HttpExchange]:
        """Some messages of the direction, nobody knows how many, were left out here: nobody wanted them."""
        stream = self._streams[direction]
        if stream.phase >= phase.TUNNEL:
            return NOTHING
        if stream.phase == phase.HOLD:
            self._release(now)
        if stream.message is not None or (
            stream.phase == phase.HEAD and self._begin_part(stream, stream.take())
        ):
            stream.current()[0].mark_gap(
                stream.offset, stream.remaining if stream.phase == phase.LENGTH else 0
            )
            self._end_message(stream)
        self.garbage_bytes += len(stream.take())
        self._lose(stream, UNKNOWN, 0)
        return self._finished()

    def eof(self, direction: int, now: int) -> Sequence[HttpExchange]:
        """The direction ended properly (close_notify); later bytes of it are garbage."""
        self._end_stream(self._streams[direction], clean=True, now=now)
        return self._finished()

    def close(self, now: int) -> Sequence[HttpExchange]:
        """The connection is gone: everything pending comes out, marked."""
        for stream in self._streams:
            self._end_stream(stream, clean=False, now=now)
        return self._finished()

    def under_way(self) -> Sequence[HttpExchange]:
        """Exchanges that are not finished, the oldest first; of very many the first."""
        current = self._streams[RESPONSE].exchange
        waiting = self.pairing.waiting
        if current is None and not waiting:
            return NOTHING
        found = [] if current is None else [current]
        for entry in waiting:
            if len(found) == MAX_UNDER_WAY:
                break
            if isinstance(entry, HttpExchange) and entry is not current:
                found.append(entry)
        return found

    def held(self) -> int:
        """Bytes kept: beginnings of heads, and what lies behind a request to switch protocols."""
        return len(self._streams[0].buffer) + len(self._streams[1].buffer)

    def take_rest(self, direction: int) -> bytes:
        """After ``upgraded``: the bytes of the direction that came behind the switch; handed out once."""
        return self._streams[direction].take() if self.upgraded else b""

    def _finished(self) -> Sequence[HttpExchange]:
        if not self._out:
            return NOTHING
        out = self._out[:]
        self._out.clear()
        return out

    # ---- losses and ends ----------------------------------------------------------------------

    def _gap(self, stream: Stream, size: int) -> None:
        at = stream.phase
        if at < phase.SEARCH and (stream.message is not None or self._begin_part(stream, stream.take())):
            exchange, message = stream.current()
            fits = at == phase.UNTIL_CLOSE or (
                at in (phase.LENGTH, phase.CHUNK_DATA) and size <= stream.remaining
            )
            known = stream.remaining if at == phase.LENGTH and not fits else size
            exchange.mark_gap(stream.offset, known)
            if fits or at == phase.LENGTH:
                message.body_size += known
                size -= known
                stream.remaining -= known  # without meaning in UNTIL_CLOSE
            if fits:
                if at == phase.CHUNK_DATA and not stream.remaining:
                    stream.phase = phase.CHUNK_END
                elif at == phase.LENGTH and not stream.remaining:
                    self._end_message(stream)
                return
            self._end_message(stream)
        self.garbage_bytes += len(stream.take())
        self._lose(stream, most_lost(size), 0)

    def _end_stream(self, stream: Stream, clean: bool, now: int) -> None:
        if stream.phase == phase.HOLD:
            self._release(now)
        if stream.phase < phase.TUNNEL:
            if stream.message is not None or (
                stream.phase == phase.HEAD and self._begin_part(stream, stream.take())
            ):
                if stream.phase == phase.LENGTH:
                    stream.current()[0].missing_bytes += stream.remaining
                self._cut(stream, COMPLETE if clean and stream.phase == phase.UNTIL_CLOSE else ABORTED)
            self.garbage_bytes += len(stream.take())
            self._end_interim(stream)
            stream.phase = phase.CLOSED
        if stream.is_response:
            self.pairing.end_responses()
        else:
            self.pairing.end_requests()
