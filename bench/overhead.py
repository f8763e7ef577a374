"""What watching costs a server: requests/s of nginx under wrk, all cases in one run, in turn.

nginx and wrk share all CPUs of this machine with whatever watches them, and wrk offers as much as goes,
so every microsecond of probe, daemon and watcher comes off the requests/s. Each round runs: spliffd with
both ends captured and one watcher of everything (a reader of raw gRPC messages), with one of nginx alone,
with ``spliffctl watch -c``, with nobody watching, with only the server in scope (wrk maps another copy of the
library); bare before and behind those, which are held against the mean of both; and the same load under an
sslsniff. What spliffd saw and what it reported lost is held
against what nginx and wrk counted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.report import Figure, median
from bench.watched import Reading, Watched, Watcher
from bench.web import BODY_BYTES, CONNECTIONS, THREADS, WORKERS, Run, Web
from spliffd.kernel.compile import source_folder
from tests.support.lab import REPOSITORY, Lab, say, stop, wait_for

ROUNDS = 7
SECONDS = 3.0
"""Many short rounds: a virtual machine's speed drifts by a third within a minute, and each round is held
against the bare runs beside it."""
WARM_SECONDS = 1.0

BARE, BOTH, NGINX, CLI, UNWATCHED, SERVER, SNIFF, DEBIAN = (
    "bare",
    "spliffd, both ends, one gRPC watcher",
    "spliffd, both ends, one gRPC watcher of --comm nginx",
    "spliffd, both ends, spliffctl watch -c",
    "spliffd, both ends, nobody watches",
    "spliffd, server end only, one gRPC watcher",
    "the probes of sslsniff (own equivalent)",
    "Debian's sslsniff-bpfcc itself",
)
SPLIFFD = (BOTH, NGINX, CLI, UNWATCHED, SERVER)
KEPT = {BOTH: 45, NGINX: 55, UNWATCHED: 75}
"""Of the bare requests/s, in per cent, at least."""


class Rounds:
    """All runs so far, by case."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._web = Web(lab)
        self._web.load(WARM_SECONDS)
        self.runs: dict[str, list[Run]] = {}
        self.readings: dict[str, list[Reading]] = {}
        self.placement = ""
        self.sniffed: list[str] = []
        self.tool = os.environ.get("SSLSNIFF") or shutil.which("sslsniff-bpfcc")

    def one(self) -> None:
        """Every case once; bare before and behind all others, for the machine's speed drifts meanwhile."""
        self._keep(BARE, self._web.load(SECONDS))
        daemon = Watched(self._lab)
        try:
            self.placement = daemon.placement()
            watcher = Watcher(daemon)
            self._spliffd(BOTH, daemon, probed=True)
            self._spliffd(SERVER, daemon, probed=False)
            watcher.stop()
            watcher = Watcher(daemon, "--comm", "nginx")
            self._spliffd(NGINX, daemon, probed=True)
            watcher.stop()
            self._spliffd(UNWATCHED, daemon, probed=True)
            with open(os.devnull, "wb") as null:
                client = daemon.client("watch", "-c", stdout=null)
                wait_for(lambda: daemon.stats()["spliff_subscribers"] == 1, 10, "spliffctl")
                self._spliffd(CLI, daemon, probed=True)
                client.send_signal(signal.SIGINT)
                client.communicate()
        finally:
            daemon.stop()
        self._keep(BARE, self._web.load(SECONDS))
        self._sniff(SNIFF, [sys.executable, "-m", "bench.sslsniff", str(self._library())], {})
        if self.tool:
            self._sniff(DEBIAN, self._debian(), {"BCC_KERNEL_SOURCE": str(self._headers())})

    def _library(self) -> Path:
        return self._lab.libraries / "libssl.so.3"

    def _keep(self, case: str, run: Run) -> None:
        self.runs.setdefault(case, []).append(run)
        say(f"   {run.rate:9,.0f} requests/s  {case}")

    def _spliffd(self, case: str, daemon: Watched, *, probed: bool) -> None:
        daemon.settle()
        before = daemon.reading()
        run = self._web.load(SECONDS, probed=probed)
        daemon.settle()
        self.readings.setdefault(case, []).append(daemon.reading().since(before))
        self._keep(case, run)

    def _sniff(self, case: str, command: list[str], environment: dict[str, str]) -> None:
        """Runs the load under another tool, which is attached to the lab's library and nothing else."""
        tool = subprocess.Popen(
            command, stdout=subprocess.PIPE if case == SNIFF else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=REPOSITORY, env={**os.environ, **environment},
        )  # fmt: skip
        self._lab.processes.append(tool)
        wait_for(lambda: probes_held(tool.pid) >= 6 or tool.poll() is not None, 30, case)
        if tool.poll() is not None:
            raise RuntimeError(f"{case} ended with {tool.returncode}")
        self._keep(case, self._web.load(SECONDS))
        stop(tool)
        if tool.stdout is not None:
            seen, lost = tool.stdout.read().split()[1:]
            self.sniffed.append(f"{int(seen):,} events shown, {int(lost):,} lost")

    def _debian(self) -> list[str]:
        assert self.tool is not None
        only = ["--no-openssl", "--no-gnutls", "--no-nss", "--extra-lib", f"openssl:{self._library()}"]
        return ["/usr/bin/python3", self.tool, *only]

    def _headers(self) -> Path:
        """The project's own headers, with the two names that sslsniff includes: no kernel headers needed."""
        folder = self._lab.folder / "headers"
        if not folder.exists():
            shutil.copytree(source_folder() / "include", folder / "include")
            names = folder / "include" / "linux"
            (names / "ptrace.h").write_text("#include <uapi/linux/ptrace.h>\n")
            (names / "sched.h").write_text(
                "#define TASK_COMM_LEN 16\n#define min(a, b) ((a) < (b) ? (a) : (b))\n"
            )
        return folder


def probes_held(pid: int) -> int:
    """How many perf events (uprobes, and the buffer's own) a process holds."""
    folder = f"/proc/{pid}/fd"
    try:
        return sum(os.readlink(f"{folder}/{fd}") == "anon_inode:[perf_event]" for fd in os.listdir(folder))
    except OSError:
        return 0


def measure() -> list[Figure]:
    """All rounds; shares are taken within each round."""
    with Lab("bench-overhead") as lab:
        rounds = Rounds(lab)
        for number in range(ROUNDS):
            say(f"   round {number + 1} of {ROUNDS}")
            rounds.one()
    return figures(rounds)


def figures(rounds: Rounds) -> list[Figure]:
    """Requests/s, share kept, what was seen, what it cost."""
    part = (
        f"overhead: nginx ({WORKERS} workers) under wrk (-t{THREADS} -c{CONNECTIONS}), keep-alive, TLS 1.2 "
        f"(wrk's latest), {BODY_BYTES} B, {os.cpu_count()} CPUs for all"
    )
    rows: list[Figure] = []

    def of(case: str, attribute: Callable[[Run], float]) -> list[float]:
        return [attribute(run) for run in rounds.runs[case]]

    bares = of(BARE, lambda run: run.rate)
    bare = [(before + behind) / 2 for before, behind in zip(bares[::2], bares[1::2], strict=True)]
    cases = [case for case in (BARE, *SPLIFFD, SNIFF, DEBIAN) if case in rounds.runs]
    rows += [median(part, case, of(case, lambda run: run.rate), "requests/s") for case in cases]
    rows[1].note = f"probes: {rounds.placement}"
    for case in cases[1:]:
        kept = [100 * rate / b for rate, b in zip(of(case, lambda run: run.rate), bare, strict=True)]
        note = "; ".join(rounds.sniffed) if case == SNIFF else ""
        target = f">= {KEPT[case]}" if case in KEPT else ""
        rows.append(median(part, f"kept: {case}", kept, "%", target=target, note=note))
    for case in SPLIFFD:
        rows += account(part, case, rounds.runs[case], rounds.readings[case], bare)
    rows += [
        median(part, f"nginx CPU per request: {case}", of(case, lambda run: run.server_us), "us")
        for case in cases
    ]
    return rows


def account(
    part: str, case: str, runs: list[Run], readings: list[Reading], bare: list[float]
) -> list[Figure]:
    """Exchanges seen and records lost against requests made, and the daemon's CPU for them.

    A request or a response of this size is one record at each end: records read and records lost must be
    two for each request made. At wrk's end up to one request a connection is under way: taken by nginx,
    never finished by wrk. "Kept and seen" is what the promise is about: a server that runs fast because
    spliff does not keep up with it has kept nothing worth having. What nobody watches is mostly counted only.
    """
    made = [run.served + (run.finished if case != SERVER else 0) for run in runs]
    seen = [100 * (r.exchanges + r.unsampled) / m for r, m in zip(readings, made, strict=True)]
    told = [
        100 * (r.records + r.ring_full + 2 * r.shed) / (2 * m) for r, m in zip(readings, made, strict=True)
    ]
    notes = [
        f"{m:,} made, {r.exchanges:,} seen ({r.incomplete:,} incomplete), {r.unsampled:,} only counted; "
        f"lost: {r.told()}"
        for m, r in zip(made, readings, strict=True)
    ]
    cpu = [r.cpu_ns / 1e6 / max(1, r.exchanges + r.unsampled) * 1000 for r in readings]
    both = [s * run.rate / b for s, run, b in zip(seen, runs, bare, strict=True)]
    target = ">= 99.9" if case == BOTH else ""
    return [
        median(part, f"kept and seen or counted: {case}", both, "%", target=">= 40" if case == BOTH else ""),
        median(part, f"seen or counted: {case}", seen, "%", target=target, note="\n      ".join(notes)),
        *(
            [median(part, f"seen or told as lost, in records: {case}", told, "%")]
            if case not in (NGINX, UNWATCHED)
            else []
        ),
        median(part, f"daemon CPU per 1,000 exchanges: {case}", cpu, "ms"),
    ]
