"""What the engine finds becomes frames: serialised once, with the few facts that filters need beside.

Takes finished exchanges, handshakes and chunks; puts frames into the output. While nobody watches,
nothing is serialised. Bodies go through ``bodies``: inline when small, in parts when large, and secrets in
them are masked (``masked_bodies``) before.
"""

from __future__ import annotations

from collections.abc import Callable

from spliffd import ipc
from spliffd.correlation.connection import Connection, OnBody, protocol_of
from spliffd.correlation.facts import ConnectionFacts
from spliffd.correlation.flows import Finished
from spliffd.counters import Region
from spliffd.pb import spliff_pb2
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import COMPLETE, IN_PROGRESS, HttpExchange
from spliffd.protocols.websocket_message import WebSocketMessage
from spliffd.worker.bodies import MAX_HELD, PART_BYTES, Bodies, Half
from spliffd.worker.encode import connection_prefix, exchange_bytes, traffic_piece
from spliffd.worker.heads import Heads
from spliffd.worker.masked_bodies import Run, masked_body
from spliffd.worker.messages import message_frame, summary_of
from spliffd.worker.output import Output
from spliffd.worker.summaries import rest, summary
from spliffd.worker.wanted import Wanted

AskWho = Callable[[int, int, int, ConnectionFacts], None]


class FrameMaker:
    """The engine's Receiver. ``demand`` is what all watchers together want."""

    def __init__(self, output: Output, counters: Region, worker: int, ask: AskWho, masker: Masker) -> None:
        self._output = output
        self._counters = counters
        self._ask = ask
        self._next_part_key = (worker + 1) << 48
        self._held = 0
        self._heads = Heads(masker)
        self._whole_bodies = False
        self.demand = ipc.Demand(0, bodies=False, body_limit=0, handshakes=False, messages=False)
        self._wanted = Wanted(self.demand)
        self.wall_offset_ns = 0
        """Added to ktime (CLOCK_MONOTONIC) it gives time since the epoch."""
        self.boot_offset_ns = 0
        """The same for times since boot (CLOCK_BOOTTIME)."""

    def demands(self, demand: ipc.Demand) -> None:
        """From here on this is wanted."""
        self.demand = demand
        self._wanted = Wanted(demand)

    def mask_with(self, masker: Masker, *, whole_bodies: bool) -> None:
        """From here on secrets are masked like this; ``whole_bodies``: no body is shown unmasked at all."""
        self._heads = Heads(masker)
        self._whole_bodies = whole_bodies

    @property
    def masker(self) -> Masker:
        """How secrets are masked."""
        return self._heads.masker

    def process(self, pid: int, start_ns: int, exec_id: int, facts: ConnectionFacts) -> None:
        """A new connection: times become absolute, and /proc is asked (by the supervisor)."""
        facts.process_start_ns = start_ns + self.boot_offset_ns
        self._ask(pid, start_ns, exec_id, facts)

    def deliver(self, finished: list[Finished]) -> None:
        """Serialises all, then hands all on."""
        for connection, exchange, _, _ in finished:
            bodies: Bodies | None = exchange.user
            if bodies is not None:
                self._finish(connection, exchange, bodies)
                self._held -= bodies.request.size + bodies.response.size
            if exchange.websocket:
                self._name(exchange)
        wanted = self._wanted
        if wanted.nobodys:
            return
        wall = self.wall_offset_ns
        heads, reveal = self._heads, self.demand.reveal
        masker = heads.masker
        put, put_alike = self._output.put, self._output.put_alike
        for connection, exchange, attempts, waited in finished:
            facts = connection.facts
            if not (wanted.everybodys or wanted.wants(facts)):
                continue
            protocol = protocol_of(connection, exchange)
            public, secret = exchange_bytes(
                facts, exchange, protocol, facts.wire or "NONE", attempts, waited, wall, heads, reveal
            )
            told = rest(facts, exchange, protocol, masker)
            if exchange.user is None and not secret and not exchange.part_key:
                put_alike(public, facts.told, told, facts.uid)
                continue
            told = facts.told + told
            frame = ipc.Frame(ipc.EXCHANGE, exchange.part_key, told, public, secret, uid=facts.uid)
            bodies = exchange.user
            if bodies is not None:
                exchange.user = None
                request, response = bodies.request, bodies.response
                if request.size:
                    frame.request_offset, frame.request_body, frame.secret_request_body = request.take()
                if response.size:
                    frame.response_offset, frame.response_body, frame.secret_response_body = response.take()
                frame.withheld = _withheld(request) + _withheld(response)
            put(frame)

    def on_body(self, connection: Connection) -> OnBody | None:
        """A hook for the connection's parser while somebody wants bodies."""
        if not self.demand.bodies or not self._wanted.wants(connection.facts):
            return None

        def keep(exchange: HttpExchange, is_response: bool, data: bytes) -> None:
            self._keep(connection, exchange, is_response, data)

        return keep

    def _keep(self, connection: Connection, exchange: HttpExchange, is_response: bool, data: bytes) -> None:
        message = exchange.response if is_response else exchange.request
        if message is None:
            return
        bodies: Bodies | None = exchange.user
        if bodies is None:
            bodies = exchange.user = Bodies()
        half = bodies.response if is_response else bodies.request
        offset = message.body_size
        if not half.asked:
            half.asked = True
            half.masked = masked_body(
                message, data, self.masker, whole=self._whole_bodies, reveal=self.demand.reveal
            )
        masked = half.masked
        limit = self.demand.body_limit
        if limit and offset >= limit and (masked is None or not masked.decodes):
            return
        if masked is None:
            self._hold(connection, exchange, half, (offset, data, b""), is_response=is_response)
            return
        for run in masked.feed(offset, data):
            self._hold(connection, exchange, half, run, is_response=is_response)

    def _hold(
        self, connection: Connection, exchange: HttpExchange, half: Half, run: Run, *, is_response: bool
    ) -> None:
        offset, data, raw = run
        limit = self.demand.body_limit
        if limit and offset >= limit:
            return
        if not half.joins(offset):
            self._part(connection, exchange, half, is_response=is_response)
        before = half.size
        if raw:
            half.add_secret(offset, data, raw)
        else:
            half.add(offset, data)
        self._held += half.size - before
        if half.size >= PART_BYTES or self._held > MAX_HELD:
            self._part(connection, exchange, half, is_response=is_response)

    def _finish(self, connection: Connection, exchange: HttpExchange, bodies: Bodies) -> None:
        """What masks held back comes out, and what was decoded is told."""
        for half, message, is_response in (
            (bodies.request, exchange.request, False),
            (bodies.response, exchange.response, True),
        ):
            masked = half.masked
            if masked is not None and message is not None:
                for run in masked.finish():
                    self._hold(connection, exchange, half, run, is_response=is_response)
                message.decoded_size = masked.decoded

    def _part(self, connection: Connection, exchange: HttpExchange, half: Half, *, is_response: bool) -> None:
        """Sends what is held of one half ahead of its exchange."""
        self._name(exchange)
        self._held -= half.size
        offset, data, raw = half.take()
        frame = ipc.Frame(
            ipc.BODY_PART,
            exchange.part_key,
            summary(
                connection.facts,
                exchange,
                protocol_of(connection, exchange),
                self.masker,
                known=is_response,
            ),
            b"",
            uid=connection.facts.uid,
        )
        if is_response:
            frame.response_offset, frame.response_body, frame.secret_response_body = offset, data, raw
        else:
            frame.request_offset, frame.request_body, frame.secret_request_body = offset, data, raw
        self._output.put(frame)

    def handshake(self, connection: Connection, start: int, end: int, reason: str) -> None:
        """Handshakes are rare next to exchanges: built by the protobuf library."""
        if not (self.demand.watchers and self.demand.handshakes):
            return
        facts = connection.facts
        common = spliff_pb2.Exchange.FromString(connection_prefix(facts) + traffic_piece(facts))
        message = spliff_pb2.Handshake(
            time_ns=end + self.wall_offset_ns,
            duration_ns=max(0, end - start) if start else 0,
            process=common.process,
            connection=common.connection,
            correlation=common.correlation,
            tls=common.tls,
            success=not reason,
            reason=reason,
        )
        message.correlation.wire = facts.wire or "NONE"
        self._output.put(
            ipc.Frame(
                ipc.HANDSHAKE,
                0,
                summary_of(facts, None, "", self.masker),
                message.SerializeToString(),
                uid=facts.uid,
            )
        )

    def message(self, connection: Connection, message: WebSocketMessage) -> None:
        """A WebSocket message: to be told from others of its exchange's connection by that one's part key."""
        if not (self.demand.watchers and self.demand.messages):
            return
        exchange = message.exchange
        if exchange is not None:
            self._name(exchange)
        self._output.put(
            message_frame(
                connection,
                message,
                exchange.part_key if exchange is not None else 0,
                self.demand,
                self.masker,
                self.wall_offset_ns,
                whole=self._whole_bodies,
            )
        )

    def progress(self, connection: Connection, exchange: HttpExchange) -> None:
        """Tells once of an exchange that is under way, and sends on what is held of its bodies."""
        if not (self.demand.watchers and self.demand.progress):
            return
        if not exchange.announced:
            exchange.announced = True
            self._name(exchange)
            self._output.put(self._progress_frame(connection, exchange))
        bodies: Bodies | None = exchange.user
        if bodies is not None:
            for half, is_response in ((bodies.request, False), (bodies.response, True)):
                if half.size:
                    self._part(connection, exchange, half, is_response=is_response)

    def _progress_frame(self, connection: Connection, exchange: HttpExchange) -> ipc.Frame:
        protocol = protocol_of(connection, exchange)
        facts, state = connection.facts, exchange.state
        exchange.state = IN_PROGRESS if state is COMPLETE else state
        public, secret = exchange_bytes(
            facts, exchange, protocol, facts.wire, 0, 0, self.wall_offset_ns, self._heads, self.demand.reveal
        )
        exchange.state = state
        told = summary(facts, exchange, protocol, self.masker)
        return ipc.Frame(ipc.PROGRESS, exchange.part_key, told, public, secret, uid=facts.uid)

    def _name(self, exchange: HttpExchange) -> None:
        """Gives it the key that joins it with what goes out apart from it."""
        if not exchange.part_key:
            exchange.part_key = self._next_part_key
            self._next_part_key += 1

    def chunk(
        self, connection: Connection, direction: int, offset: int, data: bytes, size: int, now: int
    ) -> None:
        """Bytes of a protocol that is not taken apart."""
        if not (self.demand.watchers and self.demand.messages):
            return
        facts = connection.facts
        common = spliff_pb2.Exchange.FromString(connection_prefix(facts) + traffic_piece(facts))
        name = connection.recogniser.name if connection.recogniser is not None else ""
        limit = self.demand.body_limit or len(data)
        shown = data[:limit] if self.demand.bodies else b""
        secret = b""
        if self._whole_bodies and shown:
            secret = spliff_pb2.Chunk(data=shown).SerializeToString() if self.demand.reveal else b""
            shown = b""
        message = spliff_pb2.Chunk(
            time_ns=now + self.wall_offset_ns,
            process=common.process,
            connection=common.connection,
            correlation=common.correlation,
            tls=common.tls,
            direction="received" if direction else "sent",
            offset=offset,
            data=shown,
            size=size,
            protocol=name or "unknown",
        )
        message.correlation.wire = facts.wire
        self._output.put(
            ipc.Frame(
                ipc.CHUNK,
                0,
                summary_of(facts, None, name or "raw", self.masker),
                message.SerializeToString(),
                secret,
                uid=facts.uid,
            )
        )


def _withheld(half: Half) -> int:
    return 0 if half.masked is None else half.masked.withheld
