"""``make bench``: everything spliff promises about speed, measured side by side on this machine.

Each part starts what it measures in a lab of its own (a cgroup, private copies of OpenSSL) and takes it
down again; nothing else on the host is probed. Prints a table, writes build/bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import json
import os
import subprocess
import sys
import time

from bench import report
from tests.support.lab import REPOSITORY, say

PARTS = {
    "probes": "ns added to an SSL_write+SSL_read pair, by where the probes sit",
    "calls": "ns added to a write + read, for each TLS library, by how much of it is wanted",
    "packets": "ns that a packet costs at each hook, ours and others'",
    "mappings": "ns that a mapping of a file costs its process, and when a late library is probed",
    "stages": "CPU of one exchange in the worker, stage by stage",
    "protocols": "CPU of an exchange or message by protocol, MiB/s through decoding, the worst records",
    "worker": "exchanges/s that one worker sustains from a real ring without loss",
    "watchers": "CPU of the api and of the whole daemon, with up to 16 watchers, at 5,000 exchanges/s",
    "latency": "from SSL_write's return to the watcher, at 10, 100 and 1,000 exchanges/s",
    "memory": "RSS and PSS of all processes, and time from start to ready",
    "discovery": "time to ready and memory with 503 and 2,003 processes that have TLS libraries",
    "idle": "CPU of all processes while nothing happens and somebody watches",
    "correlation": "share of exchanges tied to their packets, by the load that is offered",
    "throughput": "one iperf3 stream over a veth pair, by packet hook",
    "overhead": "requests/s of nginx under wrk: bare, with spliffd, with an sslsniff",
}
RESULT = REPOSITORY / "build" / "bench.json"


def links() -> set[int]:
    """Ids of every eBPF link on this host."""
    done = subprocess.run(["bpftool", "--json", "link", "show"], capture_output=True, check=True)
    return {link["id"] for link in json.loads(done.stdout or b"[]")}


def held() -> set[int]:
    """Ids of the links that a living process holds: those of other programs on this host."""
    found: set[int] = set()
    for path in glob.glob("/proc/[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            found |= {int(line.split()[1]) for line in file if line.startswith("link_id:")}
    return found


def main() -> int:
    """Runs the parts asked for; 0 unless one could not be measured or left something behind."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures spliff side by side with its absence and with other tools. Needs root.",
        epilog="parts:\n"
        + "\n".join(f"  {name:<10}{text}" for name, text in PARTS.items())
        + "\n\nexamples:\n  make bench\n  python -m bench overhead\n  python -m bench probes worker"
        "\n\nDebian's sslsniff-bpfcc is run too, where it is installed or at the path in SSLSNIFF.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them by default")
    args = parser.parse_args()
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        say("bench attaches eBPF programs: run it as root (sudo make bench)")
        return 3

    about = report.host()
    say(f"== {about['cpus']} CPUs, {about['cpu']}, kernel {about['kernel']}, load {about['load_before']:.2f}")
    before = links()
    figures: list[report.Figure] = []
    failed: list[str] = []
    for name in args.parts or PARTS:
        began = time.monotonic()
        say(f"== {name}: {PARTS[name]}")
        try:
            figures += importlib.import_module(f"bench.{name}").measure()
        except Exception as error:  # one part that cannot run must not cost the figures of the others
            failed.append(f"{name}: {type(error).__name__}: {error}")
            say(f"   not measured: {failed[-1]}")
        say(f"   {time.monotonic() - began:.0f} s")
    report.save(RESULT, about, figures)
    print(report.table(figures))
    print(f"\nwritten to {RESULT.relative_to(REPOSITORY)}; load before it was {about['load_before']:.2f}")
    left = links() - before - held()  # every process of ours has ended: what others hold is theirs
    for line in failed:
        print(f"not measured: {line}")
    if left:
        print(f"left behind: eBPF links {sorted(left)} that nobody holds")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
