"""What a record itself says of a connection becomes facts: whose program, which library, which socket.

Takes struct conn as it travels in every record (kernel/records.py); fills in ``ConnectionFacts``. Unknown
stays "" or 0. Does no I/O.
"""

from __future__ import annotations

from typing import Final

from spliffd.correlation.facts import ConnectionFacts
from spliffd.counters import LIBRARIES, METHODS
from spliffd.kernel import records

_HANDSHAKE: Final = records.CONN_HANDSHAKE_SEEN | records.CONN_HANDSHAKE_DONE | records.CONN_HANDSHAKE_FAILED


def first_facts(conn: records.Conn) -> ConnectionFacts:
    """Facts of a connection that is met for the first time, all but its socket."""
    facts = ConnectionFacts()
    facts.pid, facts.tid, facts.process_start_ns = conn.tgid, conn.tid, conn.start_ns
    facts.comm, facts.ppid, facts.uid = conn.comm, conn.ppid, conn.uid
    facts.library = LIBRARIES[conn.library - 1] if 1 <= conn.library <= len(LIBRARIES) else ""
    if conn.flags & _HANDSHAKE == records.CONN_HANDSHAKE_SEEN:
        facts.shaking_ns = conn.handshake_start
    return facts


def fill_socket(facts: ConnectionFacts, conn: records.Conn) -> None:
    """The socket, and on what evidence it is this connection's."""
    facts.correlation_method = METHODS[conn.method] if conn.method < len(METHODS) else "NONE"
    facts.confidence = (
        "" if not conn.method else "low" if facts.correlation_method == "PROCESS_TIMING" else "high"
    )
    facts.local_address, facts.local_port = conn.local_address, conn.local_port
    facts.remote_address, facts.remote_port = conn.remote_address, conn.remote_port
    facts.family = {4: "ipv4", 6: "ipv6"}.get(conn.family, "")
    facts.role = records.ROLES[conn.role] if conn.role < len(records.ROLES) else ""
    facts.netns_cookie, facts.socket_cookie = conn.netns_cookie, conn.socket_cookie
    facts.prefix = None
