"""A closing record that found the ring full: the kernel's tables still know that the connection is over."""

from __future__ import annotations

import os
import time

from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.kernel import records
from spliffd.worker.tables import Tables
from tests.kernel.test_every_byte import client, serve
from tests.support.lab import Lab
from tests.support.tracer import Tracer


def seen(tracer: Tracer) -> dict[bytes, Connection]:
    """Connections by key, from the records in the ring."""
    found = {}
    while positions := tracer.ring.drain(256):
        for at in positions:
            key = tracer.ring.data[at + records.KEY_AT : at + records.KEY_AT + records.KEY_BYTES]
            tgid, start_ns = records.TGID_START.unpack_from(tracer.ring.data, at + records.KEY_AT)
            if tracer.ring.data[at] == records.DATA:
                found[key] = Connection(key, (tgid, start_ns), ConnectionFacts(), joined=False)
        tracer.ring.release()
    return found


def test_freed_objects_and_dead_processes_are_over_and_live_ones_are_not(lab: Lab):
    server_pid, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        tables = Tables(*(tracer.maps.fd[name] for name in ("conns", "speakers", "flows", "hellos")))
        client(lab, port, "echo", 10, 1)
        time.sleep(0.1)
        gone = seen(tracer)
        assert len(gone) == 2  # both ends; the client has ended, the server has freed its object
        assert all(tables.is_over(connection) for connection in gone.values())

        holder = lab.start(
            "openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}", stdin=-1, stdout=-1, stderr=-3
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"still here\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"still here\n"
        held = seen(tracer)
        assert {connection.process[0] for connection in held.values()} == {server_pid, holder.pid}
        assert not any(tables.is_over(connection) for connection in held.values())

        os.kill(server_pid, 9)  # frees nothing itself
        time.sleep(0.2)
        assert {c.process[0] for c in held.values() if tables.is_over(c)} >= {server_pid}
