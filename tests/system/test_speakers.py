"""One row per TLS speaker: a real program against a real peer. Captured, the right process, the right
addresses and ports, the method named, and the first request of a fresh process among what is seen."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from grpc._cython import cygrpc

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, stop, wait_for
from tests.support.servers import Nginx
from tests.support.speaker_table import CLIENTS, NOT_READ, SERVERS, WHEELS, Speaker
from tests.support.speakers import RUSTLS, attached, copy_library, copy_wheels, python_path, serve
from tests.support.tls_programs import LIBPQ, POSTGRES

HOLDER = """
import ctypes, sys
import curl_cffi
held = [ctypes.CDLL(name, ctypes.RTLD_LOCAL) for name in sys.argv[1:]]
print("held", flush=True)
sys.stdin.read()
"""


MAPPER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
print("held", flush=True)
sys.stdin.read()
"""
"""Maps a file as code, as the loader does."""


class Stage(NamedTuple):
    lab: Lab
    daemon: Daemon
    server: Nginx


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    copies = sorted({name for speaker in (*CLIENTS, *SERVERS) for name in speaker.copies})
    with Lab("speakers") as lab:
        copy_library(lab, *copies)
        server = Nginx(lab)
        wheels = copy_wheels(lab, *WHEELS)
        wanted = [lab.libraries / name for name in (*copies, "libssl.so.3")] + wheels
        # Maps the libraries, so that they are probed before the first row speaks; says nothing by TLS itself.
        held = [path for path in wanted if path.parent.name != "curl_cffi"]
        holder = lab.start(
            PYTHON, "-c", HOLDER, *held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_path(lab)
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        shutil.copy("/usr/bin/node", lab.folder / "node")
        lab.start(lab.folder / "node", "-e", "setTimeout(() => {}, 600000)")
        wanted.append(lab.folder / "node")
        daemon = Daemon(lab)
        wait_for(lambda: attached(daemon, *wanted), 60, f"all libraries attached\n{daemon.text()}")
        repository = server.root / "repository.git"
        (repository / "info").mkdir(parents=True)
        (repository / "info" / "refs").write_text(f"{'7' * 40}\trefs/heads/main\n")
        (repository / "HEAD").write_text("ref: refs/heads/main\n")
        yield Stage(lab, daemon, server)
        daemon.stop()


def exchange_of(watch: Watch, path: str, comm: str) -> spliff_pb2.Exchange:
    found = [e for e in watch.exchanges if e.request.path.startswith(path) and e.process.comm == comm]
    every = [(e.process.comm, e.request.path, e.tls.library) for e in watch.exchanges]
    assert found, f"nothing of {comm} for {path} among {every}"
    return found[0]


def check(mine: spliff_pb2.Exchange, theirs: spliff_pb2.Exchange, speaker: Speaker, role: str) -> None:
    """``mine`` is the speaker's end, ``theirs`` what its peer, an OpenSSL program, was seen to do."""
    assert mine.tls.library == speaker.library
    assert mine.connection.role == role
    assert mine.completeness.state in speaker.states
    assert mine.correlation.method in speaker.methods
    assert mine.connection.socket_cookie not in {0, theirs.connection.socket_cookie}
    assert (mine.connection.local, mine.connection.remote) == (
        theirs.connection.remote,
        theirs.connection.local,
    )
    assert (theirs.tls.library, theirs.correlation.method) == ("openssl", "SOCKET_NESTED")
    assert theirs.connection.role == {"client": "server", "server": "client"}[role]
    assert mine.request.path == theirs.request.path
    if speaker.states != NOT_READ:
        assert mine.response.status == theirs.response.status


@pytest.mark.parametrize("speaker", CLIENTS, ids=lambda speaker: speaker.name)
def test_client(stage: Stage, speaker: Speaker):
    path = "/repository.git" if speaker.name == "git" else "/hello?" + speaker.name.replace(" ", "-")
    watch = stage.daemon.watch()
    process = stage.lab.start(
        *speaker.command(stage.lab, path, stage.server.port),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=python_path(stage.lab),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    # Whoever is told what to say keeps its input open: some end with it, before the answer has come.
    if speaker.say:
        process.stdin.write(speaker.say.replace(b"{path}", path.encode()))
        process.stdin.flush()
    with contextlib.suppress(TimeoutError):
        watch.wait_for(2)
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)  # tstclnt stays until the server goes
    stop(process)
    said = process.stdout.read()
    watch.settle(0.3)
    watch.stop()

    mine = exchange_of(watch, path, speaker.comm)
    if speaker.comm not in ("git-remote-http", "https"):  # children of git and apt-helper
        assert mine.process.pid == process.pid
    theirs = exchange_of(watch, path, "nginx")
    assert theirs.process.pid == stage.server.pid
    check(mine, theirs, speaker, "client")
    assert mine.response.status == 200, said
    assert watch.losses == []


@pytest.mark.parametrize("speaker", SERVERS, ids=lambda speaker: speaker.name)
def test_server(stage: Stage, speaker: Speaker):
    command = speaker.command(stage.lab, "", 0)
    process, port = serve(stage.lab, *command, env=python_path(stage.lab))
    watch = stage.daemon.watch()
    path = "/hello?" + speaker.name.replace(" ", "-")
    urls = [f"https://127.0.0.1:{port}{path}"]
    if speaker.again:
        urls.insert(0, f"https://127.0.0.1:{port}/hello?first")
    said = stage.lab.run("curl", "-skv", "--max-time", "30", *urls)
    with contextlib.suppress(TimeoutError):
        watch.wait_for(2 * len(urls))
    watch.settle(0.3)
    watch.stop()

    assert len(watch.exchanges) == 2 * len(urls)
    theirs = exchange_of(watch, path, "curl")
    mine = exchange_of(watch, path, speaker.comm)
    assert mine.process.pid == process.pid, said
    check(mine, theirs, speaker, "server")
    assert watch.losses == []


NSPR = r"""
import ctypes, sys
nspr = ctypes.CDLL("libnspr4.so")
nspr.PR_GetSpecialFD.restype = nspr.PR_Open.restype = ctypes.c_void_p
P = ctypes.c_void_p
secret = b"GET /secret HTTP/1.1\r\nHost: a-file\r\n\r\n"
file = P(nspr.PR_Open(sys.argv[1].encode(), 0x04 | 0x08, 0o600))   # PR_RDWR, PR_CREATE_FILE
out = P(nspr.PR_GetSpecialFD(1))
for _ in range(53):
    assert nspr.PR_Write(file, secret, len(secret)) == len(secret)
    assert nspr.PR_Write(out, secret, len(secret)) == len(secret)
nspr.PR_Seek(file, 0, 0)
buffer = ctypes.create_string_buffer(4096)
while nspr.PR_Read(file, buffer, len(buffer)) > 0:
    pass
assert nspr.PR_Close(file) == 0
"""
"""Reads and writes a file and a pipe by the functions that TLS sockets of NSS are read and written by."""


def test_descriptors_that_are_not_tls_never_reach_the_ring(stage: Stage):
    before = stage.daemon.stats()
    watch = stage.daemon.watch()
    done = stage.lab.run(PYTHON, "-c", NSPR, stage.lab.folder / "file")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"secret") == 53
    watch.settle(0.5)
    watch.stop()

    after = stage.daemon.stats()
    assert watch.exchanges == []
    records = [name for name in after if name.startswith("spliff_records_total")]
    assert records
    # The end of the process is the only thing that may be told of it.
    assert sum(after[name] - before[name] for name in records) <= 1


def test_rustls_is_told_by_the_ledger(stage: Stage):
    """It has no symbols to probe: its peer is seen, itself is listed with the reason."""
    watch = stage.daemon.watch()
    process = stage.lab.start(
        PYTHON, "-c", RUSTLS, str(stage.server.port), "/hello?rustls",
        stdin=subprocess.PIPE, env=python_path(stage.lab),
    )  # fmt: skip
    watch.wait_for(1)
    watch.settle(0.3)
    watch.stop()
    (theirs,) = watch.exchanges
    assert (theirs.process.comm, theirs.request.path) == ("nginx", "/hello?rustls")

    said: list[spliff_pb2.ProcessCoverage] = []

    def judged() -> bool:
        request = spliff_pb2.ListProcessesRequest(pids=[process.pid])
        said[:] = stage.daemon.stub().ListProcesses(request).processes
        return bool(said) and (said[0].covered, said[0].reason) == ("not", "static")

    wait_for(judged, 30, f"the ledger's word on rustls; it said {said}")
    assert "holds rustls, but no symbols" in said[0].detail


def test_libpq(stage: Stage):
    """libpq with the OpenSSL 1.1 of its wheel asks for TLS in the middle of a connection, and speaks no HTTP."""
    server = stage.lab.start(
        PYTHON, "-c", POSTGRES, stage.lab.certificate, stage.lab.key, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    watch = stage.daemon.watch(messages=True, bodies=True)
    client = stage.lab.start(PYTHON, "-c", LIBPQ, str(port), env=python_path(stage.lab))
    assert client.wait(60) == 0

    def chunks(pid: int) -> list[spliff_pb2.Chunk]:
        every = [item.chunk for item in list(watch.items) if item.WhichOneof("kind") == "chunk"]
        return [chunk for chunk in every if chunk.process.pid == pid]

    def asked(pid: int, direction: str) -> bytes:
        return b"".join(chunk.data for chunk in chunks(pid) if chunk.direction == direction)

    for pid, direction in ((client.pid, "sent"), (server.pid, "received")):
        wait_for(lambda pid=pid, way=direction: b"SELECT 'spliff'" in asked(pid, way), 30, "the query")
        assert b"user\0spliff\0" in asked(pid, direction)  # the first message
        assert {chunk.protocol for chunk in chunks(pid)} == {"postgresql"}
        assert {chunk.correlation.method for chunk in chunks(pid)} == {"SOCKET_NESTED"}
    watch.stop()
    mine, theirs = chunks(client.pid)[0], chunks(server.pid)[0]
    assert (mine.connection.local, mine.connection.remote) == (
        theirs.connection.remote,
        theirs.connection.local,
    )
    assert (mine.connection.remote.port, mine.connection.role, mine.tls.library) == (
        port,
        "client",
        "openssl",
    )


def test_what_cannot_be_probed_is_listed_with_the_reason(stage: Stage):
    copy = stage.lab.folder / Path(cygrpc.__file__).name
    shutil.copy(cygrpc.__file__, copy)

    def entry() -> spliff_pb2.Library | None:
        found = stage.daemon.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
        return next((one for one in found if one.path == str(copy)), None)

    for _ in range(5):  # a process is looked at in its first 50 ms, and this host may be slow
        stage.lab.start(PYTHON, "-S", "-c", MAPPER, copy, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: entry() is not None, 2, "listed")
            break
    listed = entry()
    assert listed is not None
    assert (listed.library, listed.state) == ("boringssl", "refused")
    assert listed.reason.startswith("holds BoringSSL, but no symbols")
