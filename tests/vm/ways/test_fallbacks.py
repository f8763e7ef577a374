"""The ways that older kernels take, each one made to carry real traffic.

Every way that the running kernel knows is forced in turn, the one it would choose itself and those it would not, so
that 6.12 exercises what 6.1 depends on. A way that this kernel does not have is not skipped silently: it must be
refused for the reason that is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from spliffd.kernel import bpf, features, probes, records, ways
from spliffd.kernel.btf import Btf
from spliffd.kernel.compile import BTF_PATH
from tests.kernel.test_every_byte import client, serve
from tests.support.lab import PYTHON, REPOSITORY, Lab, wait_for
from tests.support.leftovers import existing, held, leftovers
from tests.support.tracer import Record, Tracer, streams
from tests.vm.inside.guest import figure

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""For what is expected only; spliff itself never looks at it."""

HAS_UPROBE_MULTI = RELEASE >= (6, 6)
HAS_TRACEPOINTS = RELEASE >= (6, 3)
HAS_TCX = RELEASE >= (6, 6)
LINKS = {True: "uprobe_multi link", False: "perf event links"}
SIZES = ((1, 401), (16385, (1 << 18) + 1), (1 << 20, 1 << 20))
"""Of each call, and of all together: below a TLS record, just above one, many."""
CLIENTS = 5
WAYS = {"typed": ways.TYPED, "raw": ways.RAW, "fexit": ways.FEXIT, "kprobe": ways.KPROBE}


def has(way: str) -> bool:
    return HAS_TRACEPOINTS or way in ("fexit", "kprobe")


def patched() -> str:
    """Functions of the kernel that something is attached to, by ftrace."""
    for folder in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        file = Path(folder, "enabled_functions")
        if file.exists():
            return file.read_text()
    raise RuntimeError("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")


@pytest.fixture
def lab():
    with Lab("fallback") as lab:
        yield lab


def test_the_doctor_says_the_way_taken(record_property):
    said = {check.name: (str(check.state), check.detail) for check in (probe() for probe in features.CHECKS)}
    for name, (state, detail) in said.items():
        print(f"{name:15}{state:10}{detail}")
        record_property(name, detail)

    assert said["attach"] == ("ok", features.UPROBES[HAS_UPROBE_MULTI])
    assert said["sockets"] == ("ok", (ways.TYPED if HAS_TRACEPOINTS else ways.FEXIT).text)
    assert said["flows"] == ("ok", "typed tracepoint inet_sock_set_state")
    assert said["older sockets"] == ("ok", "iterator task_file")
    assert said["packets"][0] == ("ok" if HAS_TCX else "degraded")


def test_nothing_is_left_of_what_was_tried():
    before = leftovers()
    for check in features.CHECKS:
        check()
    wait_for(lambda: leftovers()["links"] == before["links"], what="links of the doctor gone")
    after = leftovers()
    for place in ("net", "xdp", "qdisc", "uprobe_events", "kprobe_events"):
        assert after.get(place) == before.get(place), place


@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_there_or_known_to_be_missing(way: str):
    types = Btf(BTF_PATH)
    if has(way):
        probes.try_way(WAYS[way], types)
    else:
        with pytest.raises((LookupError, FileNotFoundError)):
            probes.try_way(WAYS[way], types)


def collect(tracer: Tracer, enough: Callable[[list[Record]], bool]) -> list[Record]:
    """Records from the ring until there are enough of them."""
    found: list[Record] = []

    def come() -> bool:
        found.extend(tracer.read())
        return enough(found)

    wait_for(come, 30, "records in the ring")
    return found


def payload(found: Iterable[Record]) -> int:
    """Bytes of plaintext in them."""
    return sum(len(record.payload) for record in found if record.kind == records.DATA)


def ended(found: Iterable[Record], pid: int) -> bool:
    """Whether a connection of the process is over."""
    return any(record.kind == records.CLOSE and record.conn.tgid == pid for record in found)


def test_links_that_this_kernel_does_not_have_are_refused(lab: Lab):
    if HAS_UPROBE_MULTI:
        assert probes.has_uprobe_multi()
        return
    assert not probes.has_uprobe_multi()
    with pytest.raises(OSError, match="Invalid argument"):
        Tracer(lab, uprobe_multi=True)


@pytest.mark.parametrize(
    ("multi", "relocate"), [*([(True, True)] if HAS_UPROBE_MULTI else []), (False, True), (False, False)]
)
def test_every_byte_by_either_kind_of_link(lab: Lab, multi: bool, relocate: bool):
    ports = {total: serve(lab, "sink", str(total))[1] for _, total in SIZES}
    with Tracer(lab, relocate=relocate, uprobe_multi=multi) as tracer:
        placements = {site.placement for site in tracer.inspection.sites}
        assert relocate == bool(placements - {"entry"}), placements
        for size, total in SIZES:
            *_, digest = client(lab, ports[total], "send", size, total)
            found = collect(tracer, lambda some, total=total: payload(some) >= 2 * (total + 64))
            bodies = [data for data in streams(found).values() if len(data) >= total]
            assert {hashlib.sha256(data).hexdigest() for data in bodies} == {digest}
            assert len(bodies) == 2
        assert not {name for name in tracer.counters() if name.startswith(("ring_full", "fault", "call"))}
    moved = sum(total for _, total in SIZES)
    figure(
        f"{LINKS[multi]}, {'relocated' if relocate else 'classic'}",
        f"{2 * moved:,} of {2 * moved:,} bytes, the same at both ends",
    )


# asyncio keeps TLS apart from its sockets: only what is adjacent names them (SOCKET_THREAD).
MEMORY_BIOS = r"""
import asyncio, ssl, sys
async def main():
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(sys.argv[1]), ssl=ssl._create_unverified_context())
    for size in (100, 2003, 517):
        writer.write(b"x" * size)
        await reader.readexactly(size)
    sock = writer.get_extra_info("socket")
    print(int.from_bytes(sock.getsockopt(1, 57, 8), "little"), flush=True)
    writer.close()
asyncio.run(main())
"""
END = r"""
import socket, ssl, sys
context = ssl._create_unverified_context()
context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
tls.sendall(b"hello")
tls.recv(100)
if sys.argv[2] == "cut": tls.shutdown(socket.SHUT_RDWR)
else: tls.unwrap()
"""


@pytest.mark.parametrize("way", [way for way in ("raw", "fexit", "kprobe") if has(way)])
def test_each_way_names_the_socket(lab: Lab, way: str):
    """The typed one is what a daemon takes where there is one."""
    server_pid, port = serve(lab, "echo")
    with Tracer(lab, socket_ways=(WAYS[way],)) as tracer:
        assert tracer.observed == WAYS[way].text

        told = [client(lab, port, "echo", 100, 3) for _ in range(CLIENTS)]
        found = collect(tracer, lambda some: payload(some) >= CLIENTS * 3 * 102 * 4)
        data = [r for r in found if r.kind == records.DATA]
        ours = {r.conn.generation: r.conn for r in data if r.conn.tgid != server_pid}
        theirs = {r.conn.generation: r.conn for r in data if r.conn.tgid == server_pid}
        assert {(c.socket_cookie, c.local_address, c.local_port) for c in ours.values()} == {
            (int(cookie), address, int(local)) for cookie, address, local, _ in told
        }
        assert len(theirs) == CLIENTS
        assert {c.method for c in (*ours.values(), *theirs.values())} == {1}  # SOCKET_NESTED
        assert all(c.socket_cookie for c in theirs.values())
        assert ({c.role for c in ours.values()}, {c.role for c in theirs.values()}) == ({1}, {2})
        assert "sockets_without_cookie" not in tracer.counters()

        done = lab.run(PYTHON, "-c", MEMORY_BIOS, str(port))
        assert done.returncode == 0, done.stderr.decode()
        found = collect(tracer, lambda some: payload(some) >= (100 + 2003 + 517) * 4)
        last = max(
            (r for r in found if r.kind == records.DATA and r.conn.tgid != server_pid), key=lambda r: r.time
        )
        assert (last.conn.method, last.conn.socket_cookie) == (3, int(done.stdout))  # SOCKET_THREAD

        # A read that returns 0 because the socket ended is no proper end, though OpenSSL returns 0 as well.
        ends = {}
        for how in ("cut", "closed"):
            done = lab.run(PYTHON, "-c", END, str(port), how)
            assert done.returncode == 0, done.stderr.decode()
            found = collect(tracer, lambda some: payload(some) >= 4 * 5 and ended(some, server_pid))
            ends[how] = sum(r.kind == records.EOF for r in found)
        assert (ends["cut"], ends["closed"] > 0) == (0, True), ends
    figure(
        f"sockets by {WAYS[way].text}",
        f"{2 * CLIENTS} of {2 * CLIENTS} ends with the kernel's cookie; memory BIOs, too",
    )


def test_a_way_that_cannot_be_attached_gives_way_to_the_next(lab: Lab):
    missing = ways.KPROBE._replace(
        text="kprobes on nothing",
        hooks=(
            *ways.KPROBE.hooks[:1],
            ways.Hook("tcp_entered", "tcp_sendmsg")._replace(target="tcp_recvmsg"),
        ),
    )
    before = leftovers()["links"]
    real, calls = bpf.kprobe_perf_link, []

    def refuse(prog_fd: int, function: str, *, returns: bool) -> list[int]:
        calls.append(function)
        if len(calls) == 2:
            raise OSError(22, "Invalid argument")
        return real(prog_fd, function, returns=returns)

    bpf.kprobe_perf_link = refuse
    try:
        with Tracer(lab, socket_ways=(missing, ways.FEXIT)) as tracer:
            assert tracer.observed == ways.FEXIT.text
            assert calls == ["tcp_sendmsg", "tcp_recvmsg"]
    finally:
        bpf.kprobe_perf_link = real
    wait_for(lambda: leftovers()["links"] == before, what="links gone")


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from spliffd.kernel import ways
from tests.support.lab import Lab
from tests.support.tracer import Tracer
lab = Lab.__new__(Lab)
lab.cgroup, lab.libraries = Path(sys.argv[2]), Path(sys.argv[3])
tracer = Tracer(lab, uprobe_multi=False, socket_ways=(getattr(ways, sys.argv[4]),))
print("attached", flush=True)
time.sleep(600)
"""


def test_a_killed_loader_leaves_no_perf_event_and_no_kprobe(lab: Lab):
    before, functions = leftovers(), patched()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(REPOSITORY), str(lab.cgroup), str(lab.libraries), "KPROBE"],
        stdout=subprocess.PIPE,
    )
    lab.processes.append(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"attached\n"
    mine = held([holder.pid])
    kinds = {link["type"] for link in json.loads(leftovers()["links"]) if ("link", link["id"]) in mine}
    assert "perf_event" in kinds
    assert patched() != functions

    holder.kill()
    holder.wait()

    wait_for(lambda: not mine & existing(), 20, "links, programs and maps gone")
    after = leftovers()
    for place in ("net", "xdp", "qdisc", "uprobe_events", "kprobe_events"):
        assert after.get(place) == before.get(place), place
    wait_for(lambda: patched() == functions, 20, "functions of the kernel as they were")


def test_detaching_ends_capture_and_attaching_again_resumes_it(lab: Lab):
    _, port = serve(lab, "echo")
    with Tracer(lab, uprobe_multi=False) as tracer:
        client(lab, port, "echo", 10, 1)
        collect(tracer, lambda some: payload(some) >= 4 * 12)
        library = tracer.attached.pop()
        assert len(library.fds) % 2 == 0  # a link and its event for each place
        library.close()
        client(lab, port, "echo", 10, 1)
        tracer.attach_library(str(lab.libraries / "libssl.so.3"))
        client(lab, port, "echo", 11, 1)
        found = collect(tracer, lambda some: payload(some) >= 4 * 13)
        assert {r.size for r in found if r.kind == records.DATA} == {13}
