"""Where plaintext must not mix, must not leak, and must not be lost unsaid."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from spliffd.counters import METHODS
from spliffd.kernel import records
from tests.kernel.test_every_byte import client, serve
from tests.support.lab import PYTHON, REPOSITORY, Lab, wait_for
from tests.support.leftovers import existing, held, leftovers
from tests.support.tracer import Tracer, said, streams

MIB = 1 << 20

REUSE = r"""
import socket, ssl, sys
context = ssl._create_unverified_context()
for i in range(int(sys.argv[2])):  # each object is freed before the next is made: malloc hands out one address
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    tls.sendall(b"connection %d" % i)
    tls.recv(100)
    tls.close()
    del tls
"""

NONBLOCKING = r"""
import socket, ssl, sys, select, hashlib
context = ssl._create_unverified_context()
raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
raw.setblocking(False)
tls = context.wrap_socket(raw, do_handshake_on_connect=False)
def retry(call):
    while True:
        try:
            return call()
        except ssl.SSLWantReadError:
            select.select([tls], [], [])
        except ssl.SSLWantWriteError:
            retries.append(1)
            select.select([], [tls], [])
retries = []
retry(tls.do_handshake)
data = bytes(i % 251 for i in range(int(sys.argv[2])))
sent = 0
while sent < len(data):
    sent += retry(lambda: tls.send(data[sent:sent + 100_000]))
retry(lambda: tls.recv(64))
print(hashlib.sha256(data).hexdigest(), len(retries))
"""


def test_a_call_beyond_the_limit_leaves_a_gap_of_known_size(lab: Lab):
    total, limit = 40 * MIB, 32 * MIB + 17 * 16384
    _, port = serve(lab, "sink", str(total))
    with Tracer(lab, ring_mib=128) as tracer:
        client(lab, port, "send", total, total)
        time.sleep(0.2)
        sent = [r for r in tracer.read() if r.kind == records.DATA and r.direction == records.SENT]
        counted = tracer.counters()

        upload = [r for r in sent if r.conn.generation == max(sent, key=lambda r: r.size).conn.generation]
        assert sum(len(r.payload) for r in upload) == limit
        assert sum(r.size for r in upload) == total
        assert counted["oversize_bytes"] == total - limit
        assert "ring_full_data_bytes" not in counted


def test_reused_pointers_are_different_connections(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        done = lab.run(PYTHON, "-c", REUSE, str(port), "101")
        assert done.returncode == 0, done.stderr
        # Each is sent and read by the client, and by the server.
        found = tracer.read_bytes(4 * sum(len(f"connection {i}") for i in range(101)))

        sent = [
            data for (_, _, way), data in streams(found).items()
            if way == records.SENT and data.startswith(b"connection")
        ]  # fmt: skip
        # The client's 101 and the echoing server's 101, none joined with another.
        assert sorted(sent) == sorted([b"connection %d" % i for i in range(101)] * 2)


def test_two_processes_with_the_same_addresses_do_not_mix(lab: Lab):
    _, port = serve(lab, "echo")
    program = "import os; os.execv('/usr/bin/setarch', ['setarch', '-R', *{!r}])".format(  # no address randomisation
        [PYTHON, "-c", REUSE, str(port), "7"],
    )
    with Tracer(lab) as tracer:
        twins = [lab.start(PYTHON, "-c", program) for _ in range(2)]
        assert [twin.wait(20) for twin in twins] == [0, 0]
        time.sleep(0.1)
        told = tracer.read()
        found = streams(told)

        # Each by its own socket operations, though one thread makes them all.
        methods = [METHODS[record.conn.method] for record in told if record.kind == records.DATA]
        assert set(methods) == {"SOCKET_NESTED"}
        for twin in twins:
            mine = sorted(
                data for (pid, _, way), data in found.items() if pid == twin.pid and way == records.SENT
            )
            assert mine == [b"connection %d" % i for i in range(7)]


def test_non_blocking_retries_are_counted_once(lab: Lab):
    total = 3 * MIB + 7
    _, port = serve(lab, "sink", str(total))
    with Tracer(lab) as tracer:
        done = lab.run(PYTHON, "-c", NONBLOCKING, str(port), str(total))
        assert done.returncode == 0, done.stderr.decode()
        retries = int(done.stdout.split()[1])
        time.sleep(0.2)
        found = streams(tracer.read())

        assert retries > 0, "the test did not provoke WANT_WRITE"
        assert sorted(len(data) for data in found.values())[-2:] == [total, total]


def test_a_full_ring_is_counted_and_leaves_a_gap_of_known_size(lab: Lab):
    total = 8 * MIB
    _, port = serve(lab, "source")
    with Tracer(lab, ring_mib=1) as tracer:
        client(lab, port, "receive", 16384, total)
        every_byte = 2 * (total + len("16384 8388608"))
        found = tracer.read_until(
            lambda found: said(found) + tracer.counters().get("ring_full_data_bytes", 0) >= every_byte,
            "every byte told or counted",
        )
        counted = tracer.counters()

        kept = sum(len(r.payload) for r in found if r.kind == records.DATA)
        assert kept < every_byte
        assert counted["ring_full_data_bytes"] == every_byte - kept
        assert counted["ring_full_data_records"] > 0

        # And the stream goes on behind the gap, at the right offset.
        _, port = serve(lab, "echo")
        client(lab, port, "echo", 10, 2)
        time.sleep(0.1)
        assert any(b"0:xxxxxxxxxx" in r.payload for r in tracer.read())


def test_outside_the_scope_nothing_reaches_the_ring(lab: Lab):
    outside = lab.cgroup.parent / f"{lab.cgroup.name}-outside"
    outside.mkdir()
    try:
        with Tracer(lab) as tracer:
            # Same library file, same uprobes, another cgroup.
            server = lab.start("openssl", "s_server", "-accept", "0", "-cert", lab.certificate, "-key", lab.key,
                               "-rev", cgroup=outside, stdout=subprocess.PIPE, stdin=subprocess.PIPE)  # fmt: skip
            assert server.stdout is not None
            line = server.stdout.readline()
            while not line.startswith(b"ACCEPT"):
                line = server.stdout.readline()
            port = int(line.rsplit(b":", 1)[1])
            spy = lab.start(PYTHON, "-c", REUSE, str(port), "0", cgroup=outside)
            assert spy.wait(20) == 0
            talk = lab.start("openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}",
                             cgroup=outside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
            assert talk.stdin is not None
            assert talk.stdout is not None
            talk.stdin.write(b"secret of a stranger\n")
            talk.stdin.flush()
            assert talk.stdout.readline() == b"regnarts a fo terces\n"
            time.sleep(0.2)

            assert tracer.read() == []
            assert tracer.ring.pending() == 0
            assert tracer.counters()["out_of_scope"] > 0
    finally:
        lab.close()
        outside.rmdir()


def test_switched_off_captures_nothing(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab, enabled=False) as tracer:
        client(lab, port, "echo", 10, 2)
        assert tracer.read() == []


def test_scope_by_user_and_excluded_cgroup(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab, uids=(65534,)) as tracer:
        client(lab, port, "echo", 10, 2)
        time.sleep(0.1)
        assert tracer.read() == []  # all of it ran as root
    inner = lab.cgroup / "inner"
    inner.mkdir()
    with Tracer(lab, excluded=(str(inner),)) as tracer:
        process = lab.start(PYTHON, "-c", REUSE, str(port), "1", cgroup=inner)
        assert process.wait(20) == 0
        time.sleep(0.1)
        assert {r.conn.tgid for r in tracer.read() if r.kind == records.DATA}.isdisjoint({process.pid})


def test_a_killed_process_ends_its_connections(lab: Lab):
    server_pid, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        client(lab, port, "echo", 10, 1)
        os.kill(server_pid, 9)
        tracer.read_until(
            lambda found: server_pid in {r.conn.tgid for r in found if r.kind == records.EXIT}, "its exit"
        )


EXEC = r"""
import os, socket, ssl, sys
context = ssl._create_unverified_context()
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
tls.sendall(b"before exec")
tls.recv(100)
print(os.getpid(), flush=True)
os.execv("/usr/bin/python3", ["python3", "-c", sys.argv[2], sys.argv[1], "1"])
"""


def test_exec_ends_the_old_programs_connections(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        done = lab.run(PYTHON, "-c", EXEC, str(port), REUSE)
        assert done.returncode == 0, done.stderr.decode()
        pid = int(done.stdout)
        time.sleep(0.1)
        found = [r for r in tracer.read() if r.conn.tgid == pid and r.kind in (records.DATA, records.EXIT)]

        story = ["end" if r.kind == records.EXIT else r.payload for r in found if r.direction == records.SENT]
        assert story == [b"before exec", "end", b"connection 0", "end"]
        exec_ids = {r.conn.exec_id for r in found if r.kind == records.DATA}
        assert len(exec_ids) == 2


def test_handshake_is_told_once_with_its_start(lab: Lab):
    server_pid, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        began = time.monotonic_ns()
        client(lab, port, "echo", 10, 3)
        took_all = time.monotonic_ns() - began
        shakes = [r for r in tracer.read() if r.kind == records.HANDSHAKE]

        assert sorted(r.conn.tgid == server_pid for r in shakes) == [False, True]
        for shake in shakes:
            took = shake.time - shake.conn.handshake_start
            assert 100_000 < took < took_all


def test_cookie_map_follows_sockets(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        client(lab, port, "echo", 10, 1)
        # The side that closed first may still be in TIME_WAIT.
        wait_for(lambda: tracer.cookies() <= 1, 30, "the sockets forgotten")
        counted = tracer.counters()

        assert (counted["sockets_active"], counted["sockets_passive"]) == (1, 1)


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.support.lab import Lab
from tests.support.tracer import Tracer
lab = Lab.__new__(Lab)
lab.cgroup, lab.libraries = Path(sys.argv[2]), Path(sys.argv[3])
tracer = Tracer(lab)
print("attached", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("signal", [9, 15], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_loader_leaves_nothing_attached(lab: Lab, signal: int):
    before = leftovers()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(REPOSITORY), str(lab.cgroup), str(lab.libraries)],
        stdout=subprocess.PIPE,
    )
    lab.processes.append(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"attached\n"
    mine = held([holder.pid])
    assert {kind for kind, _ in mine} == {"link", "prog", "map"}
    assert mine <= existing()
    assert str(lab.cgroup) in leftovers()["cgroup"]

    os.kill(holder.pid, signal)
    holder.wait()

    wait_for(lambda: not mine & existing(), 30, "links, programs and maps gone")
    after = leftovers()
    assert str(lab.cgroup) not in after["cgroup"]
    for place in ("net", "xdp", "qdisc", "uprobe_events"):
        assert after.get(place) == before.get(place), place


def test_tests_refuse_to_run_unscoped(lab: Lab):
    own, lab.cgroup = lab.cgroup, lab.cgroup.parent
    try:
        with pytest.raises(RuntimeError, match="scoped"):
            Tracer(lab)
    finally:
        lab.cgroup = own
