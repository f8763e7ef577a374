"""A daemon made of the contract alone, a client as a process, and builders of what the daemon says."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import strategies as st

from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc as services

NOON = 1_795_348_800_000_000_000
"""2026-11-22 12:00:00 UTC."""


class FakeDaemon(services.SpliffServicer):
    """Answers what a test tells it to; holds a stream open until the client hangs up."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests: list[pb.WatchRequest] = []
        self.info = pb.GetInfoResponse(version="0.10.0", hostname="alpha", health="ok")
        self.stats: pb.GetStatsResponse | None = pb.GetStatsResponse()
        """None: nobody may see them."""
        self.libraries: list[pb.Library] = []
        self.flows: list[pb.Flow] = []
        self.interfaces: list[pb.Interface] = []
        self.flow_requests: list[pb.ListFlowsRequest] = []
        self.processes: list[pb.ProcessCoverage] = []
        self.process_requests: list[pb.ListProcessesRequest] = []
        self.batches: list[list[pb.Item]] = []
        self.watch = self.default_watch
        self.flush: Callable[[pb.FlushRequest], None] | None = None
        """What to do when asked to flush; None: this daemon is too old to know."""
        self.get_exchange = lambda request, context: pb.GetExchangeResponse()
        self.server = grpc.server(ThreadPoolExecutor(max_workers=8))
        services.add_SpliffServicer_to_server(self, self.server)

    def default_watch(self, context):
        yield pb.WatchResponse(items=[pb.Item(started=pb.Started(next_id=1, epoch=1))])
        for batch in self.batches:
            yield pb.WatchResponse(items=batch)
        self.hold(context)

    @staticmethod
    def hold(context) -> None:
        """Waits until the client hangs up."""
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(30)

    def start(self) -> None:
        self.server.add_insecure_port(f"unix:{self.path}")
        self.server.start()

    def stop(self) -> None:
        self.server.stop(grace=0).wait()

    def Watch(self, request, context):
        self.requests.append(request)
        yield from self.watch(context)

    def GetExchange(self, request, context):
        return self.get_exchange(request, context)

    def Flush(self, request, context):
        if self.flush is None:
            return super().Flush(request, context)
        self.flush(request)
        return pb.FlushResponse()

    def GetInfo(self, request, context):
        return self.info

    def GetStats(self, request, context):
        if self.stats is None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "GetStats tells of every user's processes")
        return self.stats

    def ListLibraries(self, request, context):
        return pb.ListLibrariesResponse(libraries=self.libraries)

    def ListInterfaces(self, request, context):
        return pb.ListInterfacesResponse(interfaces=self.interfaces)

    def ListFlows(self, request, context):
        self.flow_requests.append(request)
        return pb.ListFlowsResponse(flows=self.flows)

    def ListProcesses(self, request, context):
        self.process_requests.append(request)
        return pb.ListProcessesResponse(processes=self.processes)


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder that other users may enter, with a short path (a socket's path holds 107 bytes)."""
    path = tempfile.mkdtemp(prefix="spliffctl-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(folder: str) -> Iterator[FakeDaemon]:
    """A fake daemon that serves."""
    fake = FakeDaemon(f"{folder}/spliffd.sock")
    fake.start()
    yield fake
    fake.stop()


class Client:
    """Runs spliffctl as a process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._open: list[subprocess.Popen] = []

    def environment(self, **more: str) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if k not in ("SPLIFF_SOCKET", "NO_COLOR", "TERM")}
        return {**keep, "TZ": "UTC", "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1", **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "spliffctl", "--socket", self.path, *arguments]

    def run(self, *arguments: str, env: dict[str, str] | None = None, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60,
            env=self.environment(**(env or {})), check=False, **more,
        )  # fmt: skip

    def start(self, *arguments: str, **more) -> subprocess.Popen:
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
        process = subprocess.Popen(self.command(*arguments), env=self.environment(), **more)
        self._open.append(process)
        return process

    def close(self) -> None:
        for process in self._open:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


@pytest.fixture
def client(folder: str) -> Iterator[Client]:
    """The client, told the fake daemon's socket."""
    made = Client(f"{folder}/spliffd.sock")
    yield made
    made.close()


def exchange(number: int = 1, **changes) -> pb.Exchange:
    """The exchange of product.md: curl asks for /users over HTTP/2; ``changes`` by field path."""
    start = NOON + 59_346_000_000
    made = pb.Exchange(
        id=number, start_time_ns=start, first_byte_time_ns=start + 280_000_000, end_time_ns=start + 293_300_000,
        duration_ns=294_300_000, first_byte_ns=280_000_000, protocol="http2", stream_id=1,
        process=pb.Process(pid=403410, comm="curl", exe="/usr/bin/curl", uid=1000),
        connection=pb.Connection(
            local=pb.Endpoint(address="192.0.2.10", port=48372),
            remote=pb.Endpoint(address="198.51.100.25", port=443),
            role="client", interface="eth0", socket_cookie=2**63 + 5,
        ),
        correlation=pb.Correlation(method="SOCKET_NESTED", wire="XDP", confidence="high"),
        tls=pb.Tls(library="openssl", version="TLSv1.3", alpn="h2", sni="api.example.com"),
        request=pb.Request(method="GET", scheme="https", authority="api.example.com", path="/users"),
        response=pb.Response(status=200, body_size=1234, content_type="application/json"),
        completeness=pb.Completeness(state="complete"),
    )  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = made
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    return made


def items(*messages) -> list[pb.Item]:
    """Items of a batch, one for each message, by its type."""
    kinds = {field.message_type.name: field.name for field in pb.Item.DESCRIPTOR.fields}
    return [pb.Item(**{kinds[type(message).__name__]: message}) for message in messages]


def any_message(message_class, text):
    """A strategy of messages with random fields, built from the descriptor; ``text`` for strings."""
    return st.builds(
        lambda fields: message_class(**fields),
        st.fixed_dictionaries(
            {}, optional={f.name: _values(f, text) for f in message_class.DESCRIPTOR.fields}
        ),
    )


def _values(field, text):
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(_one(entry["key"], text), _one(entry["value"], text), max_size=3)
    one = _one(field, text)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(field, text):
    if field.message_type is not None:
        return any_message(field.message_type._concrete_class, text)
    return {
        field.TYPE_STRING: text,
        field.TYPE_BYTES: st.binary(max_size=64),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
        field.TYPE_UINT64: st.integers(0, 2**64 - 1),
        field.TYPE_DOUBLE: st.floats(),
    }[field.type]


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """Builders: ``build.exchange(...)``, ``build.items(...)``, ``build.any_message(...)``, ``build.noon``."""
    return SimpleNamespace(exchange=exchange, items=items, any_message=any_message, noon=NOON)
