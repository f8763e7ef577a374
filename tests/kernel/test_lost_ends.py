"""A closing record that found the ring full: the kernel's tables still know that the connection is over."""

from __future__ import annotations

import os

from spliffd.correlation.connection import Connection
from spliffd.correlation.facts import ConnectionFacts
from spliffd.kernel import records
from spliffd.worker.tables import Tables
from tests.kernel.test_every_byte import client, serve
from tests.support.lab import Lab, wait_for
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
        gone = seen(tracer)
        assert len(gone) == 2  # both ends; the client has ended, the server frees its object
        wait_for(lambda: all(map(tables.is_over, gone.values())), 30, "both to be over")
        seen(tracer)  # what the server's last call has told late

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
        ended = [each for each in held.values() if each.process[0] == server_pid]
        wait_for(lambda: all(map(tables.is_over, ended)), 30, "the killed process's to be over")
