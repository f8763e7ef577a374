"""Ring records to connections: finds the connection of each record and hands out what is finished.

Takes record positions in the ring's memory (kernel/records.py) and gives exchanges, handshakes and raw
chunks to a ``Receiver``. Knows who is who: a record explains itself (struct conn travels in each), so a
lost control record costs nothing but itself. Tables are bounded; what is thrown out is counted.

Does no I/O, reads no clock: time is the records' own.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from spliffd.correlation.claims import Claims
from spliffd.correlation.connection import NO_BYTES, RAW, Connection, OnBody, protocol_of
from spliffd.correlation.facts import ConnectionFacts
from spliffd.correlation.flows import Finished, Join, Kernel, forget, look_anew
from spliffd.correlation.handshakes import Handshakes
from spliffd.correlation.identity import fill_socket, first_facts
from spliffd.correlation.progress import LookAround
from spliffd.correlation.retry import NEVER
from spliffd.correlation.tls_facts import CLOSED
from spliffd.correlation.unwanted import Unwanted, skipped
from spliffd.correlation.upgraded import Messages
from spliffd.counters import LIBRARIES, PROTOCOLS, Region, exchange_slot
from spliffd.kernel import records
from spliffd.kernel.unwanted import CALL_BYTES as SPARED_CALL
from spliffd.protocols.messages import COMPLETE, HttpExchange
from spliffd.protocols.websocket_message import Room, WebSocketMessage

MAX_CONNECTIONS = 16384
"""Live connections: about 3 KiB each, 48 MiB at the bound. The oldest goes first, and is counted."""

_HEAD: Final = records.HEAD.unpack_from
_WHOLE: Final = records.WHOLE.unpack_from
_KEY_AT: Final = records.KEY_AT
_KEY_END: Final = _KEY_AT + records.KEY_BYTES
_METHOD_AT: Final = records.METHOD_AT
_PAYLOAD: Final = records.HEADER_BYTES
_DATA: Final = records.DATA
_FLAGS_SPARED: Final = records.FLAGS_SPARED
_WORD: Final = (1 << 64) - 1
_HANDSHAKE: Final = records.CONN_HANDSHAKE_SEEN | records.CONN_HANDSHAKE_DONE | records.CONN_HANDSHAKE_FAILED

Piece = tuple[Connection, int, int, bytes, int, int, int]
"""Connection, direction, offset, payload, size, start and end of the call."""


class Receiver(Protocol):
    """Where results go."""

    def deliver(self, finished: list[Finished]) -> None:
        """These are finished, or as finished as they will be; in order for each connection.

        All of one batch of records together: doing one thing to many is a third cheaper than doing
        everything to one after the other, because the code stays in the processor's cache.
        """

    def handshake(self, connection: Connection, start: int, end: int, reason: str) -> None:
        """A handshake has ended (ktime ns); ``reason`` says why it failed, "" when it did not."""

    def chunk(
        self, connection: Connection, direction: int, offset: int, data: bytes, size: int, now: int
    ) -> None:
        """Bytes of a protocol that is not taken apart."""

    def progress(self, connection: Connection, exchange: HttpExchange) -> None:
        """An exchange is still under way: tell of it, if that was not done yet, and of its bodies so far."""

    def message(self, connection: Connection, message: WebSocketMessage) -> None:
        """A WebSocket message is finished."""

    def process(self, pid: int, start_ns: int, exec_id: int, facts: ConnectionFacts) -> None:
        """A connection was opened by this process: fill in what is known of it.

        ``exec_id`` changes when the process becomes another program.
        """

    def on_body(self, connection: Connection) -> OnBody | None:
        """Where this connection's bodies go, None when nobody wants bodies."""


class Engine:
    """All connections of one ring shard.

    ``began_ns`` is when this worker started (ktime): connections older than that are joined in the
    middle. ``counters`` is this worker's region; hot counters are added to in place.
    """

    def __init__(self, receiver: Receiver, counters: Region, began_ns: int, kernel: Kernel) -> None:
        self._receiver = receiver
        self._counters = counters
        self._words = counters.words
        self._began = began_ns
        self.connections: dict[bytes, Connection] = {}
        self._objects: dict[bytes, Connection] = {}
        self._processes: dict[tuple[int, int], set[bytes]] = {}
        index = counters.index
        self._n_data = index("tls_records_data")
        self._n_bytes = (index("captured_bytes_sent"), index("captured_bytes_received"))
        self._n_incomplete = index("exchanges_incomplete")
        self._n_gaps, self._n_gap_bytes = index("gaps"), index("gap_bytes")
        self.wants_chunks = False
        self.unwanted = Unwanted()
        self._claims = Claims(kernel.flows_of)
        self._join = Join(counters, kernel, self._claim)
        self.handshakes = Handshakes(counters, kernel.hello, self._join.look, receiver.handshake)
        self._join.learn = self.handshakes.spoken
        self.waiting = self._join.queue
        """The exchanges that wait for their flow; for looking only."""
        self.nameless: dict[tuple[int, int], int] = {}
        """Connections that ended without a probe naming their socket, by process: for the coverage ledger."""
        self.around = LookAround(self._join.glance, receiver.progress)
        """What tells of exchanges that go on for long; to be asked now and then."""
        self._done: list[Finished] = []
        self._messages = Messages(counters, receiver.message)
        self._room = Room()
        self._over: set[bytes] = set()
        """Ended by ``close_over``: their own closing record may still come, and says nothing new."""

    def handle(self, ring: mmap.mmap, positions: list[int]) -> None:
        """Takes one batch of records of the ring's memory (slices of an mmap are bytes: one copy).

        First all pieces are picked up, then all are parsed, then (``hand_out``) what they finished leaves:
        each step runs over the whole batch. Records that open, close or end something are taken in between,
        when all before them is parsed.
        """
        connections, pieces = self.connections, list[Piece]()
        for at in positions:
            kind, direction, flags, captured, end, offset, size, start, key, method = _WHOLE(ring, at)
            if kind != _DATA:
                self._parse(pieces)
                pieces = []
                self._control(ring, at, kind, end, start)
                continue
            connection = connections.get(key)
            if connection is None:
                self._parse(pieces)
                pieces = []
                connection = self._open(ring, key, at)
            elif connection.method != method:
                self._socket(connection, ring, at)
                self.handshakes.settle(connection, end)
            if flags & _FLAGS_SPARED:
                self._parse(pieces)
                pieces = []
                self._finish(connection, connection.spare(direction & 1, offset, end))
            payload = ring[at + _PAYLOAD : at + _PAYLOAD + captured]
            pieces.append((connection, direction & 1, offset, payload, size, start, end))
        if pieces:
            self._parse(pieces)

    def _parse(self, pieces: list[Piece]) -> None:
        captured = [0, 0]
        recent, wants_progress = self.around.recent, self.around.wanted
        for connection, direction, offset, payload, size, start, now in pieces:
            captured[direction] += len(payload)
            if not connection.method:
                connection.note(direction, start, now)
            if wants_progress:
                recent.add(connection)
            was_raw = connection.state == RAW
            if direction:
                finished = connection.data(1, offset, payload, size, now)
            else:
                finished = connection.data(0, offset, payload, size, start)
                for exchange in finished:
                    if exchange.response is not None and exchange.response.end_ns == start:
                        exchange.response.end_ns = now  # a response that was sent ends with its last call
            if connection.gaps:
                self._count_gaps(connection)
            if finished:
                self._finish(connection, finished)
            if size >= SPARED_CALL and connection.on_body is None:
                self.unwanted.look(connection, direction)
            if connection.messages:
                self._messages.take(connection, wanted=self.wants_chunks)
            if connection.state == RAW:
                kept, connection.raw_kept = connection.raw_kept, NO_BYTES
                if self.wants_chunks:
                    self._join.glance(connection, now)
                    for way, where, data in kept:
                        self._receiver.chunk(connection, way, where, data, len(data), now)
                    if was_raw:
                        self._receiver.chunk(connection, direction, offset, payload, size, now)
        words = self._words
        words[self._n_data] += len(pieces)
        words[self._n_bytes[0]] += captured[0]
        words[self._n_bytes[1]] += captured[1]

    def hand_out(self, now: int, *, busy: bool = False) -> None:
        """What is finished leaves, or waits for its flow.

        ``now`` is ktime as of this call: waiting for facts of a new process may have taken a while.
        ``busy`` says that more records wait than were taken.
        """
        if self._done:
            done, self._done = self._done, []
            self._deliver(self._join.admit(done, now, busy=busy))
        self._messages.hand_out()

    def retry(self, now: int) -> None:
        """A batch of the retry queue: what was found, or has waited long enough, goes out."""
        self.handshakes.due(now)
        if self.waiting.busy:
            self._deliver(self._join.retry(now))
        self._messages.hand_out()

    def next_ns(self) -> int:
        """When ``retry`` or ``around`` is to be asked again; NEVER while nothing waits."""
        around = self.around.next_ns if self.around.recent else NEVER
        waiting = self.waiting.next_ns if self.waiting.busy else NEVER
        return min(around, waiting, self.handshakes.next_ns)

    def interfaces(self, names: dict[int, str]) -> None:
        """The names of interfaces by index: all connections are looked up anew."""
        self._join.interfaces(names)
        for connection in self.connections.values():
            look_anew(connection)

    def close_all(self, now: int) -> None:
        """Ends every connection, as at shutdown; nothing waits any longer."""
        for connection in list(self.connections.values()):
            self._close(connection, now)
        self.hand_out(now)
        self._deliver(self._join.flush(now))
        self._messages.hand_out()

    def close_over(self, is_over: Callable[[Connection], bool], now: int) -> int:
        """Ends the connections of which ``is_over`` says so; returns how many there were."""
        over = [connection for connection in self.connections.values() if is_over(connection)]
        for connection in over:
            self._close(connection, now)
        self._over = {connection.key for connection in over}
        self.hand_out(now)
        return len(over)

    def watch_bodies(self) -> None:
        """Asks the receiver anew, for every connection, where bodies go."""
        for connection in self.connections.values():
            connection.watch_bodies(self._receiver.on_body(connection))
            self.unwanted.take_back(connection)

    def facts_of(self, pid: int, start_ns: int) -> list[ConnectionFacts]:
        """Facts of all live connections of a process."""
        return [self.connections[key].facts for key in self._processes.get((pid, start_ns), ())]

    def _control(self, ring: mmap.mmap, at: int, kind: int, now: int, start: int) -> None:
        counters = self._counters
        if kind == records.EXIT:
            tgid, start_ns = records.TGID_START.unpack_from(ring, at + _KEY_AT)
            counters.add("tls_records_close")
            for key in self._processes.get((tgid, start_ns), set()).copy():
                ending = self.connections[key]
                if ending.facts.shaking_ns:
                    self.handshakes.failed(ending, ending.facts.shaking_ns, now, "the process ended")
                self._close(ending, now)
            return
        if kind not in records.OF_A_CONNECTION:
            counters.add("tls_records_unknown")
            return
        key = ring[at + _KEY_AT : at + _KEY_END]
        connection = self.connections.get(key)
        if connection is None:
            if key in self._over:
                return
            connection = self._open(ring, key, at)
        elif connection.method != ring[at + _METHOD_AT]:
            self._socket(connection, ring, at)
        if kind == records.HANDSHAKE:
            counters.add("tls_records_handshake")
            self.handshakes.succeeded(connection, start, now)
        elif kind == records.FACT:
            counters.add("tls_records_fact")
            self.handshakes.said(connection, ring, at, now)
        elif kind == records.SOCKET:
            counters.add("tls_records_socket")
            self.handshakes.settle(connection, now)
        elif kind == records.SKIPPED:
            counters.add("tls_records_skipped")
            self._finish(connection, skipped(connection, ring, at))
            self._count_gaps(connection)
            self.around.recent |= {connection} if self.around.wanted else set()
        elif kind == records.EOF:
            self._finish(connection, connection.eof(records.RECEIVED, now))
            self._messages.take(connection, wanted=self.wants_chunks)
        else:
            counters.add("tls_records_close")
            self._ended(connection, ring, at, now)

    def _ended(self, connection: Connection, ring: mmap.mmap, at: int, now: int) -> None:
        """SSL_free: the final offsets show a loss at the tail, the flags an unfinished handshake."""
        conn = records.unpack_conn(ring, at + records.CONN_AT)
        flags = _HEAD(ring, at)[2]
        for direction, final in ((0, conn.offset_sent), (1, conn.offset_received)):
            if flags & records.FLAG_SPARED << direction:
                self._finish(connection, connection.spare(direction, final, now))
            expected = connection.expect[direction]
            if 0 <= expected < final:
                connection.expect[direction] = final
                self._finish(connection, connection.missing(direction, expected, final, now))
        self._count_gaps(connection)
        if conn.flags & _HANDSHAKE == records.CONN_HANDSHAKE_SEEN:
            closed = conn.flags & records.CONN_SOCKET_ENDED
            self.handshakes.failed(connection, conn.handshake_start, now, CLOSED if closed else "")
        self._close(connection, now)

    def _open(self, ring: mmap.mmap, key: bytes, at: int) -> Connection:
        conn = records.unpack_conn(ring, at + records.CONN_AT)
        process, facts = (conn.tgid, conn.start_ns), first_facts(conn)
        connection = Connection(key, process, facts, joined=conn.generation < self._began)
        predecessor = self._objects.get(connection.object_key)
        if predecessor is not None:
            # The kernel's table threw the old one out, or its close record was lost.
            self._counters.add("connections_evicted")
            self._close(predecessor, conn.generation)
        elif len(self.connections) >= MAX_CONNECTIONS:
            self._counters.add("connections_evicted")
            self._close(next(iter(self.connections.values())), conn.generation)
        self.connections[key] = connection
        self._objects[connection.object_key] = connection
        self._processes.setdefault(process, set()).add(key)
        self._counters.add("connections_opened")
        connection.room = self._room
        connection.from_start = conn.flags & records.CONN_HANDSHAKE_SEEN != 0
        facts.from_start = connection.from_start and not connection.joined
        connection.on_body = self._receiver.on_body(connection)
        self._receiver.process(conn.tgid, conn.start_ns, conn.exec_id, facts)
        self._fill_socket(connection, conn)
        return connection

    def _socket(self, connection: Connection, ring: mmap.mmap, at: int) -> None:
        self._fill_socket(connection, records.unpack_conn(ring, at + records.CONN_AT))

    def _fill_socket(self, connection: Connection, conn: records.Conn) -> None:
        connection.method = conn.method
        connection.slots.clear()
        if connection.facts.socket_cookie != conn.socket_cookie:
            forget(connection)
        fill_socket(connection.facts, conn)

    def _claim(self, connection: Connection) -> int:
        siblings = [self.connections[key] for key in self._processes.get(connection.process, ())]
        return self._claims.claim(connection, siblings)

    def _finish(self, connection: Connection, exchanges: Sequence[HttpExchange]) -> None:
        for exchange in exchanges:
            if exchange.state is not COMPLETE:
                self._words[self._n_incomplete] += 1
            self._done.append((connection, exchange, 0, 0))

    def _deliver(self, ready: list[Finished]) -> None:
        """Counts as what it goes out: by then it is known how it travelled, or never will be."""
        if not ready:
            return
        if self.handshakes.waiting:
            self.handshakes.ahead_of(ready)
        words = self._words
        for connection, exchange, _, _ in ready:
            wire = connection.facts.wire
            usual = exchange.grpc is None and not exchange.websocket
            slot = connection.slots.get(wire if usual else wire + protocol_of(connection, exchange))
            words[self._slot(connection, exchange) if slot is None else slot] += 1
        self._receiver.deliver(ready)

    def _slot(self, connection: Connection, exchange: HttpExchange) -> int:
        facts = connection.facts
        protocol = protocol_of(connection, exchange)
        if protocol not in PROTOCOLS:
            protocol = "raw"
        library = facts.library or LIBRARIES[0]
        slot = exchange_slot(protocol, library, facts.correlation_method or "NONE", facts.wire or "NONE")
        usual = exchange.grpc is None and not exchange.websocket
        connection.slots[facts.wire if usual else facts.wire + protocol] = slot
        return slot

    def _count_gaps(self, connection: Connection) -> None:
        self._words[self._n_gaps] += connection.gaps
        # A traced program says itself how much SSL_write_ex wrote: no number of its may break ours.
        self._words[self._n_gap_bytes] = (self._words[self._n_gap_bytes] + connection.gap_bytes) & _WORD
        connection.gaps = connection.gap_bytes = 0

    def _close(self, connection: Connection, now: int) -> None:
        self.handshakes.release(connection, now)
        self._join.mark_unseen(connection)
        self._finish(connection, connection.close(now))
        self._messages.take(connection, wanted=self.wants_chunks)
        self.connections.pop(connection.key, None)
        if self._objects.get(connection.object_key) is connection:
            del self._objects[connection.object_key]
        keys = self._processes.get(connection.process)
        if keys is not None:
            keys.discard(connection.key)
            if not keys:
                del self._processes[connection.process]
        if not connection.method and connection.last_ns:
            self.nameless[connection.process] = self.nameless.get(connection.process, 0) + 1
        self._counters.add("connections_closed")
