"""Stopping: what was captured is worked off and told, nothing is left, and the port is free for the next."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import Lab, stop
from tests.support.servers import Nginx, free_port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_drained_and_counted(lab: Lab, number: signal.Signals):
    server = Nginx(lab)
    daemon = Daemon(lab)
    watch = daemon.watch()
    children = set(daemon.pids().values()) - {daemon.process.pid}
    for n in range(7):
        assert lab.run("curl", "-sk", server.url(f"/hello?{n}")).returncode == 0
    began = time.monotonic()
    daemon.process.send_signal(number)  # while the last exchange may still be on its way
    assert daemon.process.wait(30) == 0
    took = time.monotonic() - began

    watch.wait_ended()  # its thread may still have to take what was sent
    text = daemon.text()
    block = text[text.index("spliffd 0") :]
    for section in (
        "Application layer",
        "Workers",
        "Correlation",
        "sock_ops",
        "Probes",
        "Losses",
        "Subscribers",
    ):
        assert f"\n{section}\n" in block
    rows = {line[:33].strip(): line[33:].split() for line in block.splitlines() if line.startswith("  ")}
    assert rows["exchanges"] == ["14"]
    assert rows["by SOCKET_NESTED"][0] == "14"
    assert len(watch.exchanges) == 14
    assert watch.losses == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not daemon.socket.exists()
    assert not Path(f"{daemon.socket}.lock").exists()
    print(f"{number.name}: drained in {took:.2f} s")


def test_a_signal_while_it_starts_ends_it_cleanly(lab: Lab):
    for delay in (0.25, 0.6, 1.0):
        daemon = Daemon(lab, wait=False)
        time.sleep(delay)
        code = stop(daemon.process, 30)
        assert code in (0, -signal.SIGTERM), daemon.text()  # before Python runs there is no handler
        assert "Traceback" not in daemon.text()
        assert not daemon.socket.exists()


def test_a_port_that_is_free_again(lab: Lab):
    port = free_port()
    for _ in range(2):  # the second start finds connections of the first in TIME_WAIT
        daemon = Daemon(lab, "--metrics", f"127.0.0.1:{port}")
        with socket.create_connection(("127.0.0.1", port), 30) as http:
            http.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert http.recv(100).startswith(b"HTTP/1.")
        daemon.stop()
