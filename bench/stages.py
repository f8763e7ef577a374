"""Where a worker's time goes: the same records, taken through more and more of its stages.

The ring is filled by the kernel (``generator``), then drained in this process by the worker's own parts,
so that nothing but one stage differs between two figures: reading the ring; finding the connection and
parsing, as while nobody watches; serialising for a watcher; packing batches and sending them to a sink.
CPU time of this thread, medians of rounds in turn. No rate, no wake-ups, no other process in the figure.
"""

from __future__ import annotations

import gc
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable

from bench.generator import Run, load, open_flows
from bench.report import Figure
from spliffd import ipc
from spliffd.config import Access
from spliffd.correlation.engine import Engine
from spliffd.correlation.flows import Kernel
from spliffd.counters import Area
from spliffd.kernel.flows import Flow
from spliffd.kernel.maps import Maps
from spliffd.kernel.ring import Ring
from spliffd.protocols.masking import Masker
from spliffd.worker.loop import BUDGET
from spliffd.worker.output import Output
from spliffd.worker.receiver import FrameMaker
from spliffd.worker.tables import Tables

RING_MIB = 32
EXCHANGES = 8000
"""A filling: 2 KiB an exchange, half of the ring."""

ROUNDS = 7

REPEATING = "all of it, when every head is the same"
LINKED = ("+ batches", "all of it")
"""Stages that send; the others make frames, and forget them batch by batch."""


def nobody(*_: object) -> None:
    """No supervisor to ask."""


def no_flows(_pid: int, _not_before: int, _role: str) -> list[tuple[int, Flow]]:
    """Every socket is named here."""
    return []


class Stage:
    """The worker's parts up to one stage, with connections of their own."""

    def __init__(self, maps: Maps, area: Area, number: int, output: Output | None, *, watched: bool) -> None:
        self.ring = Ring(maps.rings[0], RING_MIB << 20)
        self.output = output
        self.engine: Engine | None = None
        if output is not None:
            masker = Masker(os.urandom(ipc.MASK_KEY_BYTES), Access().mask_headers, Access().mask_fields)
            maker = FrameMaker(output, area.workers[number], number, nobody, masker)
            maker.wall_offset_ns = time.time_ns() - time.monotonic_ns()
            maker.demands(
                ipc.Demand(int(watched), bodies=False, body_limit=0, handshakes=False, messages=False)
            )
            kernel = Kernel(
                Tables(0, 0, maps.to_look["flows"], maps.to_look["hellos"]).hops, no_flows, lambda: True
            )
            self.engine = Engine(maker, area.workers[number], 0, kernel)
            self.engine.interfaces({1: "lo"})

    def consume(self) -> float:
        """Takes everything that is in the ring through this stage; CPU us of one exchange."""
        ring, engine, output = self.ring, self.engine, self.output
        began = time.thread_time_ns()
        while positions := ring.drain(BUDGET):
            if engine is not None:
                engine.handle(ring.data, positions)
                engine.hand_out(time.monotonic_ns(), busy=len(positions) == BUDGET)
            ring.release()
        if output is not None:
            output.flush()
        return (time.thread_time_ns() - began) / 1000 / EXCHANGES


def sinking() -> socket.socket:
    """One end of a data link whose other end is read in a thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, 32, ipc.SEND_BUFFER)  # 32: SO_SNDBUFFORCE

    def read() -> None:
        buffer = bytearray(ipc.MAX_DATAGRAM)
        while theirs.recv_into(buffer):
            pass

    threading.Thread(target=read, daemon=True).start()
    return ours


def measure() -> list[Figure]:
    """Each stage over its own connections; records of one filling go to one stage."""
    names: dict[str, Callable[[Maps, Area], Stage]] = {
        "ring reader alone": lambda maps, area: Stage(maps, area, 0, None, watched=False),
        "+ connections and HTTP/1 parser (nobody watches)": lambda maps, area: Stage(
            maps, area, 1, Output(area.workers[1]), watched=False
        ),
        "+ serialising (somebody watches)": lambda maps, area: Stage(
            maps, area, 2, Output(area.workers[2]), watched=True
        ),
        "+ batches over a socket": lambda maps, area: Stage(
            maps, area, 3, Output(area.workers[3]), watched=True
        ),
        REPEATING: lambda maps, area: Stage(maps, area, 3, Output(area.workers[3]), watched=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in names}
    for name, make in names.items():
        maps, area = Maps(1, RING_MIB << 20), Area.create()
        program = Run(load(maps.fd, vary=name != REPEATING))
        open_flows(maps.fd["flows"])
        stage = make(maps, area)
        if stage.output is not None and name.startswith(LINKED):
            stage.output.link = sinking()
        gc.collect()
        gc.freeze()  # as the worker does: what was imported is no business of the collector
        for number in range(ROUNDS + 1):
            program.run(EXCHANGES)
            spent = stage.consume()
            if number:  # the first opens the connections
                taken[name].append(spent)
        check(stage, maps, area)
        stage.ring.close()
        maps.close()
    part = "stages: CPU of one exchange in the worker, stage by stage (no rate, no wake-ups)"
    rows: list[Figure] = []
    before = 0.0
    for name, samples in taken.items():
        value = statistics.median(samples)
        rows.append(
            Figure(
                part,
                name,
                value,
                "us",
                note="" if name == REPEATING else f"{value - before:.2f} us more",
                samples=samples,
            )
        )
        before = value
    return rows


def check(stage: Stage, maps: Maps, area: Area) -> None:
    """All exchanges of all fillings must have been finished."""
    lost = maps.counters.get("ring_full_data_records")
    seen = max(
        sum(value for name, value in worker.values().items() if name.startswith("exchanges/"))
        for worker in area.workers[:4]
    )
    if lost or (stage.engine is not None and seen != EXCHANGES * (ROUNDS + 1)):
        raise RuntimeError(f"{seen} of {EXCHANGES * (ROUNDS + 1)} exchanges finished, {lost} records lost")
