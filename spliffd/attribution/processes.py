"""Who a process is: executable, command line, user, cgroup, unit, container.

Takes a pid and the start time the kernel gave with the plaintext; returns ``ProcessFacts``, with empty
text for what could not be had: from /proc while the process lives, otherwise from what the kernel told at
its exec. The start time guards against pid reuse: facts of another process that got the same pid are never
returned. Runs in the supervisor, which may read /proc of others; reads nothing else. Sources: proc(5);
systemd.slice(5); the cgroup path formats of docker, containerd, podman.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections import OrderedDict

from spliffd.ipc import ProcessFacts
from spliffd.kernel.records import unpack_exec

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

CMDLINE_BYTES = 4096
"""Longer command lines (Java) are cut: it identifies the process, it is not evidence."""

REMEMBERED_BYTES = 2 << 20
"""Exec records kept for processes that end before a worker asks: 4,096 of usual size (512 bytes, with what
Python adds). The oldest go first; a process that lives is read from /proc anyway."""

COMM_CHARACTERS = 15
"""What the kernel keeps of a program's name (TASK_COMM_LEN)."""

GENERATIONS = 32
"""Ancestors that are told: a build deep in a terminal has some fifteen; 10 us each, once for each program."""

STARTS = 4096
"""Pids whose latest start is remembered: as many as records of usual size."""

RECORD_OVERHEAD = 256
"""Memory of a remembered record beyond its text."""

_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/|$)")
_UNIT = re.compile(r"/([^/]+\.(?:service|scope|socket|mount|swap))(?=/|$)")


class Processes:
    """Reads and remembers facts of processes."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._records: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held = 0
        self._starts: OrderedDict[int, int] = OrderedDict()

    def remember(self, pid: int, start_ns: int, record: bytes) -> None:
        """Keeps a process_record (bpf/events.h), in case the process is gone when somebody asks."""
        old = self._records.pop((pid, start_ns), None)  # a shell that becomes the program it was to start
        if old is not None:
            self._held -= len(old) + RECORD_OVERHEAD
        self._records[pid, start_ns] = record
        self._held += len(record) + RECORD_OVERHEAD
        while self._held > REMEMBERED_BYTES:
            self._held -= len(self._records.popitem(last=False)[1]) + RECORD_OVERHEAD
        self._starts[pid] = start_ns
        self._starts.move_to_end(pid)
        while len(self._starts) > STARTS:
            self._starts.popitem(last=False)

    def facts(self, pid: int, start_ns: int) -> tuple[ProcessFacts, bool]:
        """Facts of the process, and whether any could be had.

        A live process is read anew: it may have moved to another cgroup since its exec. One that has ended
        and was not yet waited for still has a folder, but no executable: what was remembered says more.
        """
        found = self._read(pid, start_ns)
        if found is None or not found.exe:
            record = self._records.get((pid, start_ns))
            if record is not None:
                found = _recalled(pid, start_ns, record, found)
        if found is None:
            return ProcessFacts(pid, start_ns, "", "", "", "", "", ""), False
        found.ancestors = self._ancestors(found.ppid, start_ns)
        return found, True

    def _ancestors(self, pid: int, start_ns: int) -> list[int]:
        """A parent, its parent, and so on; none that started after its child: that has only taken the pid."""
        found: list[int] = []
        while pid and len(found) < GENERATIONS:
            found.append(pid)
            pid, start_ns = self._parent(pid, start_ns)
        return found

    def _parent(self, pid: int, before_ns: int) -> tuple[int, int]:
        """The parent of the process that had ``pid`` when a child of it started; when that one started."""
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                stat = file.read()
            start_ns = start_ticks(stat) * TICK_NS
            if start_ns <= before_ns + TICK_NS:
                return parent(stat), start_ns
        except (OSError, ValueError, IndexError):
            pass
        start_ns = self._starts.get(pid, 0)
        record = self._records.get((pid, start_ns))
        if record is None or start_ns > before_ns + TICK_NS:
            return 0, 0
        return unpack_exec(record).ppid, start_ns

    def start_of(self, pid: int) -> int:
        """When the process that has this pid now started, ns since boot to the tick; 0 when there is none."""
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                return start_ticks(file.read()) * TICK_NS
        except (OSError, ValueError, IndexError):
            return 0

    def holder(self, pid: int, when_ns: int) -> int:
        """Start time of the process that had this pid at a time (ns since boot); 0 when that is not known."""
        start = self.start_of(pid)
        if start and start <= when_ns + TICK_NS:
            return self.exact(pid, start)
        start = self._starts.get(pid, 0)
        return start if start <= when_ns + TICK_NS else 0

    def exact(self, pid: int, start_ns: int) -> int:
        """A start time of /proc as the kernel's events told it, where they did: to the nanosecond."""
        known = self._starts.get(pid, 0)
        return known if abs(known - start_ns) <= TICK_NS else start_ns

    def _read(self, pid: int, start_ns: int) -> ProcessFacts | None:
        folder = f"{self._proc}/{pid}"
        try:
            with open(f"{folder}/stat", "rb") as file:
                stat = file.read()
            if abs(start_ticks(stat) * TICK_NS - start_ns) > TICK_NS:
                return None
            name = stat.partition(b"(")[2].rpartition(b")")[0]
            ppid = parent(stat)
            with open(f"{folder}/cmdline", "rb") as file:
                raw = file.read(CMDLINE_BYTES)
            with open(f"{folder}/cgroup", "rb") as file:
                cgroup = parse_cgroup(file.read().decode(errors="replace"))
            uid = os.stat(folder).st_uid
        except (OSError, ValueError, IndexError):
            return None
        try:
            exe = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")
        except OSError:
            exe = ""
        return ProcessFacts(
            pid, start_ns, exe, command(raw), user_name(uid), cgroup, *owners(cgroup),
            name.decode(errors="replace"), ppid, uid,
        )  # fmt: skip


def start_ticks(stat: bytes) -> int:
    """Field 22 of /proc/PID/stat, counted from behind the command name, which may hold anything."""
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def parent(stat: bytes) -> int:
    """Field 4 of /proc/PID/stat."""
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def _recalled(pid: int, start_ns: int, record: bytes, zombie: ProcessFacts | None) -> ProcessFacts:
    then = unpack_exec(record)
    cgroup = then.cgroup
    if cgroup == "/" and zombie is not None:
        cgroup = zombie.cgroup  # of a version 1 hierarchy, which the kernel's record does not tell
    return ProcessFacts(
        pid, start_ns, then.exe, command(then.cmdline), user_name(then.uid), cgroup, *owners(cgroup),
        os.path.basename(then.exe)[:COMM_CHARACTERS], then.ppid, then.uid,
    )  # fmt: skip


def command(raw: bytes) -> str:
    """A command line as it could be typed, from its arguments as they lie in memory."""
    text = raw.rstrip(b"\0").decode(errors="replace")
    return shlex.join(text.split("\0")) if raw else ""


def parse_cgroup(text: str) -> str:
    """The path that says most: cgroup v2's, unless that is the root and a v1 hierarchy knows more."""
    unified = named = ""
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[0] == "0":
            unified = parts[2]
        elif parts[1] == "name=systemd" or not named:
            named = parts[2]
    return unified if unified not in ("", "/") else named or unified


def owners(cgroup: str) -> tuple[str, str]:
    """Unit and container id named by a cgroup path; "" for what it does not name."""
    container = _CONTAINER.search(cgroup)
    units = _UNIT.findall(cgroup)
    return (units[-1] if units else ""), (container.group(1) if container else "")


_names: dict[int, str] = {}


def user_name(uid: int) -> str:
    """Name of a user; "" when the host's database has none."""
    name = _names.get(uid)
    if name is None:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = ""
        if len(_names) < 1024:  # a host with more users than this asks the database again
            _names[uid] = name
    return name
