"""Turns batches of the stream into output, and counts.

Takes ``WatchResponse`` messages, writes each as one piece of text or JSON lines to the output, and says when
enough exchanges were shown. Joins body parts on the way. Losses are printed where they come in the stream,
in both formats, those of the client itself included. Never reorders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spliffctl.live import Live, LiveBodies
from spliffctl.parts import Body, PartStore

if TYPE_CHECKING:
    from spliffctl.render.text import TextRenderer
    from spliffd.pb import spliff_pb2 as pb


@dataclass(slots=True)
class Totals:
    """What the summary line says."""

    exchanges: int = 0
    lost: int = 0

    def __str__(self) -> str:
        exchanges = f"{self.exchanges:,} exchange{'' if self.exchanges == 1 else 's'}"
        return f"{exchanges}, {self.lost:,} lost"


class Target(Protocol):
    """Where text goes: standard output, or the file of ``-w``."""

    def write(self, text: str) -> None:
        """Writes all of it."""


class Printer(Protocol):
    """What the stream feeds: text and JSON here, file formats in ``spliffctl.export``."""

    totals: Totals

    def show(self, batch: pb.WatchResponse) -> bool:
        """Takes a batch; returns whether enough exchanges were shown."""


class ItemPrinter:
    """Prints items until ``count`` exchanges are shown (0: for ever). ``renderer`` None means JSON."""

    def __init__(
        self,
        output: Target,
        renderer: TextRenderer | None,
        *,
        bodies: bool,
        body_limit: int = 0,
        count: int = 0,
    ) -> None:
        self.totals = Totals()
        self._output = output
        self._count = count
        self._store = PartStore(limit=body_limit)
        self._live = LiveBodies()
        self._bodies = bodies
        self._text = renderer
        render: dict[str, Callable[[Any], str]]
        if renderer is None:
            render = {
                kind: _json_line(kind) for kind in ("handshake", "message", "chunk", "loss", "body_part")
            }
            render["exchange"] = self._json_exchange
            render["progress"] = _json_line("progress")
        else:
            text = renderer
            render = {
                "exchange": self._text_exchange,
                "progress": lambda progress: text.progress(progress.exchange),
                "handshake": text.handshake,
                "message": text.message,
                "chunk": text.chunk,
                "loss": text.loss,
            }
        self._render = render

    def show(self, batch: pb.WatchResponse) -> bool:
        """Prints a batch with one write; returns whether enough exchanges were shown."""
        lines: list[str] = []
        done = False
        for item in batch.items:
            kind = item.WhichOneof("kind")
            if kind == "exchange":
                lines.append(self._render[kind](item.exchange))
                self.totals.exchanges += 1
                if self.totals.exchanges == self._count:
                    done = True
                    break
            elif kind == "progress":
                self._begin(item.progress, lines)
            elif kind == "body_part":
                live = self._live.of_part(item.body_part)
                if live is None:
                    self._store.add(item.body_part)
                else:
                    lines.append(self._part(live, item.body_part))
            elif kind == "discard":
                self._store.discard(list(item.discard.part_keys))
                for key in item.discard.part_keys:
                    self._live.end(key)
            elif kind == "loss":
                self._lose(item.loss, lines)
            elif kind == "started":
                # The ids start, or start anew: what waits belongs to a stream that is gone.
                self._store.clear()
            elif kind in self._render:
                lines.append(self._render[kind](getattr(item, kind)))
            # What is left are kinds that a later daemon may know.
        self._tell_own_loss(lines)
        if lines:
            self._output.write("".join(lines))
        return done

    def _begin(self, progress: pb.Progress, lines: list[str]) -> None:
        """An exchange under way, and what came of its body before anybody knew that it would be one."""
        if progress.exchange.revealed:
            unmask(progress.exchange)
        live = self._live.begin(progress.exchange)
        lines.append(self._render["progress"](progress))
        if live.streams and self._bodies:
            from spliffd.pb import spliff_pb2

            key = progress.exchange.part_key
            for offset, data in self._store.take_response(key):
                part = spliff_pb2.BodyPart(part_key=key, response=True, offset=offset, data=data)
                lines.append(self._part(live, part))

    def _part(self, live: Live, part: pb.BodyPart) -> str:
        if self._text is not None:
            return self._text.part(live.exchange, part)
        return self._render["body_part"](part)

    def _text_exchange(self, exchange: pb.Exchange) -> str:
        """What was shown while it was under way is not shown again."""
        text = self._text
        assert text is not None
        live = self._live.end(exchange.part_key) if exchange.part_key else None
        bodies = self._store.take(exchange) if self._bodies else None
        if live is None or bodies is None or not live.streams:
            return text.exchange(exchange, bodies, begun=live is not None)
        rest = Body(bodies[1].segments)  # what is missing before it was shown as it came
        return text.exchange(exchange, (bodies[0], rest), begun=True)

    def _lose(self, loss: pb.Loss, lines: list[str]) -> None:
        self.totals.lost += loss.count
        lines.append(self._render["loss"](loss))

    def _tell_own_loss(self, lines: list[str]) -> None:
        parts, size = self._store.take_loss()
        if parts:
            from spliffd.pb import spliff_pb2

            self._lose(
                spliff_pb2.Loss(stage="client", reason="body_memory_full_1_GiB", count=parts, bytes=size),
                lines,
            )

    def _json_exchange(self, exchange: pb.Exchange) -> str:
        if exchange.revealed:
            unmask(exchange)
        live = self._live.end(exchange.part_key) if exchange.part_key else None
        if live is not None and live.streams:
            return _json_line("exchange")(exchange)  # its parts were printed as they came
        if exchange.part_key in self._store:
            bodies = self._store.take(exchange)
            _put_body(exchange.request, bodies[0])
            _put_body(exchange.response, bodies[1])
            # Holes are told where the contract has a place for it: bytes that this watcher did not get.
            missing = bodies[0].missing + bodies[1].missing
            completeness = exchange.completeness
            completeness.body_not_sent = max(completeness.body_not_sent, missing)
        return _json_line("exchange")(exchange)


def unmask(exchange: pb.Exchange) -> None:
    """Puts what was revealed where its masks are, so that a reader finds headers as they always are."""
    for revealed in exchange.revealed:
        headers = (exchange.response if revealed.response else exchange.request).headers
        if revealed.header < len(headers):
            header = headers[revealed.header]
            header.ClearField("masked")
            header.value = revealed.value
    del exchange.revealed[:]


def _put_body(message: pb.Request | pb.Response, body: Body) -> None:
    """Sets body and body_offset to what was joined; leaves a message without a body alone."""
    if body.segments:
        message.body = body.data
        message.body_offset = body.segments[0][0]


def _json_line(kind: str) -> Callable[[Any], str]:
    from spliffctl.render.json import item_line

    return lambda message: item_line(kind, message) + "\n"
