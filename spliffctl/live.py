"""Bodies that are shown as they come, because nobody waits for their end: server-sent events, lines of JSON.

Takes the exchanges that the daemon says are under way and the parts of their bodies; says which parts are for
showing at once, and knows what to leave out when the finished exchange comes. Everything else is joined by
``parts`` as ever. Keeps one small entry for each exchange under way, ``MAX_LIVE`` at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_LIVE = 4096
"""As many as the daemon keeps parts of for one watcher; beyond it the oldest is shown when it is finished."""

STREAMS = frozenset(
    (
        *("text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl"),
        *("application/json-seq", "application/stream+json", "application/x-json-stream"),
    )
)
"""Media types of bodies that are sequences of events or documents."""


@dataclass(slots=True)
class Live:
    """An exchange under way that was shown; ``streams``: so is its response's body, as it comes."""

    exchange: pb.Exchange
    streams: bool


class LiveBodies:
    """The exchanges under way, by part key."""

    def __init__(self) -> None:
        self._known: dict[int, Live] = {}

    def begin(self, exchange: pb.Exchange) -> Live:
        """The daemon tells of an exchange under way."""
        kind = exchange.response.content_type.partition(";")[0].strip().lower()
        live = Live(exchange, kind in STREAMS)
        if len(self._known) >= MAX_LIVE:
            del self._known[next(iter(self._known))]
        self._known[exchange.part_key] = live
        return live

    def of_part(self, part: pb.BodyPart) -> Live | None:
        """The exchange whose part is to be shown at once; None when it is to wait."""
        live = self._known.get(part.part_key)
        return live if live is not None and live.streams and part.response else None

    def end(self, part_key: int) -> Live | None:
        """The exchange is finished, or will not come."""
        return self._known.pop(part_key, None)
