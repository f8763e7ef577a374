"""What the probes cost the traced program: ns added to one SSL_write + SSL_read, by placement.

A process of the lab moves N bytes through one TLS 1.3 session over a BIO pair, in memory: nothing but
OpenSSL and the probes. The eBPF programs are the real ones, copying every byte into the real ring; no
daemon runs. Rounds of bare, relocated and classic (function entry and return) alternate; CPU time of the
calling thread is taken, so other load on the host disturbs little. The caller is Python with ctypes:
its own cost is in every round alike and cancels out in the difference.
"""

from __future__ import annotations

import statistics
import subprocess

from bench.report import Figure
from tests.support.lab import PYTHON, Lab, say
from tests.support.tracer import Tracer

SIZES = (1, 256, 4096, 16384)
ROUNDS = 5
PAIRS = {1: 4000, 256: 4000, 4096: 900, 16384: 900}
"""Pairs a round: their records must fit into the ring, or copying is skipped. A call of more than 3,904 B
takes 16.2 KiB of it, so 1,011 pairs fill 32 MiB."""

PROGRAM = r"""
import ctypes as c, sys, time
ssl = c.CDLL(sys.argv[1] + "/libssl.so.3"); crypto = c.CDLL(sys.argv[1] + "/libcrypto.so.3")
P = c.c_void_p
def f(lib, name, result, *arguments):
    function = getattr(lib, name); function.restype = result; function.argtypes = arguments
    return function
new_ctx = f(ssl, "SSL_CTX_new", P, P)
contexts = [new_ctx(f(ssl, "TLS_%s_method" % side, P)()) for side in ("client", "server")]
for kind, path in (("certificate", sys.argv[2]), ("PrivateKey", sys.argv[3])):
    use = f(ssl, "SSL_CTX_use_%s_file" % kind, c.c_int, P, c.c_char_p, c.c_int)
    assert use(contexts[1], path.encode(), 1) == 1
bios = [P(), P()]
assert f(crypto, "BIO_new_bio_pair", c.c_int, P, c.c_size_t, P, c.c_size_t)(
    c.byref(bios[0]), 65536, c.byref(bios[1]), 65536)
new = f(ssl, "SSL_new", P, P); set_bio = f(ssl, "SSL_set_bio", None, P, P, P)
ends = [new(context) for context in contexts]
for end, bio in zip(ends, bios): set_bio(end, bio, bio)
f(ssl, "SSL_set_connect_state", None, P)(ends[0]); f(ssl, "SSL_set_accept_state", None, P)(ends[1])
shake = f(ssl, "SSL_do_handshake", c.c_int, P)
for _ in range(4): done = [shake(end) for end in ends]
assert done == [1, 1], done
write = f(ssl, "SSL_write", c.c_int, P, P, c.c_int); read = f(ssl, "SSL_read", c.c_int, P, P, c.c_int)
out = c.create_string_buffer(b"x" * 16384, 16384); into = c.create_string_buffer(16384)
source, sink = c.addressof(out), c.addressof(into)
client, server = ends
read(client, sink, 16384)   # takes the session tickets in
print(f(ssl, "SSL_get_version", c.c_char_p, P)(client).decode(), flush=True)
for line in sys.stdin:
    size, pairs = map(int, line.split())
    began = time.thread_time_ns()
    for _ in range(pairs):
        write(client, source, size)
        read(server, sink, 16384)
    print(time.thread_time_ns() - began, flush=True)
"""


class Loop:
    """The process that is measured."""

    def __init__(self, lab: Lab) -> None:
        self._process = lab.start(
            PYTHON, "-c", PROGRAM, lab.libraries, lab.certificate, lab.key,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.version = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def pair_ns(self, size: int, pairs: int) -> float:
        """CPU ns of one pair, over ``pairs`` of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d %d\n" % (size, pairs))
        self._process.stdin.flush()
        return int(self._line()) / pairs


def measure() -> list[Figure]:
    """Alternating rounds; every record that was copied is counted against the calls made."""
    taken: dict[tuple[str, int], list[float]] = {}
    placements: dict[str, str] = {}
    with Lab("bench-probes") as lab:
        loop = Loop(lab)
        for size in SIZES:
            loop.pair_ns(size, PAIRS[size])  # warm
        for number in range(ROUNDS):
            say(f"   round {number + 1} of {ROUNDS}")
            for size in SIZES:
                taken.setdefault(("bare", size), []).append(loop.pair_ns(size, PAIRS[size]))
            for name, relocate in (("relocated", True), ("classic", False)):
                with Tracer(lab, relocate=relocate) as tracer:
                    placements[name] = placement(tracer)
                    for size in SIZES:
                        taken.setdefault((name, size), []).append(loop.pair_ns(size, PAIRS[size]))
                        seen = len(tracer.read())
                        if seen < 2 * PAIRS[size]:
                            raise RuntimeError(f"{seen} records for {2 * PAIRS[size]} calls: ring too small")
    return figures(taken, placements, loop.version)


def placement(tracer: Tracer) -> str:
    """Where SSL_read and SSL_write are probed."""
    sites = {
        f"{site.op} {site.placement}" for site in tracer.inspection.sites if site.op in ("read", "write")
    }
    return ", ".join(sorted(sites))


def figures(
    taken: dict[tuple[str, int], list[float]], placements: dict[str, str], version: str
) -> list[Figure]:
    """Added ns: the median of differences within one round, so that slow drift cancels out."""
    part = f"probes: added to SSL_write + SSL_read of N bytes ({version}, BIO pair, all bytes copied)"
    rows: list[Figure] = []
    for size in SIZES:
        bare = taken["bare", size]
        added = {}
        for name in ("relocated", "classic"):
            samples = [with_ - without for with_, without in zip(taken[name, size], bare, strict=True)]
            added[name] = statistics.median(samples)
            note = placements[name] if size == SIZES[0] else ""
            target = "<= 5000" if name == "relocated" and size <= 4096 else ""
            rows.append(
                Figure(
                    part, f"{size} B, {name}", added[name], "ns", target=target, note=note, samples=samples
                )
            )
        rows.append(Figure(part, f"{size} B, bare pair (ctypes included)", statistics.median(bare), "ns"))
        rows.append(
            Figure(part, f"{size} B, classic / relocated", added["classic"] / added["relocated"], "x")
        )
    return rows
