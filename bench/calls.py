"""What a probed TLS call costs the program that makes it: ns added to a write + read, for each library.

A client of the lab exchanges requests and responses of N bytes with a server that nobody probes. In each
round, one after the other: no probe; nobody watches (the connection is left out); a body of which nothing is
wanted; 1 KiB and 4 KiB calls that are copied whole; the same with every probe at a first instruction, entry
and return apart; and the probes of an sslsniff. The eBPF programs are the real ones, without a daemon. CPU
time of the calling thread: other load disturbs it less than wall time, and rounds alternate.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.callers import FILES, LOOP, PROGRAMS, SERVER, SYMBOLS
from bench.overhead import probes_held
from bench.report import Figure
from spliffd.kernel import records
from spliffd.kernel.maps import DEMAND_SHARE, DEMAND_SINCE
from spliffd.kernel.unwanted import Unwanted
from spliffd.stages.demands import Demands
from tests.support.lab import PYTHON, REPOSITORY, Lab, say, stop, wait_for
from tests.support.tracer import Tracer

ROUNDS = 5
PAIRS = 400
KIB = 1024
FAR_AWAY = 1 << 62

NOBODY, NOTHING, ONE, FOUR, CLASSIC, SNIFF = (
    "4 KiB calls, nobody watches",
    "4 KiB calls, 0 wanted",
    "1 KiB calls, all wanted",
    "4 KiB calls, all wanted",
    "4 KiB calls, all wanted, --no-relocate and two links",
    "4 KiB calls, the probes of sslsniff (own equivalent)",
)


class Caller:
    """A client of one library and its server, connected."""

    def __init__(self, lab: Lab, library: str) -> None:
        source = next(Path("/usr/lib").glob(f"*/{FILES[library]}"))
        self.path = lab.libraries / FILES[library]
        if not self.path.exists():
            shutil.copy(source, self.path)
        self._server = lab.start(
            *(PYTHON, "-c", SERVER, lab.certificate, lab.key),
            stdout=subprocess.PIPE,
            env={"LD_LIBRARY_PATH": ""},
        )
        assert self._server.stdout is not None
        port = self._server.stdout.readline().decode().strip()
        program = PROGRAMS[library] + LOOP
        self._process = lab.start(
            *(PYTHON, "-c", program, "client", port, "/", "/"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._line() != "connected":
            raise RuntimeError(f"the {library} client did not connect")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def pair_ns(self, size: int, pairs: int = PAIRS) -> float:
        """CPU ns of a write and a read of ``size`` bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d %d\n" % (size, pairs))
        self._process.stdin.flush()
        return int(self._line()) / pairs

    def stop(self) -> None:
        """Ends both."""
        stop(self._process)
        stop(self._server)


def left_out(tracer: Tracer, caller: Caller) -> None:
    """Nobody watches, and the connection is not in the share."""
    Demands(tracer.maps, 1).wanted(0, 0, None)
    tracer.maps.demand[DEMAND_SINCE] = FAR_AWAY
    tracer.maps.demand[DEMAND_SHARE] = 0
    caller.pair_ns(KIB, 2)


def body_unwanted(tracer: Tracer, caller: Caller) -> None:
    """Somebody watches, nobody wants what comes."""
    Demands(tracer.maps, 1).wanted(0, 1, None)
    caller.pair_ns(KIB, 2)
    key = next(record.key for record in tracer.read() if record.kind == records.DATA)
    Unwanted(tracer.maps.fd["unwanted"]).until(key, FAR_AWAY, FAR_AWAY)


def wanted(tracer: Tracer, caller: Caller) -> None:
    """Somebody watches all of it."""
    Demands(tracer.maps, 1).wanted(0, 1, None)
    caller.pair_ns(KIB, 2)


CASES: dict[str, tuple[int, bool, Callable[[Tracer, Caller], None]]] = {
    NOBODY: (4 * KIB, True, left_out),
    NOTHING: (4 * KIB, True, body_unwanted),
    ONE: (KIB, True, wanted),
    FOUR: (4 * KIB, True, wanted),
    CLASSIC: (4 * KIB, False, wanted),
}


def sniffed(lab: Lab, caller: Caller, library: str) -> float:
    """The same under the probes of another tool, on the lab's copy and nothing else."""
    command = [sys.executable, "-m", "bench.sslsniff", str(caller.path), *SYMBOLS[library]]
    tool = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    lab.processes.append(tool)
    wait_for(lambda: probes_held(tool.pid) >= 4 or tool.poll() is not None, 30, "sslsniff")
    if tool.poll() is not None:
        raise RuntimeError(f"sslsniff ended with {tool.returncode}")
    caller.pair_ns(KIB, 2)
    try:
        return caller.pair_ns(4 * KIB)
    finally:
        stop(tool)


def of_library(lab: Lab, library: str) -> list[Figure]:
    """All rounds of one library; differences are taken within a round."""
    caller = Caller(lab, library)
    bare: dict[int, list[float]] = {KIB: [], 4 * KIB: []}
    added: dict[str, list[float]] = {}
    places = ""
    for size in bare:
        caller.pair_ns(size)
    for _ in range(ROUNDS):
        for size, samples in bare.items():
            samples.append(caller.pair_ns(size))
        for name, (size, cheap, prepare) in CASES.items():
            with Tracer(lab, library=FILES[library], relocate=cheap, sessions=cheap) as tracer:
                if cheap:
                    places = where(tracer)
                prepare(tracer, caller)
                added.setdefault(name, []).append(caller.pair_ns(size) - bare[size][-1])
        added.setdefault(SNIFF, []).append(sniffed(lab, caller, library) - bare[4 * KIB][-1])
    caller.stop()
    part = f"calls: added to a write + read of one TLS connection, {library}"
    base = {size: statistics.median(samples) for size, samples in bare.items()}
    rows = [
        Figure(part, f"no probe: write + read of {size} B (ctypes and system calls included)", value, "ns")
        for size, value in base.items()
    ]
    for name, samples in added.items():
        size = CASES[name][0] if name in CASES else 4 * KIB
        value = statistics.median(samples)
        note = f"x{(base[size] + value) / base[size]:.2f} of no probe"
        if name != SNIFF:
            note += f", {100 * value / statistics.median(added[SNIFF]):.0f} % of what sslsniff adds"
        note += f"; {places}" if name == NOBODY else ""
        rows.append(Figure(part, name, value, "ns", note=note, samples=samples))
    return rows


def where(tracer: Tracer) -> str:
    """Where reads and writes are probed, and whether behind the first instruction."""
    sites = [site for site in tracer.inspection.sites if site.op in ("read", "write")]
    return ", ".join(f"{site.symbol} {site.placement}" for site in sites)


def measure() -> list[Figure]:
    """One library after the other; one that is not installed is left out, and said."""
    rows: list[Figure] = []
    with Lab("bench-calls") as lab:
        for library, file in FILES.items():
            if not list(Path("/usr/lib").glob(f"*/{file}")):
                say(f"   {library}: {file} is not installed")
                continue
            say(f"   {library}")
            rows += of_library(lab, library)
    return rows
