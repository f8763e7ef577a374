"""The coverage ledger: for each reason that it can give, a real process that shows it; and those that are covered."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliffd.counters import REASONS
from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.net import Network
from tests.support.servers import Nginx
from tests.support.speakers import copy_wheels, python_path
from tests.support.strangers import (
    CLIENT_HELLO,
    GRPC,
    PYTHON_HELLO,
    Listener,
    breakpoint_at,
    broken,
    hello,
    sections_elsewhere,
    without,
)

PATIENCE = 30.0
"""Seconds for what takes milliseconds, on a host that is busy."""


class Stage:
    """A daemon, a server that is seen, and a listener that is not; processes that stay until the end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server = Nginx(lab)
        self.listener = Listener()
        self.daemon = Daemon(lab)
        self.daemon.wait_attached()

    def entry(self, pid: int) -> spliff_pb2.ProcessCoverage | None:
        """The ledger's line about a process."""
        request = spliff_pb2.ListProcessesRequest(pids=[pid])
        found = self.daemon.stub().ListProcesses(request).processes
        return found[0] if found else None

    def judged(self, pid: int, covered: str, reason: str) -> spliff_pb2.ProcessCoverage:
        """Waits until the ledger says so of a process."""
        last: list[spliff_pb2.ProcessCoverage | None] = [None]

        def said() -> bool:
            last[0] = self.entry(pid)
            return last[0] is not None and (last[0].covered, last[0].reason) == (covered, reason)

        try:
            wait_for(said, PATIENCE, f"{covered} {reason}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; the last answer was {last[0]}\n{self.daemon.text()}") from None
        assert last[0] is not None
        return last[0]

    def why(self, pid: int) -> str:
        """What the client says about a process."""
        client = self.daemon.client("why", "--pid", str(pid))
        out, err = client.communicate(timeout=60)
        assert client.returncode == 0, err
        return out.decode()

    def curl(self, libraries: Path | None) -> subprocess.Popen[bytes]:
        """A curl that waits for the listener, with libraries from a folder; None: the system's."""
        env = {"LD_LIBRARY_PATH": str(libraries or "")}
        url = f"https://127.0.0.1:{self.listener.port}/"
        return self.lab.start(
            "curl",
            "-sk",
            "-u",
            "me:s3cret",
            url,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def talker(self, library: Path) -> Talker:
        """A Python that does as it is told."""
        arguments = [str(self.listener.port), str(library), CLIENT_HELLO.hex()]
        return Talker(
            self.lab.start(
                PYTHON, "-c", PYTHON_HELLO, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )


class Talker:
    """PYTHON_HELLO as a process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def do(self, word: str) -> None:
        """Tells it to do something, and waits until it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == word.encode()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab("ledger") as lab:
        made = Stage(lab)
        yield made
        made.daemon.stop()
        made.listener.close()


def test_covered(stage: Stage):
    for n in range(5):
        assert stage.lab.run("curl", "-sk", stage.server.url(f"/hello?{n}")).returncode == 0
    found = stage.judged(stage.server.pid, "covered", "")
    assert found.captured_connections == found.tls_flows == 5
    assert list(found.libraries) == ["openssl"]
    assert [(file.path, file.state) for file in found.files if file.state == "attached"] == [
        (str(stage.lab.libraries / "libssl.so.3"), "attached")
    ]
    assert (found.process.comm, found.process.exe, found.ended) == ("nginx", "/usr/sbin/nginx", False)
    assert "its TLS is seen decrypted, 5 of 5 connections" in stage.why(stage.server.pid)


def test_static(stage: Stage):
    copy_wheels(stage.lab, "grpc", "grpcio-*.dist-info", "typing_extensions.py")
    process = stage.lab.start(
        PYTHON, "-c", GRPC, str(stage.listener.port), env=python_path(stage.lab), stderr=subprocess.DEVNULL
    )
    found = stage.judged(process.pid, "not", "static")
    assert "cygrpc" in found.detail
    assert "holds BoringSSL, but no symbols" in found.detail
    assert found.tls_flows >= 1
    assert found.captured_connections == 0
    assert found.missed[0].remote.port == stage.listener.port


def test_unknown_library(stage: Stage):
    process = stage.lab.start(hello(stage.lab), str(stage.listener.port), "600")
    found = stage.judged(process.pid, "not", "unknown_library")
    assert (found.tls_flows, found.captured_connections, len(found.files)) == (1, 0, 0)


def test_unsupported(stage: Stage):
    folder = broken(stage.lab, "renamed", without("SSL_waiting_for_async"))
    found = stage.judged(stage.curl(folder).pid, "not", "unsupported")
    assert f"{folder}/libssl.so.3: has SSL_read and SSL_write but is neither" in found.detail


def test_probe_refused(stage: Stage):
    library = broken(stage.lab, "refused", breakpoint_at("SSL_set_fd")) / "libssl.so.3"
    talker = stage.talker(library)
    talker.do("load")
    # Probes that come before the one that is refused are taken back: whoever calls meanwhile is seen by them.
    wait_for(lambda: "probe refused" in stage.daemon.text(), PATIENCE, "refused")
    talker.do("hello")
    found = stage.judged(talker.pid, "not", "probe_refused")
    assert f"{library}: the kernel refused the probes" in found.detail


def test_unreadable(stage: Stage):
    folder = broken(stage.lab, "unreadable", sections_elsewhere)
    found = stage.judged(stage.curl(folder).pid, "not", "unreadable")
    assert "section headers reaches beyond the end of the file" in found.detail


def test_out_of_scope(stage: Stage):
    found = stage.judged(stage.curl(None).pid, "not", "out_of_scope")
    assert re.search(r"/lib(ssl|gnutls)[^/]* is not in scope", found.detail)
    answer = stage.why(found.process.pid)
    assert "What to do: Widen the scope" in answer
    assert found.process.cmdline.startswith("curl -sk -u ")
    assert "s3cret" not in found.process.cmdline
    assert f"→ 127.0.0.1:{stage.listener.port}" in answer


def test_attached_late(stage: Stage):
    library = broken(stage.lab, "late", lambda _data, _image: None) / "libssl.so.3"
    talker = stage.talker(library)
    talker.do("hello")
    talker.do("load")
    found = stage.judged(talker.pid, "not", "attached_late")
    assert str(library) in found.detail


def test_probes_silent_and_partly(stage: Stage):
    talker = stage.talker(stage.lab.libraries / "libssl.so.3")
    talker.do("load")
    talker.do("hello")
    stage.judged(talker.pid, "not", "probes_silent")
    talker.do(f"get {stage.server.port}")
    found = stage.judged(talker.pid, "partly", "probes_silent")
    assert (found.tls_flows, found.captured_connections) == (2, 1)
    assert "in part, 1 of 2 connections" in stage.why(talker.pid)


def test_32bit(stage: Stage):
    process = stage.lab.start(hello(stage.lab, bits=32), str(stage.listener.port), "600")
    found = stage.judged(process.pid, "not", "32bit")
    assert "64-bit build" in stage.why(found.process.pid)


def test_not_inspected(stage: Stage):
    program = hello(stage.lab)
    os.kill(stage.daemon.process.pid, signal.SIGSTOP)
    try:
        process = stage.lab.start(program, str(stage.listener.port), "0")
        assert process.wait(60) == 0
    finally:
        os.kill(stage.daemon.process.pid, signal.SIGCONT)
    found = stage.judged(process.pid, "not", "not_inspected")
    assert found.ended
    assert found.process.exe == str(program)
    assert found.process.comm == program.name


def test_uncovered_namespace(stage: Stage):
    with Network("led") as network:
        namespace = network.namespace()
        listener = Listener(namespace, 443)
        command = namespace.enter(hello(stage.lab), str(listener.port), "600")
        process = stage.lab.start(*command)
        found = stage.judged(process.pid, "not", "uncovered_namespace")
        assert found.missed[0].remote.port == 443
        assert found.tls_flows == 0
        process.kill()
        process.wait()
        listener.close()


def test_a_process_that_speaks_no_tls(stage: Stage):
    process = stage.lab.start("sleep", "600")
    found = stage.judged(process.pid, "", "")
    assert "has not spoken TLS yet" in stage.why(found.process.pid)
    outside = stage.judged(os.getpid(), "", "out_of_scope")
    assert outside.detail == "its cgroup or its user is not in scope"
    client = stage.daemon.client("why", "--pid", "4194303")
    _, err = client.communicate(timeout=60)
    assert client.returncode == 1
    assert (
        err.decode()
        == "spliffctl: there is no process 4194303: spliffctl processes lists those that speak TLS\n"
    )


def test_the_metric_counts_what_the_list_shows(stage: Stage):
    def listed() -> dict[str, int]:
        client = stage.daemon.client("processes", "-o", "json")
        out, err = client.communicate(timeout=60)
        assert client.returncode == 0, err
        tally: dict[str, int] = {}
        for line in out.splitlines():
            one = json.loads(line)["process"]
            key = f'{{covered="{one["covered"]}",reason="{one.get("reason", "")}"}}'
            tally[key] = tally.get(key, 0) + 1
        return tally

    def counted() -> dict[str, int]:
        prefix = "spliff_processes{"
        return {
            name.removeprefix("spliff_processes"): int(value)
            for name, value in stage.daemon.stats().items()
            if name.startswith(prefix)
        }

    assert len(counted()) == 1 + 2 * len(REASONS)
    assert listed()
    wait_for(
        lambda: {k: v for k, v in counted().items() if v} == listed(), PATIENCE, f"{counted()} {listed()}"
    )
