"""Every byte of every call: sizes around the TLS record, reused buffers, retries, both directions."""

from __future__ import annotations

import hashlib
import subprocess
import time

import pytest

from spliffd.kernel import records
from tests.support.lab import PYTHON, Lab
from tests.support.tls_programs import CLIENT, SERVER
from tests.support.tracer import Tracer, streams

MIB = 1 << 20


def serve(lab: Lab, mode: str, *more: str) -> tuple[int, int]:
    """Starts the server; returns pid and port."""
    server = lab.start(PYTHON, "-c", SERVER, lab.certificate, lab.key, mode, *more, stdout=subprocess.PIPE)
    assert server.stdout is not None
    return server.pid, int(server.stdout.readline())


def client(lab: Lab, port: int, mode: str, size: int, total: int, host: str = "127.0.0.1") -> list[str]:
    done = lab.run(PYTHON, "-c", CLIENT, host, str(port), mode, str(size), str(total))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


@pytest.mark.parametrize("relocate", [True, False], ids=["relocated", "classic"])
@pytest.mark.parametrize(
    ("size", "total"),
    [
        (1, 4099),
        (16383, 2 * MIB + 1),
        (16384, 2 * MIB),
        (16385, 2 * MIB + 1),
        (256 * 1024, 2 * MIB),  # one large piece of bpf/emit.bpf.c
        (256 * 1024 + 1, 2 * MIB),
        (256 * 1024 + 16385, 2 * MIB + 1),
        (MIB, 4 * MIB),
        (3 * MIB, 3 * MIB),
    ],
)
def test_upload_is_captured_byte_for_byte_at_both_ends(lab: Lab, size: int, total: int, relocate: bool):
    _, port = serve(lab, "sink", str(total))
    with Tracer(lab, relocate=relocate) as tracer:
        *_, digest = client(lab, port, "send", size, total)
        time.sleep(0.2)
        found = streams(tracer.read())

        bodies = [data for (_, _, _), data in found.items() if len(data) >= total]
        assert len(bodies) == 2, {key: len(data) for key, data in found.items()}
        assert {hashlib.sha256(data).hexdigest() for data in bodies} == {digest}
        assert not {name for name in tracer.counters() if name.startswith(("ring_full", "fault", "call"))}


@pytest.mark.parametrize(("size", "total"), [(1, 4099), (16384, 2 * MIB), (16385, 2 * MIB), (MIB, 4 * MIB)])
def test_download_is_captured_byte_for_byte_at_both_ends(lab: Lab, size: int, total: int):
    _, port = serve(lab, "source")
    with Tracer(lab) as tracer:
        *_, digest = client(lab, port, "receive", size, total)
        found = streams(tracer.read_bytes(2 * (total + len(f"{size} {total}"))))

        bodies = [data for data in found.values() if len(data) == total]
        assert len(bodies) == 2
        assert {hashlib.sha256(data).hexdigest() for data in bodies} == {digest}


def test_cookie_tuple_and_process_are_the_kernels(lab: Lab):
    server_pid, port = serve(lab, "echo")
    with Tracer(lab) as tracer:
        cookie, address, local_port, _ = client(lab, port, "echo", 100, 3)
        time.sleep(0.1)
        found = [r for r in tracer.read() if r.kind == records.DATA]

        ours = [r.conn for r in found if r.conn.tgid != server_pid]
        theirs = [r.conn for r in found if r.conn.tgid == server_pid]
        assert {(c.socket_cookie, c.local_address, c.local_port) for c in ours} == {
            (int(cookie), address, int(local_port))
        }
        assert {(c.remote_address, c.remote_port) for c in ours} == {("127.0.0.1", port)}
        assert {(c.local_port, c.remote_port) for c in theirs} == {(port, int(local_port))}
        assert {c.role for c in ours} == {1}
        assert {c.role for c in theirs} == {2}
        assert {c.comm for c in ours} == {"python3"}
        assert {c.method for c in ours + theirs} == {1}  # SOCKET_NESTED
        assert all(c.socket_cookie for c in theirs)


def test_without_socket_observation_set_fd_names_the_socket(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab, nested=False) as tracer:
        cookie, _, local_port, _ = client(lab, port, "echo", 100, 3)
        time.sleep(0.1)
        found = [r for r in tracer.read() if r.kind == records.DATA and r.conn.remote_port == port]

        assert {(r.conn.socket_cookie, r.conn.local_port) for r in found} == {(int(cookie), int(local_port))}
        assert {r.conn.method for r in found} == {2}  # SOCKET_FD


@pytest.mark.parametrize(
    ("mode", "host", "family", "address"),
    [("echo6", "::1", 6, "::1"), ("echo6", "127.0.0.1", 4, "127.0.0.1")],
    ids=["ipv6", "v4-mapped"],
)
def test_ipv6_and_v4_mapped(lab: Lab, mode: str, host: str, family: int, address: str):
    server_pid, port = serve(lab, mode)
    with Tracer(lab) as tracer:
        client(lab, port, "echo", 100, 3, host)
        time.sleep(0.1)
        found = [r.conn for r in tracer.read() if r.kind == records.DATA]

        assert {c.tgid == server_pid for c in found} == {True, False}
        assert {(c.family, c.local_address, c.remote_address) for c in found} == {(family, address, address)}
        assert all(c.socket_cookie for c in found)
