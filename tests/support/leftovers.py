"""What spliff could leave behind in the kernel, as text to compare before and after."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def leftovers() -> dict[str, str]:
    """Links, programs, maps, cgroup programs, XDP, TC and uprobe_events of the whole host."""
    commands = {
        "links": ["bpftool", "-j", "link", "show"],
        "programs": ["bpftool", "-j", "prog", "show"],
        "maps": ["bpftool", "-j", "map", "show"],
        "cgroup": ["bpftool", "-j", "cgroup", "tree"],
        "net": ["bpftool", "-j", "net", "show"],
        "xdp": ["ip", "-d", "link", "show"],
        "qdisc": ["tc", "qdisc", "show"],
    }
    found = {
        name: subprocess.run(c, capture_output=True, text=True, check=False).stdout
        for name, c in commands.items()
    }
    for folder in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        events = Path(folder) / "uprobe_events"
        if events.exists():
            found["uprobe_events"] = events.read_text()
    return found


IDS = {"link_id:": "link", "prog_id:": "prog", "map_id:": "map"}


def held(pids: list[int]) -> set[tuple[str, int]]:
    """Links, programs and maps that these processes hold open, by kind and id."""
    found = set()
    for pid in pids:
        try:
            fds = list(Path(f"/proc/{pid}/fdinfo").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile, as those that read one file for the inspector do
        for fd in fds:
            try:
                lines = fd.read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed meanwhile
            for line in lines:
                key, _, value = line.partition("\t")
                if key in IDS:
                    found.add((IDS[key], int(value)))
    return found


def existing() -> set[tuple[str, int]]:
    """All links, programs and maps of the host. Others come and go while a test runs: ask for your own."""
    return {
        (kind, item["id"])
        for kind in ("link", "prog", "map")
        for item in json.loads(
            subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, check=True).stdout or "[]"
        )
    }
