"""A ring that is full when a process ends: its exchanges come out all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.servers import Nginx

FLOOD = r"""
import http.client, ssl, sys
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=ssl._create_unverified_context())
connection.request("GET", "/slow.bin?pending")
print("asked", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_ends_while_the_ring_is_full_leaves_nothing_open(lab: Lab):
    daemon = Daemon(lab, config="[capture]\nring_mib = 1\n")
    server = Nginx(lab)
    server.file("slow.bin", bytes(200_000))
    server.file("large.bin", bytes(4 << 20))
    watch = daemon.watch()
    waiting = lab.start(PYTHON, "-c", FLOOD, str(server.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"asked\n"
    time.sleep(0.5)
    worker = daemon.pids()["worker 0"]

    os.kill(worker, signal.SIGSTOP)
    assert lab.run("curl", "-sk", "-o", "/dev/null", server.url("/large.bin")).returncode == 0  # fills it
    waiting.kill()
    waiting.wait()
    time.sleep(0.2)
    assert daemon.lab.run("true").returncode == 0
    os.kill(worker, signal.SIGCONT)

    def pending() -> bool:
        return any(
            e.request.path == "/slow.bin?pending" and e.process.pid == waiting.pid for e in watch.exchanges
        )

    wait_for(pending, 30, "the exchange of the process that is gone")
    stats = daemon.stats()
    assert stats['spliff_lost_total{stage="ring",reason="control_ring_full"}'] > 0
    assert stats["spliff_connections_reconciled_total"] > 0
    watch.stop()
    daemon.stop()
