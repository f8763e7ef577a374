"""What the packet hooks cost a network: iperf3 over a veth pair, every hook in turn.

One TCP stream between two network namespaces, sent and then received by the watched one, in scope, so that
every packet is looked up and counted. The daemon's hooks are switched by reload; "none" is the same daemon
with ``mode = "off"``, "no daemon" none at all. Rounds go round robin, medians are compared. A veth pair moves
what one processor can copy, so a hook that stops segmentation offload (native XDP on veth) or GRO (generic
XDP) shows at its worst.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import time

from bench.report import Figure
from spliffd.pb import spliff_pb2
from tests.support.lab import say, wait_for
from tests.support.thread import FAR, Stage, stage

SECONDS = 2
ROUNDS = 3
BARE = "no daemon"
MODES = {
    "none": ("off", "NONE", ""),
    "TC, TCX links (the default on veth)": ("tc", "TC", "tcx"),
    "TC, clsact filters": ("clsact", "TC", "clsact"),
    "XDP native, TC for what is sent": ("xdp", "XDP", "native"),
    "XDP generic, TC for what is sent": ("xdp-generic", "XDP", "generic"),
}
"""Name: mode of the configuration, and what ListInterfaces then says of the interface."""


DIRECTIONS: dict[str, list[str]] = {"sends": [], "receives": ["-R"]}
"""What the watched namespace does, and iperf3's option for it."""


def stream(golden: Stage, direction: str) -> float:
    """One iperf3 run: Gbit/s that arrived."""
    server = golden.lab.start(*golden.far.enter("iperf3", "-s", "-1", "-B", FAR), stdout=subprocess.DEVNULL)
    wait_for(lambda: ":5201 " in listening(golden), 5, "iperf3")
    done = golden.lab.run(
        *golden.near.enter("iperf3", "-c", FAR, "-t", str(SECONDS), "-J", *DIRECTIONS[direction])
    )
    server.wait(10)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise RuntimeError(f"iperf3: {answer['error']}")
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def listening(golden: Stage) -> str:
    """Sockets that listen in the far namespace."""
    return subprocess.run(golden.far.enter("ss", "-Hltn"), capture_output=True, text=True, check=True).stdout


def switch(golden: Stage, name: str) -> None:
    """Puts all interfaces on another hook."""
    mode, hook, kind = MODES[name]
    (golden.lab.folder / "spliffd.toml").write_text(f'[interfaces]\nmode = "{mode}"\n')
    golden.daemon.process.send_signal(signal.SIGHUP)

    def done() -> bool:
        listed = golden.daemon.stub().ListInterfaces(spliff_pb2.ListInterfacesRequest()).interfaces
        return any((one.name, one.hook, one.mode) == ("eth0", hook, kind) for one in listed)

    wait_for(done, 5, f"eth0 on {mode}")
    time.sleep(0.2)


def measure() -> list[Figure]:
    """All hooks in turn, then the same without a daemon."""
    part = "throughput: one iperf3 stream over a veth pair, by hook of the watched end"
    taken: dict[tuple[str, str], list[float]] = {}
    with stage("bench-iperf") as golden:

        def round_of(name: str) -> None:
            for direction in DIRECTIONS:
                taken.setdefault((name, direction), []).append(stream(golden, direction))
            rates = ", ".join(f"{direction} {taken[name, direction][-1]:.2f}" for direction in DIRECTIONS)
            say(f"   {name}: {rates} Gbit/s")

        for _ in range(ROUNDS):
            round_of(BARE)
            golden.start('[interfaces]\nmode = "off"\n')
            for name in MODES:
                switch(golden, name)
                round_of(name)
            golden.daemon.stop()
    rows = []
    for (name, direction), samples in taken.items():
        value = statistics.median(samples)
        bare = statistics.median(taken[BARE, direction])
        note = "" if name == BARE else f"{100 * value / bare:.0f} % of what goes through without a daemon"
        rows.append(Figure(part, f"{name}: {direction}", value, "Gbit/s", note=note, samples=samples))
    return rows
