"""Tells which files processes map as code, at the moment when they do: by perf's side-band events.

Takes cgroup fds (none: every process of the host); ``fds`` become readable, ``drain`` returns the mappings.
The dynamic loader maps a program's libraries before it runs a line of it, and dlopen maps a library before it
returns, so that there are milliseconds until a library of TLS is used: enough to probe it. No process is held
up for it. Every executable mapping is an event; with cgroups given, others leave the kernel for none.

Never opens a file, never says what is in it. What did not fit is counted in ``lost``.

Memory order: as in ``ring.py``, which see; the kernel's half is described in ``uapi/linux/perf_event.h``.
Source: perf_event_open(2), PERF_RECORD_MMAP2 and PERF_RECORD_LOST.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from spliffd.kernel import bpf

PAGES = 32
"""Of each processor's ring, 128 KiB: a thousand mappings, as of thirty programs that start together. What all
rings of a user may hold without further privilege is 516 KiB for each processor."""

_SOFTWARE, _DUMMY = 1, 9
_MMAP, _WATERMARK, _MMAP2 = 1 << 8, 1 << 14, 1 << 23
_ATTR = struct.Struct("=IIQQQQQII72x")
_HEAD, _TAIL = 1024 // 8, 1032 // 8
_HEADER = struct.Struct("=IHH")
_MMAP2_RECORD, _LOST_RECORD = 10, 2
_MAPPED = struct.Struct("=II QQQ II QQ II")
_LOST = struct.Struct("=QQ")
_NAME_AT = _HEADER.size + _MAPPED.size


class Mapped(NamedTuple):
    """One executable mapping: of which file, by whom, where."""

    pid: int
    start: int
    length: int
    device: int
    """As in /proc/PID/maps."""
    inode: int
    path: str
    """As the process sees it."""


class _Cpu:
    """One perf event with its ring."""

    def __init__(self, target: int, cpu: int, flags: int) -> None:
        attr = bytearray(_ATTR.size)
        options = _MMAP | _MMAP2 | _WATERMARK
        _ATTR.pack_into(attr, 0, _SOFTWARE, _ATTR.size, _DUMMY, 0, 0, 0, options, 1, 0)
        self.fd = bpf.perf_event_open(attr, target, cpu, flags)
        try:
            self._map = mmap.mmap(self.fd, (1 + PAGES) * mmap.PAGESIZE)
        except OSError:
            os.close(self.fd)
            raise
        self._words = memoryview(self._map).cast("Q")
        self._size = PAGES * mmap.PAGESIZE

    def drain(self) -> tuple[list[Mapped], int]:
        """What has come since, and how many records were lost."""
        head, tail = self._words[_HEAD], self._words[_TAIL]
        data = self._bytes(tail, head - tail)
        self._words[_TAIL] = head
        found: list[Mapped] = []
        lost, at = 0, 0
        while at + _HEADER.size <= len(data):
            kind, _, size = _HEADER.unpack_from(data, at)
            if size < _HEADER.size:
                break
            if kind == _MMAP2_RECORD and size > _NAME_AT:
                pid, _, start, length, _, major, minor, inode, _, _, _ = _MAPPED.unpack_from(
                    data, at + _HEADER.size
                )
                name = data[at + _NAME_AT : at + size].split(b"\0", 1)[0]
                if inode and name.startswith(b"/"):
                    device = os.makedev(major, minor)
                    found.append(Mapped(pid, start, length, device, inode, os.fsdecode(name)))
            elif kind == _LOST_RECORD:
                lost += _LOST.unpack_from(data, at + _HEADER.size)[1]
            at += size
        return found, lost

    def _bytes(self, position: int, length: int) -> bytes:
        start = position % self._size
        first = min(length, self._size - start)
        at = mmap.PAGESIZE
        return self._map[at + start : at + start + first] + self._map[at : at + length - first]

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.fd)


class Mappings:
    """All processors; raises OSError when the kernel refuses (cgroup v1 has its perf_event controller)."""

    def __init__(self, cgroups: Sequence[int]) -> None:
        self._cpus: list[_Cpu] = []
        self.lost = 0
        """Mappings that nobody was told of."""
        targets = [(fd, bpf.PERF_PID_CGROUP) for fd in cgroups] or [(-1, 0)]
        try:
            for cpu in _online():
                for target, flags in targets:
                    self._cpus.append(_Cpu(target, cpu, flags))
        except OSError:
            self.close()
            raise

    @property
    def fds(self) -> list[int]:
        """Readable when there is something to drain."""
        return [cpu.fd for cpu in self._cpus]

    def drain(self) -> list[Mapped]:
        """What was mapped since the last call."""
        found: list[Mapped] = []
        for cpu in self._cpus:
            mapped, lost = cpu.drain()
            found += mapped
            self.lost += lost
        return found

    def close(self) -> None:
        """Ends it."""
        for cpu in self._cpus:
            cpu.close()
        self._cpus.clear()


def _online() -> list[int]:
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        text = file.read().strip()
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
