"""What the daemon's processes say to each other, and how it is framed.

All links are ``SOCK_SEQPACKET`` pairs made by the supervisor: one datagram is one message, so a
reader never sees half of one. Messages are msgspec structs in MessagePack.

* supervisor <-> worker, supervisor <-> api: the *control* links, ``Control`` unions below.
* worker -> api: the *data* link, one ``Batch`` a datagram; api -> worker on the same pair: ``Demand``
  and ``Flush``.

Never carries captured bytes to the supervisor: root code does not touch them.
"""

from __future__ import annotations

import os

import msgspec

MAX_DATAGRAM = 1 << 20
"""Largest datagram: bodies are cut into parts far below it; the send buffer is raised to 4 MiB."""

SEND_BUFFER = 4 << 20
"""Room of a data link: about 3,000 exchanges, 30 ms at full load, while the api is busy."""

# Frame kinds; their order is nobody else's.
EXCHANGE, HANDSHAKE, MESSAGE, CHUNK, BODY_PART, LOSS, PROGRESS, FLUSHED = range(1, 9)


class Summary(msgspec.Struct, array_like=True, gc=False):
    """The few facts that filters need, as plain values; unknown text is "" and unknown numbers 0.

    What is the same for all exchanges of a connection comes first: it is encoded once (worker.encode).
    """

    pid: int
    ppid: int
    uid: int
    comm: str
    exe: str
    user: str
    unit: str
    container: str
    library: str
    local_port: int
    remote_port: int
    remote_address: str
    sni: str
    ancestors: list[int]
    """Processes above this one, the nearest first."""
    protocol: str
    authority: str
    path: str
    method: str
    status: int


class Frame(msgspec.Struct, array_like=True, gc=False, tag=0):
    """One thing to deliver, serialised once.

    ``summary`` is a Summary, encoded: most watchers have no filter, and then nobody takes it apart.
    ``public`` and ``secret`` are pieces of one serialised protobuf message of ``kind`` (Exchange,
    Handshake, Message, Chunk); concatenating them gives what a role that may see secrets gets. ``secret``
    is made only while somebody with that role watches (``Demand.reveal``).
    An Exchange's bodies ride beside it, so that each watcher's limit can be applied: ``request_body``
    starts at ``request_offset`` of the body (what lies before was sent as parts). They are masked;
    ``secret_request_body`` is the same without masks, as long, where it differs, and ``withheld`` counts
    body bytes that are in neither (of a body that should be masked and cannot be read, for example).

    For ``BODY_PART``: ``part_key`` and ``response_offset``/``response_body`` (a response's body) or
    ``request_offset``/``request_body`` hold the part; ``public`` is empty; the summary's status is 0
    for a part of a request, because no status is known yet.
    For ``PROGRESS``: as for an EXCHANGE, without bodies.
    For ``LOSS``: ``public`` is a serialised Loss and ``summary`` is empty.
    For ``FLUSHED``, alone in its batch: ``part_key`` is the number of the Flush that it answers.
    """

    kind: int
    part_key: int
    summary: bytes
    public: bytes
    secret: bytes = b""
    request_body: bytes = b""
    request_offset: int = 0
    response_body: bytes = b""
    response_offset: int = 0
    secret_request_body: bytes = b""
    secret_response_body: bytes = b""
    withheld: int = 0
    uid: int = -1
    """Whose process it is of; for LOSS nobody's."""


class Exchanges(msgspec.Struct, array_like=True, gc=False, tag=1):
    """Exchanges that every watcher gets alike, as they will be sent but for their ids (``spliffd.entries``).

    Nearly all are: without bodies, parts and secrets there is nothing that one may get and another not. The
    api gives them their ids and hands all on at once; one by one they would cost it three times as much.
    What is longer than a number is joined, with an array of the ends (native numbers) beside it.
    """

    entries: memoryview
    """Entries of ``WatchResponse.items``, one behind the other."""
    ends: bytes
    """uint32 each."""
    connections: bytes
    """Beginnings of encoded ``Summary``s, one for each connection: what is the same for all its exchanges."""
    connection_ends: bytes
    """uint32 each."""
    uids: bytes
    """int64 for each connection: whose process it is of, as in Frame."""
    of: bytes
    """uint32 for each exchange: the place of its connection among those."""
    summaries: bytes
    """The ends of the encoded ``Summary``s, one for each exchange."""
    summary_ends: bytes
    """uint32 each."""


Batch = list[Frame | Exchanges]
"""One datagram of the data link, worker to api. Of Exchanges the entries lie in the datagram's own memory."""


class Whom(msgspec.Struct, array_like=True):
    """Whose connections somebody may want to see: processes of which any of this holds.

    Never less than what the watchers' filters let through, and often more: of a filter the kernel is
    told one condition, and only ones that it can decide by facts that a connection keeps.
    """

    pids: list[int] = []
    uids: list[int] = []
    comms: list[str] = []
    """Names of processes as they are, no patterns."""
    units: list[str] = []
    """Patterns of systemd units (proto/spliff.proto): the supervisor compares them with cgroups."""
    containers: list[str] = []
    """Beginnings of container ids."""


class Demand(msgspec.Struct, array_like=True, tag=True):
    """What all watchers together want; sent by the api whenever it changes.

    Without watchers and ``history`` nothing is serialised at all. ``body_limit`` is the largest limit
    anybody asked for (0: none of the watchers set one, send everything).
    """

    watchers: int
    bodies: bool
    body_limit: int
    handshakes: bool
    messages: bool
    reveal: bool = False
    """Whether somebody may see secrets, and wants to."""
    whom: Whom | None = None
    """Whose connections are wanted; None: everybody's (while there are watchers)."""
    progress: bool = False
    """Whether somebody wants to see exchanges that are under way."""
    history: bool = False
    """Exchanges are kept for watchers that come later: serialised also while there are none now."""


class Flush(msgspec.Struct, array_like=True, tag=True):
    """The api wants to know when everything that is in the ring now has been sent to it (``FLUSHED``)."""

    number: int


# ---- control: supervisor -> others ------------------------------------------------------------


class Ping(msgspec.Struct, array_like=True, tag=True):
    """Asks for a sign of life; the answer is a Pong with the same number."""

    number: int


class Stop(msgspec.Struct, array_like=True, tag=True):
    """Finish what is under way, deliver it, and exit with 0."""


class Debug(msgspec.Struct, array_like=True, tag=True):
    """Switches the debug log."""

    enabled: bool


class Link(msgspec.Struct, array_like=True, tag=True):
    """A new data link; its fd rides along as SCM_RIGHTS. ``worker`` is the worker's number."""

    worker: int


class ProcessFacts(msgspec.Struct, array_like=True, tag=True):
    """What /proc says of a process (worker's WhoIs); empty text where it was too late."""

    pid: int
    start_ns: int
    exe: str
    cmdline: str
    user: str
    cgroup: str
    unit: str
    container: str
    comm: str = ""
    ppid: int = 0
    uid: int = 0
    ancestors: list[int] = []
    """The parent, its parent, and so on, as far as they are known."""


class NewRing(msgspec.Struct, array_like=True, tag=True):
    """Read the old ring to its end, then this one; its fd rides along. The old one gets no more records."""

    size: int


class Watched(msgspec.Struct, array_like=True, tag=True):
    """Capture now suits this number of watchers (answer to Watching)."""

    watchers: int


class Interfaces(msgspec.Struct, array_like=True, tag=True):
    """Interface names by index, to workers only: the whole table at start and after each change.

    Replaces what was sent before. Interfaces that vanished lately are still in it, because the last
    exchanges that went through them may come after they are gone.
    """

    names: dict[int, str]


MASK_KEY_BYTES = 32
"""Of the key that masks are made with: as many as BLAKE2s would take, half of what BLAKE2b does."""


class Masking(msgspec.Struct, array_like=True, tag=True):
    """How secrets are masked, to workers only, before any link to the api.

    ``key`` lasts for one run of the daemon and is known to the supervisor and the workers. ``bodies`` is
    "known" or "all" (`[access] mask_bodies`).
    """

    key: bytes
    headers: list[str]
    fields: list[str]
    bodies: str


class OwnersEntered(msgspec.Struct, array_like=True, tag=True):
    """The kernel's table of flows says who holds which socket, as far as that can be known."""


class Answer(msgspec.Struct, array_like=True, tag=True):
    """Answer to a Query: a serialised protobuf response, or an error in one line.

    A response that does not fit into a datagram rides along as a memory file (SCM_RIGHTS) of ``size`` bytes.
    """

    number: int
    payload: bytes
    error: str = ""
    size: int = 0


MAX_PAYLOAD = 128 << 10
"""Largest response within the message itself: the control link's buffer holds one of them at least."""


def packed(answer: Answer) -> tuple[Answer, list[int]]:
    """The answer as it can be sent, with the fds that go along; whoever sends it closes them."""
    if len(answer.payload) <= MAX_PAYLOAD:
        return answer, []
    file = os.memfd_create("spliff-answer", os.MFD_CLOEXEC)
    view = memoryview(answer.payload)
    while view:
        view = view[os.write(file, view) :]
    return Answer(answer.number, b"", answer.error, len(answer.payload)), [file]


def unpacked(answer: Answer, fds: list[int]) -> bytes:
    """The response of an answer; raises OSError or ValueError when its memory file is missing or short."""
    if not answer.size:
        return answer.payload
    pieces, at = [], 0
    while at < answer.size:
        piece = os.pread(fds[0], answer.size - at, at) if fds else b""
        if not piece:
            raise ValueError(f"{answer.size - at} bytes of the answer are missing")
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


# ---- control: others -> supervisor ------------------------------------------------------------


class Pong(msgspec.Struct, array_like=True, tag=True):
    """Sign of life. Sent from the main loop, so a hung loop sends none."""

    number: int


class Ready(msgspec.Struct, array_like=True, tag=True):
    """The process serves; sent once."""


class Failed(msgspec.Struct, array_like=True, tag=True):
    """The process cannot serve and exits: why, and the remedy."""

    message: str
    remedy: str


class WhoIs(msgspec.Struct, array_like=True, tag=True):
    """The worker wants ProcessFacts. ``start_ns`` (since boot) guards against pid reuse."""

    pid: int
    start_ns: int


class EnterOwners(msgspec.Struct, array_like=True, tag=True):
    """A worker has connections whose socket nobody named, and flows whose process nobody knows."""


class Watching(msgspec.Struct, array_like=True, tag=True):
    """The worker was told how many watch, and what they want; capture is fitted to it."""

    watchers: int
    bodies: bool
    whom: Whom | None = None


class Nameless(msgspec.Struct, array_like=True, tag=True):
    """TLS connections that have ended without a probe naming their socket: (pid, start_ns) and how many."""

    ended: list[tuple[int, int, int]]


class Query(msgspec.Struct, array_like=True, tag=True):
    """The api passes on a question that only root can answer.

    ``name`` is the RPC: GetInfo, ListFlows, ListInterfaces, ListLibraries, ListProcesses, SetDebug;
    ``payload`` its serialised request. ``Audit`` is no RPC: its payload is an ``audit.Audited``, and the
    answer says that the journal has it.
    """

    number: int
    name: str
    payload: bytes
    owner: int = -1
    """The user whose processes are all that the answer may tell of; -1: everybody's."""


ToChild = (
    Ping
    | Stop
    | Debug
    | Link
    | ProcessFacts
    | NewRing
    | Watched
    | Interfaces
    | Masking
    | OwnersEntered
    | Answer
)
FromChild = Pong | Ready | Failed | WhoIs | EnterOwners | Watching | Nameless | Query

encode = msgspec.msgpack.Encoder().encode
encode_into = msgspec.msgpack.Encoder().encode_into
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_from_api = msgspec.msgpack.Decoder(Demand | Flush).decode
decode_summary = msgspec.msgpack.Decoder(Summary).decode
decode_to_child = msgspec.msgpack.Decoder(ToChild).decode
decode_from_child = msgspec.msgpack.Decoder(FromChild).decode


NO_EXCHANGE = encode(("", "", "", "", 0))[1:]
"""The end of a Summary that tells of a connection alone."""

UNKNOWN = Summary(0, 0, -1, "", "", "", "", "", "", 0, 0, "", "", [], "", "", "", "", 0)
"""Of which nothing is known."""


def summary_of(encoded: bytes) -> Summary:
    """The few facts that filters need; UNKNOWN for what is none."""
    try:
        return decode_summary(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UNKNOWN  # only a worker that lies sends one
