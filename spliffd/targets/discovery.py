"""Finds the files that may hold TLS code: what processes have mapped, and what lies in library folders.

Takes process ids or cgroup directories; returns ``Candidate``s, one a file, with the processes that map
it. ``open_file`` opens one through /proc, so that files of containers, of other mount namespaces and
deleted ones are reached. Reads /proc and directories only; never reads a candidate's content.
A process that vanishes midway is normal and simply contributes nothing.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

import msgspec

MIN_EXECUTABLE = 1 << 20
"""Bytes of a main executable that may hold a TLS library: OpenSSL alone is larger."""

MAX_MAPS = 16 << 20
"""Bytes of one process's maps that are read: 65,530 mappings, the kernel's default limit, are half of it."""

MAX_CGROUPS = 10_000
"""Directories of one scope that are looked into; a host has some hundred."""

MAX_MAPPINGS = 16
"""Processes kept for each file, to open it through: they may end one after the other, but not all at once."""

LIBRARY_NAMES = (
    "libssl*.so*",
    "libgnutls.so*",
    "libgnutls-*.so*",
    "libnspr4*.so*",
    "libwolfssl*.so*",
    "libmbedtls*.so*",
)
"""Names of shared libraries worth a look; bundled ones are called like libssl-3a880ada.so.1.1."""

MIN_CODE = 128 << 10
"""Bytes of code that a TLS library of any name has at least; libmbedtls has 150 KiB."""

LIBRARY_FOLDERS = ("/usr/lib*", "/usr/lib/*-linux-*", "/usr/local/lib*", "/usr/local/lib/*-linux-*", "/lib*")
"""Where the dynamic linker looks without being told, with one level of multiarch folders."""

_MAPS_LINE = re.compile(
    r"^([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([1-9][0-9]*) +(/.*)$", re.MULTILINE
)
_STACK = re.compile(r"^[0-9a-f]+-([0-9a-f]+) .* \[stack\]$", re.MULTILINE)
_OCTAL = re.compile(r"\\([0-7]{3})")
DELETED = " (deleted)"
"""What the kernel puts behind the path of a file that is not there any more."""


class Mapping(msgspec.Struct, frozen=True):
    """One process that maps a file: where to find the file through it."""

    pid: int
    range: str
    """The mapping's address range, as /proc/PID/map_files names it."""


class Candidate(msgspec.Struct):
    """A file that may hold TLS code."""

    device: int
    """Device number as in /proc/PID/maps; on btrfs and overlay it is not what stat() says."""
    inode: int
    path: str
    """As its processes see it, in their mount namespace."""
    deleted: bool
    """Replaced or removed on disk, but still mapped."""
    executable: bool
    """Whether it is somebody's main program rather than a library."""
    mappings: list[Mapping]
    """Who maps it; empty for a library that nobody uses yet."""


class Look(msgspec.Struct):
    """What one process maps."""

    pid: int
    candidates: list[Candidate]
    """Large main programs, and libraries that may hold TLS code."""
    bits32: bool
    """Whether it is a 32-bit process: its stack lies below 4 GiB."""


def in_scope(path: str, paths: Collection[str], exclude_paths: Collection[str]) -> bool:
    """Whether ``path`` may be probed: named by a glob of ``paths`` (empty: all) and by none of the others.

    Globs are matched against the whole path; ``*`` matches slashes too.
    """
    wanted = not paths or any(fnmatchcase(path, pattern) for pattern in paths)
    return wanted and not any(fnmatchcase(path, pattern) for pattern in exclude_paths)


def pids_in_scope(cgroup_dirs: Collection[str] = (), exclude_dirs: Collection[str] = ()) -> set[int]:
    """The processes in ``cgroup_dirs`` and below (none given: all), without those in ``exclude_dirs``.

    With cgroups given, nothing outside of them is looked at, not even in a list of processes.
    """
    if not cgroup_dirs:
        found = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    else:
        found = set().union(*(_members(directory) for directory in cgroup_dirs))
    return found.difference(*(_members(directory) for directory in exclude_dirs))


def _members(directory: str) -> set[int]:
    members: set[int] = set()
    waiting, seen = [directory], 0
    while waiting and seen < MAX_CGROUPS:
        current = waiting.pop()
        seen += 1
        try:
            members.update(_cgroup_pids(current))
            with os.scandir(current) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # a cgroup that was removed meanwhile has no processes
    return members


def _cgroup_pids(directory: str) -> set[int]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return {int(line) for line in file}
    except OSError:
        # A threaded cgroup lists threads only; /proc knows a thread by its number as well.
        with open(f"{directory}/cgroup.threads", encoding="ascii") as file:
            return {int(line) for line in file}


def scan(
    pids: Iterable[int], paths: Collection[str] = (), exclude_paths: Collection[str] = ()
) -> Iterator[Candidate]:
    """The candidate files of ``pids``, each once, whoever maps it, and only those that are in scope."""
    return merge(filter(None, map(look, pids)), paths, exclude_paths)


def merge(
    looks: Iterable[Look], paths: Collection[str] = (), exclude_paths: Collection[str] = ()
) -> Iterator[Candidate]:
    """The candidate files of several processes, each once and likely ones first, those in scope."""
    found: dict[tuple[int, int], Candidate] = {}
    for one in looks:
        for candidate in one.candidates:
            known = found.get((candidate.device, candidate.inode))
            if known is not None:
                known.mappings += candidate.mappings[: MAX_MAPPINGS - len(known.mappings)]
            elif in_scope(candidate.path, paths, exclude_paths):
                found[candidate.device, candidate.inode] = candidate
    yield from sorted(found.values(), key=lambda candidate: not is_likely(candidate))


def is_likely(candidate: Candidate) -> bool:
    """Whether the candidate is a program, or a library called like one of TLS: these are looked at first."""
    return candidate.executable or is_library_name(candidate.path)


def _length(span: str) -> int:
    start, _, end = span.partition("-")
    return int(end, 16) - int(start, 16)


def look(pid: int) -> Look | None:
    """What a process maps now, in scope or not; None when it is gone, or a kernel thread."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            text = os.fsdecode(file.read(MAX_MAPS))
        main = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
    found: dict[tuple[int, int], Candidate] = {}
    for span, major, minor, inode, name in _MAPS_LINE.findall(text):
        identity = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        if identity in found:
            continue
        # maps escapes newlines, readlink does not.
        name = _OCTAL.sub(lambda match: chr(int(match[1], 8)), name)  # noqa: PLW2901 - the same name, readable
        path = name.removesuffix(DELETED)
        executable = name == main
        if executable and not _is_large(pid):
            continue
        if executable or is_library_name(path) or _length(span) >= MIN_CODE:
            mapping = [Mapping(pid, span)]
            found[identity] = Candidate(*identity, path, path != name, executable, mapping)
    stack = _STACK.search(text)
    return Look(pid, list(found.values()), stack is not None and int(stack[1], 16) <= 1 << 32)


def is_library_name(path: str) -> bool:
    """Whether a shared library of this name is worth a look."""
    name = os.path.basename(path)
    return any(fnmatchcase(name, pattern) for pattern in LIBRARY_NAMES)


def _is_large(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/exe").st_size >= MIN_EXECUTABLE
    except OSError:
        return False


def open_file(candidate: Candidate) -> int:
    """Opens a candidate for reading and returns the fd; raises OSError if no process reaches it any more.

    Tried for each process that maps it: the path in its mount namespace, if that still is the same inode,
    then the mapping itself. The fd is a regular file's, never a FIFO's or a device's.
    """
    problem: OSError = FileNotFoundError(f"{candidate.path}: no process maps it any more")
    for mapping in candidate.mappings:
        base = f"/proc/{mapping.pid}"
        through = [f"{base}/map_files/{mapping.range}"]
        if not candidate.deleted:
            through.insert(0, f"{base}/root{candidate.path}")
        for path in through:
            try:
                return _open_inode(path, candidate.inode)
            except OSError as error:
                problem = error
    if not candidate.mappings:
        return _open_inode(candidate.path, candidate.inode)
    raise problem


def _open_inode(path: str, inode: int) -> int:
    # O_PATH first: whoever owns the path may have put a device there, and opening some of those is
    # an act of its own (a watchdog starts to count). Only what proves to be the file is opened.
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_ino != inode:
            raise FileNotFoundError(f"{path}: another file by now")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def attach_key(fd: int) -> tuple[int, int, int, int]:
    """Tells files apart as uprobes do: by the inode below an overlay, not by the container's view of it.

    Two containers of one image map one file under two device numbers; probing it twice would see each
    call twice. Anonymous devices (overlay, btrfs, tmpfs) therefore do not count: the inode number, the
    size and the time of the last change, to the nanosecond, do.
    """
    status = os.fstat(fd)
    device = status.st_dev if os.major(status.st_dev) else 0
    return device, status.st_ino, status.st_size, status.st_ctime_ns


def known_library_files(paths: Collection[str] = (), exclude_paths: Collection[str] = ()) -> list[Candidate]:
    """Libraries of the host that lie in the standard folders, mapped by anybody or not.

    Attached before their first user starts, they miss nothing of it. Each file once, links resolved.
    """
    found: dict[tuple[int, int], Candidate] = {}
    for folder in LIBRARY_FOLDERS:
        for name in LIBRARY_NAMES:
            for link in sorted(glob.glob(f"{folder}/{name}")):
                path = os.path.realpath(link)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # a dangling link
                if stat.S_ISREG(status.st_mode) and in_scope(path, paths, exclude_paths):
                    identity = (status.st_dev, status.st_ino)
                    found.setdefault(identity, Candidate(*identity, path, False, False, []))
    return list(found.values())
