"""What finding late libraries costs a process that maps a file, in ns, and how soon probes are there.

A process of the lab maps a file of 64 KiB as code, touches one page and unmaps it, 20,000 times a round;
bare, with the program attached and the file known, and the same outside of the scope. Then a process that is
long started loads a copy of libssl that nobody has seen, 53 times: from dlopen's return until the daemon has
probes in it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

from bench.report import Figure
from spliffd.kernel import links
from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, cgroup_root, say
from tests.support.tracer import Tracer

MAPPINGS = 20_000
ROUNDS = 7
LIBRARIES = 53

MAPPER = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
int main(int count, char **words) {
  int fd = open(words[1], O_RDONLY), rounds = atoi(words[2]);
  struct timespec a, b;
  volatile char sum = 0;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
  for (int i = 0; i < rounds; i++) {
    char *at = mmap(0, 65536, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    sum += *at;
    munmap(at, 65536);
  }
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
  printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / rounds);
}
"""

LOADER = r"""
import ctypes, sys, time
held = []
for line in sys.stdin:
    held.append(ctypes.CDLL(line.strip()))
    print(time.monotonic_ns(), flush=True)
"""


def _one(lab: Lab, program: Path, file: Path, cgroup: Path) -> float:
    process = lab.start(program, file, str(MAPPINGS), cgroup=cgroup, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=120)
    return float(out)


def _costs() -> list[Figure]:
    taken: dict[str, list[float]] = {}
    how = ""
    with Lab("mappings") as lab:
        outside = cgroup_root() / f"{lab.folder.name}-outside"
        outside.mkdir()
        source, program, file = (lab.folder / name for name in ("map.c", "map", "file"))
        source.write_text(MAPPER)
        subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
        file.write_bytes(bytes(65536))
        try:
            for number in range(ROUNDS):
                say(f"   round {number + 1} of {ROUNDS}")
                taken.setdefault("bare", []).append(_one(lab, program, file, lab.cgroup))
                with Tracer(lab) as tracer:
                    attached, how = links.attach_mappings(tracer.programs)
                    for name, cgroup in (("in scope", lab.cgroup), ("out of scope", outside)):
                        taken.setdefault(name, []).append(_one(lab, program, file, cgroup))
                    attached.close()
        finally:
            outside.rmdir()
    return [
        Figure(
            f"mappings: map 64 KiB of a file, touch, unmap ({how})",
            name, statistics.median(samples), "ns", samples=samples,
        )
        for name, samples in taken.items()
    ]  # fmt: skip


def _latencies() -> list[Figure]:
    samples = []
    with Lab("late") as lab:
        daemon = Daemon(lab)
        loader = lab.start(PYTHON, "-S", "-c", LOADER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if loader.stdin is None or loader.stdout is None:
            raise RuntimeError("no pipes")
        time.sleep(6)  # the looks that follow an exec are over
        for number in range(LIBRARIES):
            copy = lab.folder / f"libssl-{number}.so.3"
            copy.write_bytes((lab.libraries / "libssl.so.3").read_bytes())
            offset = os.stat(daemon.log).st_size
            loader.stdin.write(f"{copy}\n".encode())
            loader.stdin.flush()
            loaded = int(loader.stdout.readline())
            while str(copy).encode() not in daemon.log.read_bytes()[offset:]:
                if time.monotonic_ns() - loaded > 10**10:
                    raise RuntimeError(f"{copy} was not found within 10 s")
                time.sleep(0.0002)
            samples.append((time.monotonic_ns() - loaded) / 1e6)
        daemon.stop()
    return [
        Figure(
            "mappings: from dlopen of a copy of libssl until it is probed", "median",
            statistics.median(samples), "ms", samples=samples,
        ),
        Figure("mappings: from dlopen of a copy of libssl until it is probed", "slowest", max(samples), "ms"),
    ]  # fmt: skip


def measure() -> list[Figure]:
    """Both."""
    return [*_costs(), *_latencies()]
