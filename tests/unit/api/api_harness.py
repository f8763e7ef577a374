"""A real api process for every test that asks for one; the test stands for supervisor and workers.

Nothing is faked: the process gets the same command line, sockets and memory as from the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import msgspec

from spliffd import counters, ipc
from spliffd.config import Access, Capture, Config, History, Tls
from spliffd.pb import spliff_pb2 as pb
from tests.support.batches import as_sent

NOBODY = 65534


class Worker:
    """A worker's end of a data link."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ipc.SEND_BUFFER)

    def demand(self, *, acknowledge: bool = True) -> ipc.Demand:
        found = ipc.decode_from_api(self.sock.recv(ipc.MAX_DATAGRAM))
        assert isinstance(found, ipc.Demand), found
        if acknowledge:
            self.send([])
        return found

    def flush(self) -> int:
        """Takes a Flush; returns its number, for ``flushed``."""
        found = ipc.decode_from_api(self.sock.recv(ipc.MAX_DATAGRAM))
        assert isinstance(found, ipc.Flush), found
        return found.number

    def flushed(self, number: int) -> None:
        self.send([ipc.Frame(ipc.FLUSHED, number, b"", b"")])

    def send(self, frames: list[ipc.Frame]) -> None:
        self.sock.send(ipc.encode(as_sent(frames)))


class Api:
    """A running api process with the supervisor's end of everything."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        queue_mib: int = 64,
        metrics: bool = False,
        uid: int | None = None,
        reveal_group: str = "",
        users: str = "none",
        history: History | None = None,
        watchers: int = 64,
        unwatched: str = "metrics",
        tls: Tls | None = None,
    ) -> None:
        self.path = folder / "spliffd.sock"
        self.area = counters.Area.create()
        self.kernel_fd = os.memfd_create("kernel-counters")
        os.ftruncate(self.kernel_fd, 4096)
        self.control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(10)
        self.listener = socket.create_server(("127.0.0.1", 0)) if metrics else None
        self.uid, self.gid = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.getuid(), os.getgid())
        self.uid = self.uid if uid is None else uid
        config = Config(
            capture=Capture(workers=workers, unwatched=unwatched),
            access=Access(queue_mib=queue_mib, reveal_group=reveal_group, users=users, watchers=watchers),
            # Without history nobody watches until a test does.
            history=history or History(memory_mib=0),
            tls=tls or Tls(),
        )
        fds = [inner.fileno(), self.area.fd, self.kernel_fd]
        command = [sys.executable, "-m", "spliffd.api", "--socket", str(self.path)]
        command += ["--control-fd", str(fds[0]), "--counters-fd", str(fds[1])]
        command += ["--kernel-counters-fd", str(fds[2])]
        if self.listener is not None:
            fds.append(self.listener.fileno())
            command += ["--metrics-fd", str(fds[3])]
        command += ["--uid", str(self.uid), "--gid", str(self.gid), "--socket-gid", str(self.gid)]
        command += ["--config-json", msgspec.json.encode(config).decode()]
        self.process = subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True)
        inner.close()
        self.errors = ""
        self.workers: list[Worker] = []

    @property
    def port(self) -> int:
        assert self.listener is not None
        return self.listener.getsockname()[1]

    def tell(self, message: ipc.ToChild, fds: list[int] | None = None) -> None:
        socket.send_fds(self.control, [ipc.encode(message)], fds or [])

    def hear(self) -> ipc.FromChild:
        return ipc.decode_from_child(self.control.recv(ipc.MAX_DATAGRAM))

    def link(self, worker: int = 0) -> Worker:
        """Connects a worker and takes its first demand."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tell(ipc.Link(worker=worker), [theirs.fileno()])
        theirs.close()
        found = Worker(ours)
        self.workers.append(found)
        found.first = found.demand()
        return found

    def finish(self, timeout: float = 10) -> int:
        """Waits for the end of the process; its exit code."""
        _, self.errors = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.control.close()
            try:
                self.finish()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.finish()
                raise
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.control.close()
        if self.listener is not None:
            self.listener.close()
        for worker in self.workers:
            worker.sock.close()
        os.close(self.kernel_fd)
        os.close(self.area.fd)


def summary(**known: object) -> ipc.Summary:
    """A summary of which only ``known`` is known."""
    facts = {
        name: 0 if name in ("pid", "ppid", "uid", "local_port", "remote_port", "status") else ""
        for name in ipc.Summary.__struct_fields__
    }
    return ipc.Summary(**{**facts, "ancestors": [], **known})


def exchange(path: str = "/", *, kind: int = ipc.EXCHANGE, part_key: int = 0, **facts: object) -> ipc.Frame:
    """A frame of an exchange: bodies by field name of Frame, the rest goes into the summary."""
    beside = set(ipc.Frame.__struct_fields__) - {"uid"}
    bodies = {name: facts.pop(name) for name in list(facts) if name in beside}
    known = summary(path=path, **{"method": "GET", "status": 200, **facts})
    message = pb.Exchange(
        part_key=part_key,
        process=pb.Process(pid=known.pid),
        request=pb.Request(
            method=known.method,
            path=path,
            body_size=bodies.get("request_offset", 0) + len(bodies.get("request_body", b"")),
        ),
        response=pb.Response(
            status=known.status,
            body_size=bodies.get("response_offset", 0) + len(bodies.get("response_body", b"")),
        ),
        completeness=pb.Completeness(state="complete"),
    )
    return ipc.Frame(
        kind=kind, part_key=part_key, summary=ipc.encode(known), public=message.SerializeToString(),
        uid=known.uid, **bodies,
    )  # fmt: skip


class Stream:
    """A Watch stream read item by item."""

    def __init__(self, call) -> None:
        self.call = call
        self._items: list[pb.Item] = []

    async def item(self) -> pb.Item:
        while not self._items:
            response = await self.call.read()
            assert response is not grpc.aio.EOF, "the stream ended"
            self._items = list(response.items)
        return self._items.pop(0)

    async def kind(self, wanted: str):
        """The next item, which must be of kind ``wanted``."""
        found = await self.item()
        assert found.WhichOneof("kind") == wanted, found
        return getattr(found, wanted)

    async def ended(self) -> bool:
        return not self._items and await self.call.read() is grpc.aio.EOF


async def watch(stub, worker: Worker, **wishes: object) -> Stream:
    """Starts to watch; the worker acknowledges the new demand."""
    stream = Stream(stub.Watch(pb.WatchRequest(**wishes)))
    await asyncio.to_thread(worker.demand)
    await stream.kind("started")
    return stream
