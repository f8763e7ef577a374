"""The daemon under measurement: its processes' CPU, what it saw and lost, and who watches it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.processes import cpu_ns, descendants
from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab

QUIET_SECONDS = 0.3
"""Records have stopped coming for this long: what was under way has arrived."""


@dataclass
class Reading:
    """The daemon's numbers at one moment, or the difference of two."""

    cpu_ns: int
    exchanges: int
    unsampled: int
    """Exchanges that nobody watched and that were only counted."""
    shed: int
    """Exchanges that were left out, and told, because the ring was nearly full."""
    incomplete: int
    records: int
    """Data records that the worker has read."""
    ring_full: int
    """Data records that found the ring full."""
    losses: dict[str, int]
    """Everything in spliff_lost_total, by its labels."""

    def since(self, before: Reading) -> Reading:
        """What came in between."""
        losses = {key: self.losses[key] - before.losses.get(key, 0) for key in self.losses}
        return Reading(
            self.cpu_ns - before.cpu_ns, self.exchanges - before.exchanges,
            self.unsampled - before.unsampled, self.shed - before.shed,
            self.incomplete - before.incomplete, self.records - before.records,
            self.ring_full - before.ring_full, {key: value for key, value in losses.items() if value},
        )  # fmt: skip

    def told(self) -> str:
        """The losses, for a note."""
        return ", ".join(f"{value:,} {key}" for key, value in self.losses.items()) or "nothing"


class Watched(Daemon):
    """spliffd in a lab, with readings of its processes."""

    def __init__(self, lab: Lab, *options: str, config: str = "") -> None:
        (lab.folder / "spliffd.log").unlink(missing_ok=True)  # a daemon of an earlier round wrote it
        began = time.monotonic()
        super().__init__(lab, *options, config=config)
        self.start_seconds = time.monotonic() - began

    def all_pids(self) -> list[int]:
        """Supervisor, workers, api, and the inspector while it lives."""
        return [self.process.pid, *descendants(self.process.pid)]

    def reading(self) -> Reading:
        """Numbers of this moment."""
        cpu = cpu_ns(self.all_pids())
        values = {key: int(value) for key, value in self.stats().items()}
        losses = {
            "/".join(re.findall(r'"([^"]*)"', key)): value
            for key, value in values.items()
            if key.startswith("spliff_lost_total")
        }
        exchanges = sum(value for key, value in values.items() if key.startswith("spliff_exchanges_total"))
        return Reading(
            cpu, exchanges, values["spliff_unsampled_exchanges_total"], losses["kernel/overload"],
            values["spliff_exchanges_incomplete_total"],
            values['spliff_tls_records_total{kind="data"}'], losses["ring/ring_full"], losses,
        )  # fmt: skip

    def settle(self) -> None:
        """Until no more records come."""
        last, since = -1.0, time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            records = sum(n for key, n in self.stats().items() if key.startswith("spliff_records_total"))
            if records != last:
                last, since = records, time.monotonic()
            time.sleep(0.05)

    def placement(self) -> str:
        """Where reads and writes are probed, as ListLibraries says."""
        answer = self.stub().ListLibraries(spliff_pb2.ListLibrariesRequest())
        sites = {
            f"{site.symbol} {site.placement}"
            for library in answer.libraries
            for site in library.sites
            if "read" in site.symbol or "write" in site.symbol
        }
        return ", ".join(sorted(sites))


class Watcher:
    """A watcher of everything, in a process of its own."""

    def __init__(self, daemon: Daemon, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.watcher", str(daemon.socket), *options],
            stdout=subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        daemon.lab.processes.append(self._process)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != b"started":
            raise RuntimeError("the watcher did not start")

    def stop(self) -> dict[str, Any]:
        """Ends it; returns what it has measured."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.stdout is not None
        result: dict[str, Any] = json.loads(self._process.stdout.read())
        self._process.wait()
        return result
