"""nginx as the bench uses it, and wrk as its load.

nginx counts every request it has taken (stub_status, on a plain port of its own), which is the number
that spliff's count of exchanges is held against. wrk reports what it has finished.
"""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

from bench.processes import cpu_ns, descendants
from tests.support.lab import Lab
from tests.support.servers import Nginx, free_port

BODY_BYTES = 1024
WORKERS = 2
THREADS = 2
CONNECTIONS = 64


@dataclass
class Run:
    """One run of wrk."""

    rate: float
    """Requests/s as wrk says."""
    finished: int
    """Requests whose response wrk has read."""
    served: int
    """Requests that nginx has taken."""
    server_us: float
    """CPU time of nginx for one request."""


class Web:
    """A server with a reply of 1 KiB."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._status = free_port()
        status = f"server {{ listen 127.0.0.1:{self._status}; location = /status {{ stub_status; }} }}"
        self.server = Nginx(lab, workers=WORKERS, tls=status)
        self.server.file("reply.txt", b"0123456789abcde\n" * (BODY_BYTES // 16))
        self.pids = [self.server.pid, *descendants(self.server.pid)]

    def served(self) -> int:
        """Requests nginx has taken so far, this one not counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status}/status", timeout=10) as answer:
            numbers = re.search(rb"requests\s+\d+ \d+ (\d+)", answer.read())
        assert numbers is not None
        self._asked = getattr(self, "_asked", 0) + 1
        return int(numbers[1]) - self._asked

    def load(self, seconds: float, *, probed: bool = True) -> Run:
        """Keep-alive requests as fast as they go; ``probed=False`` runs wrk with the system's library."""
        environment = {} if probed else {"LD_LIBRARY_PATH": ""}
        before, cpu = self.served(), cpu_ns(self.pids)
        done = self._lab.run(
            "wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds:g}s", self.server.url("/reply.txt"),
            env=environment,
        )  # fmt: skip
        text = done.stdout.decode()
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        finished = re.search(r"(\d+) requests in", text)
        if rate is None or finished is None or "Non-2xx" in text:
            raise RuntimeError(f"wrk: {text}{done.stderr.decode()}")
        cpu = cpu_ns(self.pids) - cpu
        served = self.served() - before
        return Run(float(rate[1]), int(finished[1]), served, cpu / 1000 / max(1, served))
