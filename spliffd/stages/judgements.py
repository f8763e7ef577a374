"""Which cgroups the watchers of units and containers mean.

Takes their patterns; walks the tree of cgroup v2 and writes for each cgroup whether it is wanted into the
kernel's table (``judged``; bpf/demand.bpf.c), by the rule that a process's unit and container are found by
(``attribution.processes.owners``). A cgroup that is not in the table is wanted: one that was just made, one
outside of this cgroup namespace, one that finds the table full. New ones are judged when a process in them
calls exec (``seen``), and by another walk when the kernel has met one that nobody judged (``again``). A host
may have thousands: a walk goes in steps, between which others have their turn. Reads names of directories,
and the type of a cgroup; never which processes are in it.

A path says nothing where version 1 hierarchies name the unit: then processes in the root of version 2, where
such a host has them, are wanted whoever they are, and a line in the log says so.
"""

from __future__ import annotations

import fnmatch
import os
import re
import struct
from collections.abc import Callable, Iterator

from spliffd.attribution.processes import owners
from spliffd.journal import logger
from spliffd.kernel import bpf
from spliffd.kernel.maps import JUDGED

log = logger("judgements")

MAX_DEPTH = 24
"""Levels of a path, as the kernel tells them (CGROUP_STEPS): what is below is not judged."""

STEP = 16
"""Cgroups judged in a step: 0.5 ms on a quiet host, 5 ms where little of the tree is cached."""


class Judgements:
    """``fd``: the kernel's table; ``root``: where cgroup v2 is mounted, "" without."""

    def __init__(self, fd: int, root: str | None = None, *, version1: bool | None = None) -> None:
        self._fd = fd
        self._root = mounted() if root is None else root
        self._version1 = has_version1() if version1 is None else version1
        self._match: Callable[[str], bool] | None = None
        self._judged: dict[str, tuple[int, bool, bool]] = {}
        """By path: the cgroup's id, what was said of it, and whether that holds for all watchers."""
        self._walking = False
        self._told = False
        self.pending = False
        """Whether a walk is asked for: ``steps``."""
        self.refused = 0
        """Cgroups that found the table full, in the last walk: their processes are delivered."""

    @property
    def wanted(self) -> bool:
        """Whether anybody watches a unit or a container."""
        return self._match is not None

    def watch(self, units: list[str], containers: list[str]) -> None:
        """From now on these are wanted, and no others that are judged; those that are not wait for a walk."""
        self._match = matcher(units, containers) if units or containers else None
        if self._match is None:
            return
        for path, (number, _, always) in list(self._judged.items()):
            self._say(path, number, always=always)
        self.again()

    def again(self) -> None:
        """Asks for a walk."""
        self.pending = self.wanted

    def steps(self) -> Iterator[None]:
        """Judges every cgroup there is, if that is asked for; forgets those that are gone. One at a time."""
        if self._walking:
            return
        self._walking = True
        try:
            while self.pending:
                self.pending = False
                yield from self._all()
        finally:
            self._walking = False

    def _all(self) -> Iterator[None]:
        if self._version1 and not self._told:
            self._told = True
            log.warning(
                "this host has cgroups of version 1: processes without one of version 2 are delivered "
                "to watchers of units and containers whoever they are",
                remedy="systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
            )
        gone = set(self._judged)
        self.refused = 0
        for number, (path, folder) in enumerate(self._walk(), 1):
            gone.discard(path)
            self._judge(path, folder)
            if not number % STEP:
                yield
        for path in gone:
            self._forget(path)
        if self.refused:
            log.warning("more cgroups than can be judged: theirs is delivered", cgroups=self.refused)

    def seen(self, path: str) -> None:
        """A process runs in this cgroup: judges it, if that has not been done."""
        if self._match is None or not self._root or path == "/":
            return
        if path.startswith("/") and ".." not in path.split("/"):  # else it is cut, or of another namespace
            self._judge(path, self._root + path, anew=False)

    def _judge(self, path: str, folder: str, *, anew: bool = True) -> None:
        known = self._judged.get(path)
        try:
            number = os.stat(folder).st_ino
            if known is not None and known[0] == number and not anew:
                return
            always = (path == "/" and self._version1) or threaded(folder)
        except OSError:
            return  # gone meanwhile
        if known is not None and known[0] != number:  # made anew under its old name
            self._forget(path)
        self._say(path, number, always=always)

    def _say(self, path: str, number: int, *, always: bool) -> None:
        """Writes down whether the cgroup of this path and id is wanted."""
        name = os.fsencode(path).decode(errors="replace")  # as the facts of its processes have it
        wanted = always or self._match is None or self._match(name)
        if self._judged.get(path) == (number, wanted, always):
            return
        if path not in self._judged and len(self._judged) >= JUDGED:
            self.refused += 1
            return
        try:
            bpf.map_update(self._fd, struct.pack("=Q", number), bytes([wanted]))
        except OSError:  # no memory
            self._forget(path)
            self.refused += 1
            return
        self._judged[path] = number, wanted, always

    def _forget(self, path: str) -> None:
        known = self._judged.pop(path, None)
        if known is not None:
            bpf.map_delete(self._fd, struct.pack("=Q", known[0]))

    def _walk(self) -> Iterator[tuple[str, str]]:
        """Paths of all cgroups, and their folders."""
        if not self._root:
            return
        rest = [""]
        while rest:
            path = rest.pop()
            folder = self._root + path
            yield path or "/", folder
            if path.count("/") >= MAX_DEPTH:
                continue
            try:
                with os.scandir(folder) as entries:
                    rest += [f"{path}/{one.name}" for one in entries if one.is_dir(follow_symlinks=False)]
            except OSError:
                continue


def matcher(units: list[str], containers: list[str]) -> Callable[[str], bool]:
    """Whether a cgroup's path names a wanted unit or container (api/filter.py, "units", "containers")."""
    try:
        unit = re.compile("|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in units)).match
    except re.error:  # the api has refused these
        return lambda _: True
    prefixes = tuple(containers)

    def match(path: str) -> bool:
        name, container = owners(path)
        return bool((units and unit(name)) or (prefixes and container.startswith(prefixes)))

    return match


def threaded(folder: str) -> bool:
    """Whether its threads may be of a process that counts as in a cgroup above."""
    try:
        with open(f"{folder}/cgroup.type", "rb") as file:
            return file.read().startswith(b"threaded")
    except FileNotFoundError:  # the root has no type
        return False


def mounted() -> str:
    """Where the whole tree of cgroup v2 that this process sees is mounted; "" when it is not."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields, _, source = line.partition(" - ")
                if source.startswith("cgroup2 ") and fields.split()[3] == "/":
                    return fields.split()[4].rstrip("/")
    except OSError:
        pass
    return ""


def has_version1() -> bool:
    """Whether processes have cgroups of version 1 as well."""
    try:
        with open("/proc/self/cgroup", "rb") as file:
            return any(not line.startswith(b"0:") for line in file)
    except OSError:
        return True
