"""The eBPF programs alone, without daemon: attached to a lab's private libssl, ring read by the test."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Self

import msgspec

from spliffd.kernel import bpf, links, records
from spliffd.kernel.loader import Programs
from spliffd.kernel.maps import Maps
from spliffd.kernel.ring import Ring
from spliffd.kernel.ways import SOCKET_WAYS, Way
from spliffd.stages.placements import probe_of
from spliffd.targets.inspector import inspect_fd
from tests.support.lab import Lab, refuse_unscoped, wait_for
from tests.support.programs import programs


class Record(msgspec.Struct):
    """One record of the ring, decoded."""

    kind: int
    direction: int
    flags: int
    time: int
    offset: int
    size: int
    conn: records.Conn
    payload: bytes
    key: bytes
    """The connection's, as the worker knows it."""


class Tracer:
    """Attach, run something, ``read()``. Closing detaches."""

    def __init__(
        self,
        lab: Lab,
        *,
        library: str = "libssl.so.3",
        ring_mib: int = 32,
        relocate: bool = True,
        nested: bool = True,
        enabled: bool = True,
        uids: tuple[int, ...] = (),
        excluded: tuple[str, ...] = (),
        uprobe_multi: bool | None = None,
        sessions: bool = True,
        socket_ways: tuple[Way, ...] = SOCKET_WAYS,
        only: tuple[str, ...] = (),
    ) -> None:
        refuse_unscoped(lab)
        self.maps = Maps(1, ring_mib << 20)
        self.programs = Programs(
            programs(), self.maps, uprobe_multi=uprobe_multi, sessions=sessions, socket_ways=socket_ways
        )
        cgroup = os.open(lab.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        self.maps.set_scope(0, cgroup)
        for slot, path in enumerate(excluded):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            self.maps.set_scope(16 + slot, fd)
            os.close(fd)
        for uid in uids:
            self.maps.set_uid(uid, excluded=False)
        self.maps.set_settings(
            enabled=enabled, cgroups=1, excluded_cgroups=len(excluded), uids=len(uids), excluded_uids=0
        )
        self.ring = Ring(self.maps.rings[0], ring_mib << 20)
        self._only = only
        """Operations that are probed; none: all."""
        self.attached = [
            links.attach_processes(self.programs),
            links.attach_states(self.programs)[0],
            links.attach_sock_ops(self.programs, [cgroup]),
        ]
        os.close(cgroup)
        self.observed = ""
        """How socket operations are observed."""
        path = lab.libraries / library
        fd = os.open(path, os.O_RDONLY)
        self.inspection = inspect_fd(fd, relocate)
        os.close(fd)
        try:
            if nested:
                attached, self.observed = links.attach_sockets(self.programs)
                self.attached.append(attached)
            self.attach_library(str(path))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach_library(self, path: str) -> None:
        """Attaches to the places that the inspection has found."""
        probes = [probe_of(site) for site in self.inspection.sites if not self._only or site.op in self._only]
        self.attached.append(links.attach_library(self.programs, path, self.inspection.library, probes))

    def read(self) -> list[Record]:
        """Everything that is in the ring."""
        found = []
        while positions := self.ring.drain(256):
            for at in positions:
                kind, direction, flags, captured, time, offset, size, _start = records.HEAD.unpack_from(
                    self.ring.data, at
                )
                start = at + records.HEADER_BYTES
                found.append(
                    Record(
                        kind, direction, flags, time, offset, size,
                        records.unpack_conn(self.ring.data, at + records.CONN_AT),
                        self.ring.data[start : start + captured],
                        self.ring.data[at + records.KEY_AT : at + records.KEY_AT + records.KEY_BYTES],
                    )
                )  # fmt: skip
            self.ring.release()
        self.ring.release()
        return found

    def read_until(self, enough: Callable[[list[Record]], bool], what: str) -> list[Record]:
        """Everything from now on until it is enough.

        A call is told when it returns, and by then its peer may have had the bytes, answered and ended: that
        a client is through does not say that its server's last call has been told.
        """
        found: list[Record] = []

        def told() -> bool:
            found.extend(self.read())
            return enough(found)

        wait_for(told, 30, what)
        return found

    def read_bytes(self, total: int) -> list[Record]:
        """Everything until calls of both ends, in both directions, have moved so many bytes."""
        return self.read_until(lambda found: said(found) >= total, f"{total} bytes in the ring")

    def counters(self) -> dict[str, int]:
        """The kernel's counters that are not 0."""
        return {name: value for name, value in self.maps.counters.values().items() if value}

    def cookies(self) -> int:
        """Entries of the cookie map (walked through BPF_MAP_GET_NEXT_KEY)."""
        return bpf.map_count(self.maps.fd["cookies"], 48)

    def close(self) -> None:
        """Detaches and frees."""
        for attached in self.attached:
            attached.close()
        self.programs.close()
        self.ring.close()
        self.maps.close()


def said(found: list[Record]) -> int:
    """Bytes of the calls, captured or not."""
    return sum(record.size for record in found if record.kind == records.DATA)


def streams(found: list[Record]) -> dict[tuple[int, int, int], bytes]:
    """Plaintext by (pid, generation, direction); asserts that offsets join without a hole."""
    out: dict[tuple[int, int, int], bytes] = {}
    for record in found:
        if record.kind != records.DATA:
            continue
        key = (record.conn.tgid, record.conn.generation, record.direction)
        have = out.get(key, b"")
        assert record.offset == len(have), f"stream {key}: at {len(have)}, record says {record.offset}"
        out[key] = have + record.payload
    return out
