"""Which response answers which request of an HTTP/1.1 connection, also when bytes of it are lost.

Takes "a request starts", "a response starts" and "messages may be lost here"; returns the exchange that
the message belongs to. Requests are answered in their order (RFC 9112 section 9.3.2), so without losses
the oldest waiting request is always right. The rules for the rest, never to pair wrongly where it can be
known:

1. A response without a waiting request is *early*: the thread that read it was faster than the one that
   wrote the request. It is held for the next request, until a second one comes, requests turn out lost, or
   their direction ends; then it comes out as request_missing. Behind a loss of responses none is held.
2. Requests lost in a gap leave a mark in the queue, with the number that can have been in it. Requests from
   before it keep their turn, because the responses are complete. Then, while no request waits behind the
   mark, each response answers a lost one: request_missing.
3. A client that does not pipeline sends a request only after it has all responses to earlier ones. So
   behind any loss, the first response that starts after a request started answers exactly that request:
   pairing is certain again, and requests waiting before it lost their responses: response_missing.
4. A client that pipelines (seen without losses: one request waited behind another) or of which more
   requests wait than a loss can explain gives no such evidence. Then nothing of the connection is paired
   any more: request_missing and response_missing, counted in ``unpaired``.

What cannot be known: a pipelining client whose very first responses are lost looks like rule 3.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from spliffd.protocols.messages import (
    JOINED_MID_STREAM,
    REQUEST_MISSING,
    RESPONSE_MISSING,
    HttpExchange,
    HttpRequest,
)

MAX_WAITING: Final = 1024
"""Most requests without a response; pipelining clients stop at some tens. Beyond it the oldest comes out."""
MIN_MESSAGE: Final = 14
"""Bytes of the shortest message: ``HTTP/1.1 200`` and two bare LF."""
UNKNOWN: Final = 1 << 62
"""Any number of messages may be lost."""


def most_lost(size: int) -> int:
    """How many messages a gap of ``size`` bytes can hide: one cut at each end, short ones between."""
    return 2 + size // MIN_MESSAGE


class Lost:
    """A mark among the waiting requests: up to ``count`` requests are missing here."""

    __slots__ = ("count", "state")

    def __init__(self, count: int, state: str) -> None:
        self.count = count
        self.state = state


class Pairing:
    """The queue of requests that wait for their responses."""

    __slots__ = (
        "_lost_answers",
        "_out",
        "_overflowed",
        "_requests_ended",
        "early",
        "overflows",
        "pipelined",
        "unpaired",
        "waiting",
    )

    def __init__(self, out: list[HttpExchange], joined: bool) -> None:
        self._out = out
        """Finished exchanges go here."""
        self._lost_answers = 0
        """Responses that may be lost since the last one that was paired."""
        self._overflowed = 0
        """Requests that came out for want of room; their responses are still to come, first."""
        self._requests_ended = False
        self.waiting: deque[HttpExchange | Lost] = deque()
        self.early: HttpExchange | None = None
        """A response that has no request yet."""
        self.pipelined = False
        self.unpaired = False
        """Nothing is paired any more (rule 4), or no response can come any more."""
        self.overflows = 0
        if joined:
            self.waiting.append(Lost(UNKNOWN, JOINED_MID_STREAM))

    def request(self, request: HttpRequest | None) -> HttpExchange:
        """The exchange of a request that starts; None: its head is not over, but its turn begins now."""
        exchange = self.early
        if exchange is not None:
            self.early = None
            exchange.request = request
            return exchange
        exchange = HttpExchange()
        exchange.request = request
        if self.unpaired:
            exchange.state = RESPONSE_MISSING
            return exchange
        self.waiting.append(exchange)
        if len(self.waiting) > MAX_WAITING:
            self._overflow()
        return exchange

    def response(self) -> HttpExchange:
        """The exchange of a response that starts."""
        waiting = self.waiting
        if waiting and not self._lost_answers and not self._overflowed:
            first = waiting[0]
            if isinstance(first, HttpExchange):
                del waiting[0]
                if waiting and (len(waiting) > 1 or isinstance(waiting[0], HttpExchange)):
                    self.pipelined = True  # a request waits behind it (marks never follow each other)
                return first
        return self._response_after_loss()

    def lose_requests(self, count: int) -> None:
        """Up to ``count`` requests are lost here."""
        self.release_early()
        if self.unpaired:
            return
        last = self.waiting[-1] if self.waiting else None
        if isinstance(last, Lost):
            last.count += count
        else:
            self.waiting.append(Lost(count, REQUEST_MISSING))

    def lose_responses(self, count: int) -> None:
        """Up to ``count`` responses are lost here."""
        self._lost_answers += count

    def end_requests(self) -> None:
        """No request will come any more."""
        self.release_early()
        self._requests_ended = True

    def end_responses(self) -> None:
        """No response will come any more: what waits is not answered."""
        self.release_early()
        self._give_up_waiting()
        self.unpaired = True

    def release_early(self) -> None:
        """The request of a held response will not come."""
        exchange = self.early
        if exchange is not None:
            self.early = None
            exchange.mark_missing(REQUEST_MISSING)
            if exchange.response is not None and exchange.response.finished:
                self._out.append(exchange)

    def _response_after_loss(self) -> HttpExchange:
        if self.unpaired:
            return _orphan(REQUEST_MISSING)
        if self._overflowed and not self._lost_answers:
            self._overflowed -= 1
            return _orphan(REQUEST_MISSING)
        requests = [entry for entry in self.waiting if isinstance(entry, HttpExchange)]
        if not requests:
            return self._response_without_request()
        lost_answers, self._lost_answers = self._lost_answers, 0
        if len(self.waiting) == 1 and not self._overflowed:
            self.waiting.clear()
            return requests[0]
        if not self.pipelined and not self._overflowed:
            if lost_answers and len(requests) - 1 <= lost_answers:
                exchange = requests.pop()
                self._give_up_waiting(but=exchange)
                return exchange
            if not lost_answers and len(requests) == 1:
                self.waiting.clear()
                return requests[0]
        self._give_up_waiting()
        self.unpaired = True
        return _orphan(REQUEST_MISSING)

    def _response_without_request(self) -> HttpExchange:
        """A response while no request waits: to a lost one, or early (rules 1 and 2)."""
        if self.waiting:
            mark = self.waiting[0]
            assert isinstance(mark, Lost)
            mark.count -= 1
            if not mark.count:
                del self.waiting[0]
            return _orphan(mark.state)
        if self.early is not None:
            # Two in a row: the requests are being lost, though nobody said so yet.
            self.release_early()
            self.waiting.append(Lost(UNKNOWN, REQUEST_MISSING))
            return _orphan(REQUEST_MISSING)
        if self._requests_ended or self._lost_answers:
            return _orphan(REQUEST_MISSING)
        exchange = HttpExchange()
        self.early = exchange
        return exchange

    def _give_up_waiting(self, but: HttpExchange | None = None) -> None:
        for entry in self.waiting:
            if isinstance(entry, HttpExchange) and entry is not but:
                self.give_up(entry)
        self.waiting.clear()
        self._overflowed = 0

    def give_up(self, exchange: HttpExchange) -> None:
        """No final response will come for it; a request still under way comes out when it ends."""
        exchange.mark_missing(RESPONSE_MISSING)
        if exchange.request is not None and exchange.request.finished:
            self._out.append(exchange)

    def _overflow(self) -> None:
        self.overflows += 1
        oldest = self.waiting.popleft()
        if isinstance(oldest, HttpExchange):
            self._overflowed += 1
            self.give_up(oldest)
        else:  # how many responses to skip can no longer be known
            self._give_up_waiting()
            self.unpaired = True


def _orphan(state: str) -> HttpExchange:
    exchange = HttpExchange()
    exchange.state = state
    return exchange
