"""Gives TLS connections without a named socket one of their process's flows, where only one can be theirs.

Takes a connection, the other connections of its process, and a way to read the process's flows; fills in
addresses, socket cookie, method PROCESS_TIMING and low confidence, or leaves everything as it is. A flow is
given once: what another connection has, by whatever evidence, is no candidate. ``timing`` decides; this
keeps the books.

Does no I/O itself and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from spliffd.correlation.connection import Connection
from spliffd.correlation.timing import Talk, choose
from spliffd.kernel.flows import Flow, address

MAX_GIVEN = 4096
"""Flows remembered as given away. A closed one fits nothing that begins later, so it is the live ones of
processes whose sockets nobody names that count: few."""

FlowsOf = Callable[[int, int, str], Sequence[tuple[int, Flow]] | None]
"""Flows by cookie of a process (tgid), read no earlier than a time (ktime), for a TLS connection of a role;
None: not now, ask again."""

NOTHING: Final = 0
PERHAPS: Final = 1
GIVEN: Final = 2
"""No flow can be this connection's; one may be later; it has one."""

TIMING: Final = "PROCESS_TIMING"


class Claims:
    """Who was given which flow."""

    def __init__(self, flows_of: FlowsOf) -> None:
        self._flows_of = flows_of
        self._given: dict[int, None] = {}

    def claim(self, connection: Connection, siblings: Iterable[Connection]) -> int:
        """Whether ``connection`` has a flow now. ``siblings`` are the connections of its process."""
        talk = talk_of(connection)
        if talk is None:
            return NOTHING
        flows = self._flows_of(connection.process[0], connection.last_ns, talk.role)
        if flows is None:
            return PERHAPS
        taken: set[int] = set()
        rivals: list[Talk] = []
        for sibling in siblings:
            if sibling is connection:
                continue
            if sibling.facts.socket_cookie:
                taken.add(sibling.facts.socket_cookie)
            elif (rival := talk_of(sibling)) is not None:
                rivals.append(rival)
        free = [entry for entry in flows if entry[0] not in taken and entry[0] not in self._given]
        if not free:
            return NOTHING
        found = choose(talk, free, rivals)
        if found is None:
            return PERHAPS  # what the others carry may show
        if len(self._given) >= MAX_GIVEN:
            del self._given[next(iter(self._given))]
        self._given[found[0]] = None
        _give(connection, *found)
        return GIVEN


def talk_of(connection: Connection) -> Talk | None:
    """What is known of a connection without a socket; None before its first plaintext, or when it has one."""
    if connection.method or not connection.last_ns:
        return None
    sent, received = connection.expect
    return Talk(
        connection.first_ns,
        connection.last_ns,
        (max(0, sent), max(0, received)),
        (connection.calls[0], connection.calls[1]),
        connection.facts.role,
        not connection.joined,
    )


def _give(connection: Connection, cookie: int, flow: Flow) -> None:
    facts = connection.facts
    facts.correlation_method, facts.confidence = TIMING, "low"
    facts.socket_cookie, facts.netns_cookie = cookie, flow.netns_cookie
    facts.family = {4: "ipv4", 6: "ipv6"}.get(flow.family, "")
    facts.local_address, facts.local_port = address(flow.local, flow.family), flow.local_port
    facts.remote_address, facts.remote_port = address(flow.remote, flow.family), flow.remote_port
    facts.prefix = None
    connection.slots.clear()
