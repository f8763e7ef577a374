"""A connection for which the kernel encrypts (kTLS) is known as one; where the kernel cannot, none is."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from spliffd.kernel import flows
from tests.support.flow_tracer import FlowTracer
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.net import Namespace, Network

PROGRAM = r"""
import json, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
cookie = lambda sock: int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
error = ""
if sys.argv[1] == "ktls":
    try:
        client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")   # TCP_ULP
    except OSError as refusal:
        error = refusal.strerror
print(json.dumps({"client": cookie(client), "server": cookie(server), "error": error}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Namespace]:
    with Network("ktls") as network:
        yield network.namespace()


def has_ktls() -> bool:
    """Whether this kernel takes the protocol, by trying it on a connection of our own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            try:
                client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
            except FileNotFoundError:
                return False
    return True


@pytest.mark.parametrize("how", ["when it closes", "while it is open", "older than the programs"])
@pytest.mark.parametrize("wanted", ["ktls", "plain"])
def test_ktls(
    lab: Lab, place: Namespace, how: str, wanted: str, record_property: Callable[[str, object], None]
):
    def start() -> tuple[subprocess.Popen[bytes], dict]:
        process = lab.start(
            *place.enter(PYTHON, "-c", PROGRAM, wanted), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    expected = wanted == "ktls" and has_ktls()
    record_property("ktls", "by this kernel" if has_ktls() else "this kernel has none")
    older = start() if how == "older than the programs" else None
    with FlowTracer(lab, place) as tracer:
        process, said = older or start()
        assert bool(said["error"]) == (wanted == "ktls" and not expected), said
        fd = tracer.maps.fd["flows"]
        if how == "when it closes":
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)
        else:
            tracer.seed()

        def known(which: str) -> flows.Flow:
            flow = flows.look_up(fd, said[which])
            assert flow is not None
            return flow

        if how == "when it closes":
            wait_for(lambda: known("client").closed_ns and known("server").closed_ns, 30, "closed")
        assert (known("client").ktls, known("server").ktls) == (expected, False)
