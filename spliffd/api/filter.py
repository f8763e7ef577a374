"""A watcher's ``Filter`` as one function over a frame's ``Summary``.

Takes the protobuf ``Filter`` once, when the stream starts; returns a ``Filter`` object whose methods
answer "is this for me?" for finished things, for early parts of a body, and for handshakes. Conditions
of different kinds must all hold, values of one kind are alternatives (proto/spliff.proto, "Filter"); an
expression (``spliffd.api.expression``) is one more condition, asked last because it may need the message.

Patterns are globs (``*``, ``?``, ``[seq]``), case-sensitive except for hosts. Their number and length
are bounded, and the standard library compiles them to regular expressions with atomic groups, so a
hostile pattern costs no more than patterns x length. Raises ``FilterError`` with a message for the
caller; never raises while matching, reads no clock and does no I/O.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from spliffd import counters, ipc
from spliffd.api.delivery import Delivery
from spliffd.api.expression.compiler import Expression
from spliffd.api.expression.lexer import ExpressionError
from spliffd.ipc import Summary
from spliffd.pb import spliff_pb2 as pb
from spliffd.protocols.recognise import NAMES

MAX_VALUES = 1024
"""Values of one kind: a service of a thousand processes; they are looked up in sets."""

MAX_GLOBS = 64
"""Patterns of one kind: these are tried one after the other for every frame."""

MAX_GLOB_LENGTH = 256
"""Longest pattern: a path with wildcards fits, a program does not."""

MIN_CONTAINER = 6
MAX_CONTAINER = 64
"""Container ids have 64 digits; fewer than 6 would match by accident on a large host."""

MAX_DESCENDANTS = 65536
"""Processes remembered as descendants of the wanted parents: about 6 MiB for one watcher."""

T = TypeVar("T")
MAX_STATUS = 999
"""A status code has three digits (RFC 9110, 15)."""

Predicate = Callable[[Summary], bool]


class FilterError(ValueError):
    """The filter cannot be used; the text says which field and what would do."""


class Filter:
    """A compiled filter.

    ``match`` is for finished things; ``match_early`` for body parts of a request, whose response
    status nobody knows yet (a status condition lets them through); ``match_connection`` for
    handshakes: only conditions on process and connection count. ``match_lasting`` asks for what is the
    same for all exchanges of a connection, ``match_own``, if anything else is asked, for the rest: together
    they are ``match``.
    """

    def __init__(self, request: pb.Filter) -> None:
        self.descendants: Descendants | None = None
        self.expression: Expression | None = None
        if request.expression:
            try:
                self.expression = Expression(request.expression)
            except ExpressionError as error:
                raise FilterError(f"filter.expression, column {error.column}: {error}") from None
        lasting = self._lasting(request)
        hosts = [_hosts(request.hosts)] if request.hosts else []
        exchange = self._exchange(request)
        early = [*lasting, *hosts, *exchange]
        own = [*hosts, *exchange, *_statuses(request.statuses)]
        self.match_lasting: Predicate = _all(lasting)
        self.match_own: Predicate | None = _all(own) if own else None
        self.match_connection: Predicate = _all([*lasting, *hosts])
        self.match_early: Predicate = _all(early)
        self.match: Predicate = _all([*lasting, *own])

    def wants(self, delivery: Delivery) -> bool:
        """Whether all conditions hold for what is delivered, as far as an item of its kind can tell."""
        kind, summary, expression = delivery.kind, delivery.summary, self.expression
        if kind == ipc.HANDSHAKE:
            return self.match_connection(summary) and (
                expression is None or expression.match_handshake(delivery)
            )
        if kind == ipc.BODY_PART:
            if summary.status:
                return self.match(summary) and (expression is None or expression.match_part(delivery))
            return self.match_early(summary) and (expression is None or expression.match_early(delivery))
        if kind == ipc.PROGRESS and not summary.status:  # nobody knows it yet
            return self.match_early(summary) and (expression is None or expression.match_early(delivery))
        if not self.match(summary):
            return False
        if expression is None:
            return True
        if kind in (ipc.EXCHANGE, ipc.PROGRESS):
            return expression.match(delivery)
        return expression.match_message(delivery) if kind == ipc.MESSAGE else expression.match_chunk(delivery)

    def _lasting(self, request: pb.Filter) -> list[Predicate]:
        found: list[Predicate] = []
        if request.ppids:
            # First of all: it learns from every summary, whatever the other conditions say.
            self.descendants = Descendants(_values("ppids", request.ppids))
            found.append(self.descendants.match)
        if request.pids:
            pids = frozenset(_values("pids", request.pids))
            found.append(lambda s: s.pid in pids)
        if request.ports:
            found.append(_ports(_values("ports", request.ports)))
        if request.users:
            found.append(_users(_values("users", request.users)))
        if request.libraries:
            libraries = _names("libraries", request.libraries, counters.LIBRARIES)
            found.append(lambda s: s.library in libraries)
        if request.containers:
            found.append(_containers(_values("containers", request.containers)))
        if request.comms:
            comm = _globs("comms", request.comms)
            found.append(lambda s: comm(s.comm))
        if request.exes:
            exe = _globs("exes", request.exes)
            found.append(lambda s: exe(s.exe))
        if request.units:
            unit = _globs("units", request.units)
            found.append(lambda s: unit(s.unit))
        return found

    def _exchange(self, request: pb.Filter) -> list[Predicate]:
        found: list[Predicate] = []
        if request.protocols:
            protocols = _names("protocols", request.protocols, counters.PROTOCOLS + NAMES)
            if "raw" in protocols:  # whatever is not taken apart, named or not
                protocols = protocols.union(NAMES)
            found.append(lambda s: s.protocol in protocols)
        if request.methods:
            methods = frozenset(method.upper() for method in _values("methods", request.methods))
            found.append(lambda s: s.method.upper() in methods)
        if request.paths:
            path = _globs("paths", request.paths)
            found.append(lambda s: path(s.path))
        return found


class Descendants:
    """Processes below the wanted parents, as far as summaries tell.

    A summary names the processes above its own, as they were when it first spoke: also those that never
    speak TLS themselves. A process below a wanted one joins the set, so that it matches when its parents have
    ended, and its children when theirs have. Summaries carry no start time: a process id that the kernel
    hands out again still counts as a descendant. ``refused`` counts processes that found the set full; their
    children are missed when they have ended before.
    """

    def __init__(self, parents: Iterable[int]) -> None:
        self._parents = frozenset(parents)
        self._known = set(self._parents)
        self._room = MAX_DESCENDANTS + len(self._known)
        self.refused = 0

    def match(self, summary: Summary) -> bool:
        """Whether a process above this one is wanted, or a descendant of a wanted one."""
        known = self._known
        if summary.ppid not in known and known.isdisjoint(summary.ancestors):
            # Its parent may have ended since (ppid 1 now): once known, it stays known.
            return summary.pid in known and summary.pid not in self._parents
        if summary.pid not in known:
            if len(known) < self._room:
                known.add(summary.pid)
            else:
                self.refused += 1
        return True


def host_of(authority: str) -> str:
    """The authority (RFC 3986, 3.2) without user information, port and brackets."""
    host = authority.rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    # A second colon means a bare IPv6 address, which RFC 3986 forbids and programs send.
    return name if colon and ":" not in name and (port.isdigit() or not port) else host


def _all(predicates: Sequence[Predicate]) -> Predicate:
    if not predicates:
        return lambda _: True
    if len(predicates) == 1:
        return predicates[0]
    first, *others = predicates
    rest = tuple(others)

    def every(summary: Summary) -> bool:
        if not first(summary):
            return False
        for predicate in rest:  # noqa: SIM110  # three times as fast as all() over a generator
            if not predicate(summary):
                return False
        return True

    return every


def _values(field: str, found: Iterable[T]) -> list[T]:
    given = list(found)
    if len(given) > MAX_VALUES:
        raise FilterError(f"filter.{field}: {len(given)} values; at most {MAX_VALUES}")
    return given


def _names(field: str, found: Iterable[str], known: Sequence[str]) -> frozenset[str]:
    names = frozenset(_values(field, found))
    for name in sorted(names.difference(known)):
        raise FilterError(f"filter.{field}: {name[:32]!r} is not known; use one of: {', '.join(known)}")
    return names


def _globs(field: str, found: Iterable[str], *, fold: bool = False) -> Callable[[str], bool]:
    """One function for several patterns; plain words are compared as a set."""
    patterns = [pattern.lower() if fold else pattern for pattern in found]
    if len(patterns) > MAX_GLOBS:
        raise FilterError(f"filter.{field}: {len(patterns)} patterns; at most {MAX_GLOBS}")
    plain = set()
    compiled = []
    for pattern in patterns:
        if len(pattern) > MAX_GLOB_LENGTH:
            raise FilterError(
                f"filter.{field}: a pattern of {len(pattern)} characters; at most {MAX_GLOB_LENGTH}"
            )
        if not any(mark in pattern for mark in "*?["):
            plain.add(pattern)
            continue
        try:
            compiled.append(re.compile(fnmatch.translate(pattern)).match)
        except re.error as error:
            raise FilterError(f"filter.{field}: {pattern!r} is no glob: {error}") from None
    words = frozenset(plain)
    matchers = tuple(compiled)

    def match(text: str) -> bool:
        if text in words:
            return True
        for matcher in matchers:  # noqa: SIM110  # three times as fast as any() over a generator
            if matcher(text):
                return True
        return False

    return match


def _hosts(found: Iterable[str]) -> Predicate:
    host = _globs("hosts", found, fold=True)

    def match(summary: Summary) -> bool:
        if summary.authority and host(host_of(summary.authority).lower()):
            return True
        if summary.sni and host(summary.sni.lower()):
            return True
        return bool(summary.remote_address) and host(summary.remote_address.lower())

    return match


def _users(found: Sequence[str]) -> Predicate:
    names = frozenset(found)
    ids = frozenset(int(user) for user in found if user.isascii() and user.isdigit())
    return lambda s: s.uid in ids or s.user in names


def _containers(found: Sequence[str]) -> Predicate:
    prefixes = tuple(prefix.lower() for prefix in found)
    for prefix in prefixes:
        if not MIN_CONTAINER <= len(prefix) <= MAX_CONTAINER:
            raise FilterError(
                f"filter.containers: {prefix[:MAX_CONTAINER]!r} has {len(prefix)} characters; "
                f"give {MIN_CONTAINER} to {MAX_CONTAINER} of the container id"
            )
    return lambda s: s.container.startswith(prefixes)


def _ports(found: Sequence[int]) -> Predicate:
    ports = frozenset(found)
    for port in sorted(ports):
        if not 1 <= port <= 65535:
            raise FilterError(f"filter.ports: {port} is no TCP port; use 1 to 65535")
    return lambda s: s.remote_port in ports or s.local_port in ports


def _statuses(found: Sequence[pb.StatusRange]) -> list[Predicate]:
    if not found:
        return []
    wanted: set[int] = set()
    for one in _values("statuses", found):
        if not 1 <= one.first <= one.last:
            raise FilterError(
                f"filter.statuses: {one.first}-{one.last} is no range; "
                "give first and last, first not above last"
            )
        wanted.update(range(one.first, min(one.last, MAX_STATUS) + 1))
    statuses = frozenset(wanted)
    return [lambda s: s.status in statuses]
