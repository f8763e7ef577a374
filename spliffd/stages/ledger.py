"""The coverage ledger: for every process that speaks TLS on the wire, whether it is seen decrypted.

Takes the kernel's flows (a ClientHello was seen; bytes of it passed a probe, or only its handshake), its
table of TLS objects, and what workers say of connections without a socket; joins them by process, which a
start time tells from others of the same pid. What has closed is added up here, what is open is read when
somebody asks. ``attribution.coverage`` judges. Processes that have ended and were not covered are kept for
an hour. Counts into the gauges of `spliff_processes` whenever anything has changed.

A handshake alone is enough while the connection is open: its first byte may be still to come. When it has
closed, its records tell whether the process wrote anything; if so, the probes of the calls that did were not
in place, or there are none. What it was sent and may never have read is not held against it.

Not counted: connections that two processes hold at once (a child that never closes its parent's), and those
older than the daemon until a probe fires on them, because nobody saw how they began.
"""

from __future__ import annotations

import struct
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec

from spliffd.attribution.coverage import TLS_PORTS, Evidence, Missed, TlsFile, Verdict, judge
from spliffd.attribution.processes import Processes
from spliffd.correlation.accounted import data_sent
from spliffd.counters import REASONS, Region
from spliffd.journal import logger
from spliffd.kernel import bpf
from spliffd.kernel.flows import CLIENT_HELLO, Flow, address, read_flows
from spliffd.kernel.maps import CONN_KEY, CONN_VALUE, Maps
from spliffd.kernel.records import CONN_HANDSHAKE_SEEN
from spliffd.stages.mapped import Mapped, MappedFile, mapped
from spliffd.targets import discovery

log = logger("ledger")

MAX_PROCESSES = 8192
"""Books kept: as many processes that speak TLS as the kernel's table of them; about 1 KiB each."""

KEEP_ENDED_NS = 3600 * 1_000_000_000
"""How long a process that has ended and was not covered stays listed."""

GRACE_NS = 1_000_000_000
"""An open connection younger than this is not missed yet: memory BIOs name their socket after some data."""

MISSED_SHOWN = 5
"""Missed connections that are kept with their addresses, the latest."""

STEP = 32
"""Processes that are looked at before others have their turn: about a millisecond."""

BATCH = 1024
_CONN = struct.Struct("=I4xQ69xB14xI24xQQ46xB").unpack_from
"""tgid, start_ns, method, flags, offsets and ``accounted`` of struct conn_state."""

# enum accounted
ACCOUNTED_BYTES = 2

Key = tuple[int, int]
"""pid and start time (ns since boot)."""


class Miss(msgspec.Struct, frozen=True):
    """A connection of which no probe saw what was said."""

    flow: Flow

    def told(self) -> Missed:
        """As the judge wants it."""
        flow = self.flow
        ends = (
            f"{address(raw, flow.family)}:{port}"
            for raw, port in ((flow.local, flow.local_port), (flow.remote, flow.remote_port))
        )
        return Missed(flow.first_ns, flow.ktls, " and ".join(ends))


class Book(msgspec.Struct):
    """What a process did, connections that are over; and what it was when it was last seen."""

    pid: int
    start_ns: int
    captured: int = 0
    ktls_captured: int = 0
    nameless: int = 0
    """TLS objects that ended without a socket."""
    missed: deque[Miss] = msgspec.field(default_factory=lambda: deque(maxlen=MISSED_SHOWN))
    missed_count: int = 0
    unseen: deque[Miss] = msgspec.field(default_factory=lambda: deque(maxlen=MISSED_SHOWN))
    mapped: Mapped | None = None
    ended_ns: int = 0
    """Ktime when it was found to have ended."""


class Entry(msgspec.Struct):
    """One line of the ledger."""

    book: Book
    evidence: Evidence
    verdict: Verdict
    tls_flows: int
    missed: Sequence[Miss]


class Open(msgspec.Struct):
    """What a process has open now."""

    captured: int = 0
    ktls_captured: int = 0
    missed: list[Miss] = []
    unseen: list[Miss] = []
    named: int = 0
    """TLS objects whose socket is named, and of which probes saw bytes."""
    nameless: int = 0
    """Those without one that probes saw begin, or bytes of."""


class Owners:
    """Whose flows are: each process is asked for once in a pass."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        self._starts: dict[int, int] = {}

    def of(self, flow: Flow) -> Key:
        """The process that had the flow's pid when the flow began; start time 0 when that is not known."""
        when = flow.first_ns + self._since_boot
        start = self._starts.get(flow.tgid)
        if start is None or start > when:
            start = self._starts[flow.tgid] = self._processes.holder(flow.tgid, when)
        return flow.tgid, start


def _seen(flow: Flow) -> bool:
    """Whether probes saw what was said on it; of one that is open, whether they saw it begin."""
    return flow.plaintext or (flow.handshake and not (flow.closed_ns and data_sent(*flow.sides)))


class Ledger:
    """``state_of`` says what became of a file, ``recall`` what an ended process mapped.

    ``look_again`` is given what a process maps whose TLS is not seen: there may be files that are new;
    ``admits`` says whether a pid is in scope.
    """

    def __init__(
        self,
        maps: Maps,
        processes: Processes,
        state_of: Callable[[MappedFile], TlsFile],
        recall: Callable[[int, int], Mapped | None],
        look_again: Callable[[discovery.Look, int], None],
        admits: Callable[[int], bool],
        counters: Region,
    ) -> None:
        self._maps = maps
        self._processes = processes
        self._state_of = state_of
        self._recall = recall
        self._look_again = look_again
        self._admits = admits
        self._counters = counters
        self._books: OrderedDict[Key, Book] = OrderedDict()
        self._swept: list[tuple[int, Flow]] | None = None
        """Flows that the sweeper has just read and left in place."""

    # ---- what is told -----------------------------------------------------------------------

    def closed(self, flows: Sequence[tuple[int, Flow]], over: Collection[int]) -> None:
        """The sweeper removes the flows ``over``: they are added up. Those that stay are told of first."""
        if not over:
            self._swept = list(flows)
            return
        owners = Owners(self._processes)
        for cookie, flow in flows:
            if cookie in over and self._is_tls(flow):
                book = self._book(owners.of(flow))
                if _seen(flow):
                    book.captured += 1
                    book.ktls_captured += flow.ktls
                elif flow.flags & CLIENT_HELLO:
                    book.missed.append(Miss(flow))
                    book.missed_count += 1
                else:
                    book.unseen.append(Miss(flow))

    def nameless(self, ended: Iterable[tuple[int, int, int]]) -> None:
        """A worker's TLS connections without a socket have ended."""
        for pid, start_ns, count in ended:
            self._book((pid, start_ns)).nameless += count

    # ---- what is asked ----------------------------------------------------------------------

    def refresh(self) -> Iterator[None]:
        """Counts anew into the gauges, a step at a time; right after the sweeper, whose flows are used."""
        tally: Counter[str] = Counter()
        flows, self._swept = self._swept, None
        for number, entry in enumerate(self._walk((), flows)):
            if entry is not None:
                verdict = entry.verdict
                tally[f"{verdict.covered}_{verdict.reason}" if verdict.reason else verdict.covered] += 1
            if number % STEP == STEP - 1:
                yield
        self._counters.set("processes_covered", tally["covered"])
        for covered in ("partly", "not"):
            for reason in REASONS:
                self._counters.set(f"processes_{covered}_{reason}", tally[f"{covered}_{reason}"])

    def entries(self, pids: Collection[int] = ()) -> list[Entry]:
        """All processes that speak TLS, with their files; of ``pids`` also those that do not."""
        return [entry for entry in self._walk(pids, None, all_files=True) if entry is not None]

    def _walk(
        self, pids: Collection[int], flows: Sequence[tuple[int, Flow]] | None, *, all_files: bool = False
    ) -> Iterator[Entry | None]:
        """Each book's entry, None for one that is not asked for or over."""
        now = time.monotonic_ns()
        live = self._open(now, flows)
        for key in live:
            self._book(key)
        for pid in pids:
            if (start := self._processes.start_of(pid)) != 0:
                self._book((pid, self._processes.exact(pid, start)))
        for key, book in list(self._books.items()):
            self._look(book, now)
            if pids and book.pid not in pids:
                yield None
                continue
            entry = self._entry(book, live.get(key, Open()), all_files=all_files)
            over = book.ended_ns and (
                entry.verdict.covered in ("", "covered") or now - book.ended_ns > KEEP_ENDED_NS
            )
            if over:
                self._books.pop(key, None)
                yield None
            elif entry.verdict.covered:
                yield entry
            elif book.pid in pids:
                if not self._admits(book.pid):
                    entry.verdict = Verdict("", "out_of_scope", "its cgroup or its user is not in scope")
                yield entry
            else:
                yield None

    def _look(self, book: Book, now: int) -> None:
        """Whether the process lives, and what it maps."""
        if book.ended_ns:
            return
        start = self._processes.start_of(book.pid)
        if not book.start_ns or not start or self._processes.exact(book.pid, start) != book.start_ns:
            book.ended_ns = now
            book.mapped = self._recall(book.pid, book.start_ns) or book.mapped

    def _entry(self, book: Book, live: Open, *, all_files: bool) -> Entry:
        missed = [*book.missed, *live.missed]
        missed_count = book.missed_count + len(live.missed)
        captured = max(book.captured + live.captured, live.named)
        # A TLS object without a socket is one of the connections that nobody named, if there are any.
        nameless = book.nameless + live.nameless
        captured += nameless
        missed_count = max(0, missed_count - nameless)
        if not missed_count:
            missed = []
        unseen = [*book.unseen, *live.unseen]
        evidence = Evidence(
            captured,
            [one.told() for one in missed],
            missed_count,
            book.ktls_captured + live.ktls_captured,
            [one.told() for one in unseen],
        )
        wanted = (all_files or missed or unseen) and not book.ended_ns
        if wanted and (seen := discovery.look(book.pid)) is not None:
            book.mapped = mapped(seen)
            if missed:
                self._look_again(seen, book.start_ns)
        if book.mapped is not None:
            evidence.files = [self._state_of(file) for file in book.mapped.files]
            evidence.bits32 = book.mapped.bits32
        flows = captured + missed_count
        return Entry(book, evidence, judge(evidence), flows, (missed or unseen)[-MISSED_SHOWN:])

    def _open(self, now: int, flows: Sequence[tuple[int, Flow]] | None) -> dict[Key, Open]:
        found: dict[Key, Open] = {}
        owners = Owners(self._processes)
        try:
            for _, flow in read_flows(self._maps.fd["flows"]) if flows is None else flows:
                if not self._is_tls(flow):
                    continue
                mine = found.setdefault(owners.of(flow), Open())
                if _seen(flow):
                    mine.captured += 1
                    mine.ktls_captured += flow.ktls
                elif now - flow.first_ns < GRACE_NS and not flow.closed_ns:
                    continue
                else:
                    (mine.missed if flow.flags & CLIENT_HELLO else mine.unseen).append(Miss(flow))
            self._objects(found)
        except OSError as error:  # a kernel before 5.6 gives no batches
            log.debug("tables cannot be read", error=str(error))
        return found

    def _objects(self, found: dict[Key, Open]) -> None:
        """TLS objects that live: evidence where no socket is known."""
        after = b""
        while True:
            entries, after = bpf.map_lookup_batch(self._maps.fd["conns"], after, CONN_KEY, CONN_VALUE, BATCH)
            for _, value in entries:
                pid, start_ns, method, flags, sent, received, accounted = _CONN(value)
                mine = found.setdefault((pid, start_ns), Open())
                mine.named += bool(method and accounted == ACCOUNTED_BYTES)
                mine.nameless += not method and bool(flags & CONN_HANDSHAKE_SEEN or sent or received)
            if not after:
                return

    def _is_tls(self, flow: Flow) -> bool:
        """Whether it is somebody's TLS connection, as far as anything tells."""
        told = flow.plaintext or flow.handshake or bool(flow.flags & CLIENT_HELLO)
        return bool(flow.tgid) and (told or self._hidden(flow))

    def _hidden(self, flow: Flow) -> bool:
        """Whether it may be TLS where no hook sees it."""
        return (
            not flow.hops
            and flow.netns_cookie != self._maps.netns_cookie
            and (flow.remote_port in TLS_PORTS or flow.local_port in TLS_PORTS)
        )

    def _book(self, key: Key) -> Book:
        book = self._books.get(key)
        if book is None:
            book = self._books[key] = Book(*key)
            while len(self._books) > MAX_PROCESSES:
                self._books.popitem(last=False)
                self._counters.add("processes_forgotten")
        return book
