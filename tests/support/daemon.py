"""The real daemon, scoped to a lab, and clients of it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from spliffd.pb import spliff_pb2, spliff_pb2_grpc
from tests.support.lab import REPOSITORY, Lab, refuse_unscoped, stop, wait_for
from tests.support.net import Namespace

PYTHON = sys.executable


class Daemon:
    """spliffd in a lab. ``options`` go on its command line; the scope is always the lab's.

    With ``namespace`` it runs in a network namespace: the interfaces there are the only ones it knows.
    ``tree`` holds its sources, where a test has changed them.
    """

    def __init__(
        self,
        lab: Lab,
        *options: str,
        config: str = "",
        wait: bool = True,
        env: dict[str, str] | None = None,
        namespace: Namespace | None = None,
        tree: Path = REPOSITORY,
    ) -> None:
        refuse_unscoped(lab)
        self.lab = lab
        run = lab.folder / "run"
        run.mkdir(exist_ok=True)
        self.socket = run / "spliffd.sock"
        self.log = lab.folder / "spliffd.log"
        arguments = [PYTHON, "-m", "spliffd", "--socket", str(self.socket), *lab.scope]
        if "--metrics" not in options:
            arguments += ["--metrics", "off"]
        if "[interfaces]" not in config and namespace is None:
            # The machine's own interfaces are none of a test's business: lo alone, and not by XDP.
            config += '\n[interfaces]\ninclude = ["lo"]\nmode = "tc"\n'
        if "--config" not in options:
            file = lab.folder / "spliffd.toml"
            file.write_text(config)
            arguments += ["--config", str(file)]
        self._log_start = self.log.stat().st_size if self.log.exists() else 0  # what earlier ones wrote
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                namespace.enter(*arguments, *options) if namespace else [*arguments, *options],
                stdout=log,
                stderr=log,
                cwd=tree,
                env={**os.environ, **(env or {})},
            )
        lab.processes.append(self.process)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Until it has said that it is ready; fails with its log when it ends instead."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"spliffd ended with {self.process.returncode}:\n{self.text()}")
            return " ready" in self.text()

        wait_for(ready, seconds, f"spliffd ready; log:\n{self.text()}")

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def stop(self) -> str:
        """Ends it politely; returns its log, which closes with the statistics block."""
        code = stop(self.process, 30)
        assert code == 0, f"spliffd ended with {code}:\n{self.text()}"
        return self.text()

    def stub(self) -> spliff_pb2_grpc.SpliffStub:
        """A gRPC stub on its socket."""
        channel = grpc.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.max_receive_message_length", -1)]
        )
        return spliff_pb2_grpc.SpliffStub(channel)

    def stats(self) -> dict[str, float]:
        """All numbers of the statistics block."""
        return dict(self.stub().GetStats(spliff_pb2.GetStatsRequest()).values)

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return dict(self.stub().GetInfo(spliff_pb2.GetInfoRequest()).processes)

    def wait_attached(self) -> None:
        """Until the lab's private library is probed; a process of the lab that has it must run."""
        path = str(self.lab.libraries / "libssl.so.3")

        def attached() -> bool:
            found = self.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
            return any(one.path == path and one.state == "attached" for one in found)

        wait_for(attached, 30, f"{path} attached")

    def watch(self, **request) -> Watch:
        """Starts watching; returns when the stream is set up."""
        return Watch(self, spliff_pb2.WatchRequest(**request))

    def client(self, *arguments: str, **options) -> subprocess.Popen[bytes]:
        """Starts spliffctl."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen(
            [PYTHON, "-m", "spliffctl", "--socket", str(self.socket), *arguments], cwd=REPOSITORY, **options
        )
        self.lab.processes.append(process)
        return process


class Watch:
    """A watcher in a thread: collects items until told to stop."""

    def __init__(self, daemon: Daemon, request: spliff_pb2.WatchRequest) -> None:
        self.items: list[spliff_pb2.Item] = []
        self.exchanges: list[spliff_pb2.Exchange] = []
        self.arrivals: list[int] = []
        """When each exchange came, ns since the epoch."""
        self.losses: list[spliff_pb2.Loss] = []
        self.parts: dict[int, dict[bool, list[spliff_pb2.BodyPart]]] = {}
        self.started = threading.Event()
        self.flushed = threading.Event()
        self.last = time.monotonic()
        self._daemon = daemon
        request.flush_key = self._key = secrets.randbits(63) + 1
        self._call = daemon.stub().Watch(request)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.started.wait(30), f"no Started within 30 s:\n{daemon.text()}"

    def _read(self) -> None:
        try:
            for response in self._call:
                for item in response.items:
                    self._take(item)
        except grpc.RpcError:
            return

    def _take(self, item: spliff_pb2.Item) -> None:
        self.last = time.monotonic()
        kind = item.WhichOneof("kind")
        if kind == "started":
            self.started.set()
        elif kind == "flushed":
            self.flushed.set()
        elif kind == "exchange":
            self.arrivals.append(time.time_ns())
            self.exchanges.append(item.exchange)
        elif kind == "loss":
            self.losses.append(item.loss)
        elif kind == "body_part":
            part = item.body_part
            self.parts.setdefault(part.part_key, {}).setdefault(part.response, []).append(part)
        else:
            self.items.append(item)

    def settle(self, quiet: float = 0.2, seconds: float = 60.0) -> None:
        """Until nothing has come for ``quiet`` seconds, and all that was captured by then has."""
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - max(began, self.last) > quiet, seconds, "quiet")
        self.flushed.clear()
        self._daemon.stub().Flush(spliff_pb2.FlushRequest(flush_key=self._key))
        assert self.flushed.wait(seconds), f"not flushed within {seconds} s"

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        """Until ``count`` exchanges are there."""
        wait_for(
            lambda: len(self.exchanges) >= count, seconds, f"{count} exchanges (have {len(self.exchanges)})"
        )

    def wait_ended(self, seconds: float = 30.0) -> None:
        """Until the daemon has ended the stream, as one that does not follow."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the stream goes on after {seconds} s"

    def body(self, exchange: spliff_pb2.Exchange, *, response: bool) -> bytes:
        """A whole body: parts first, then what the exchange carries; holes raise."""
        message = exchange.response if response else exchange.request
        pieces = list(self.parts.get(exchange.part_key, {}).get(response, []))
        data = bytearray()
        for piece in pieces:
            assert piece.offset == len(data), f"hole in the body at {len(data)}: next part at {piece.offset}"
            data += piece.data
        if message.body:
            assert message.body_offset == len(data), f"hole in the body at {len(data)}"
            data += message.body
        return bytes(data)

    def stop(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self._thread.join(30)


def json_lines(path: Path) -> Iterator[dict]:
    """What `spliffctl -o json` wrote."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
