"""One row per TLS speaker: a real program against a real peer. Captured, the right process, the right
addresses and ports, the method named, and the first request of a fresh process among what is seen."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from grpc._cython import cygrpc

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, stop, wait_for
from tests.support.servers import Nginx
from tests.support.speakers import (
    ASYNCIO,
    CFFI,
    HTTP_CLIENT,
    MBEDTLS,
    NODE_FETCH,
    NODE_HTTPS,
    OPENSSL_11,
    PYCURL,
    WOLFSSL,
    attached,
    copy_library,
    copy_wheels,
    nss_database,
    python_path,
    serve,
)

GNUTLS = ("libgnutls.so.30",)
NSS = ("libnspr4.so", "libssl3.so")
WOLF = ("libwolfssl.so.35",)
MBED = ("libmbedtls.so.14",)


class Speaker(NamedTuple):
    """A program, what it is linked to, and how to make it speak."""

    name: str
    library: str
    copies: tuple[str, ...]
    comm: str
    command: Callable[[Lab, str, int], list[str | Path]]
    """Of a client, by path and port; of a server, by "" and 0, with ``{port}`` where the port goes."""
    say: bytes = b""
    """What a client is told on its standard input, ``{path}`` filled in."""
    methods: tuple[str, ...] = ("SOCKET_NESTED",)
    states: tuple[str, ...] = ("complete",)


def git(lab: Lab, path: str, port: int) -> list[str | Path]:
    return ["git", "-c", "http.sslVerify=false", "ls-remote", f"https://127.0.0.1:{port}{path}"]


def apt(lab: Lab, path: str, port: int) -> list[str | Path]:
    options = ["-oAcquire::https::Verify-Peer=false", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=0"]
    url = f"https://127.0.0.1:{port}{path}"
    return ["/usr/lib/apt/apt-helper", *options, "download-file", url, lab.folder / "fetched"]


def tstclnt(lab: Lab, path: str, port: int) -> list[str | Path]:
    return ["tstclnt", "-h", "127.0.0.1", "-p", str(port), "-o", "-d", f"sql:{nss_database(lab)}"]


def gnutls_serv(lab: Lab, _path: str, _port: int) -> list[str | Path]:
    files = ["--x509certfile", lab.certificate, "--x509keyfile", lab.key]
    return ["gnutls-serv", "--http", "-q", "-p", "{port}", *files]


def selfserv(lab: Lab, _path: str, _port: int) -> list[str | Path]:
    return ["selfserv", "-d", f"sql:{nss_database(lab)}", "-n", "lab", "-p", "{port}"]


WHEELS = ("pycurl.libs", "pycurl", "curl_cffi", "curl_cffi-*.dist-info", "curl_cffi.libs", "psycopg2_binary.libs", "cffi", "_cffi_backend*",
          "certifi")  # fmt: skip
BESIDE = ("SOCKET_THREAD", "SOCKET_NESTED", "PROCESS_TIMING")
"""node sends from a call-back inside the TLS call, too; and a process's only request may be sent and answered
in one piece with parts of the handshake."""
UNTIL_CLOSE = ("aborted", "complete")
"""Its answers end with the connection: the sender's end does not tell that this was meant."""
NOT_READ = ("response_missing",)
"""It answers by PR_Writev, whose buffers are not read."""

GET = b"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

CLIENTS = (
    Speaker(
        "wget", "gnutls", GNUTLS, "wget",
        lambda lab, path, port: ["wget", "-q", "-O", "/dev/null", "--no-check-certificate",
                                 f"https://127.0.0.1:{port}{path}"],
    ),
    Speaker(
        "gnutls-cli", "gnutls", GNUTLS, "gnutls-cli",
        lambda lab, path, port: ["gnutls-cli", "--insecure", "--logfile=/dev/null", "-p", str(port), "127.0.0.1"],
        say=GET,
    ),
    Speaker("curl", "openssl", (), "curl", lambda lab, path, port: ["curl", "-sk", f"https://127.0.0.1:{port}{path}"]),
    Speaker("pycurl", "openssl", (), "python3", lambda lab, path, port: [PYTHON, "-c", PYCURL, str(port), path]),
    Speaker(
        "OpenSSL 1.1", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", OPENSSL_11, str(port), path,
                                 next((lab.folder / "python").glob("psycopg2_binary.libs/libssl*"))],
    ),
    Speaker("curl_cffi", "boringssl", (), "python3", lambda lab, path, port: [PYTHON, "-c", CFFI, str(port), path]),
    Speaker(
        "http.client", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", HTTP_CLIENT, str(port), path],
    ),
    Speaker(
        "asyncio", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", ASYNCIO, str(port), path], methods=("SOCKET_THREAD",),
    ),
    Speaker(
        "node https", "openssl", (), "node",
        lambda lab, path, port: [lab.folder / "node", "-e", NODE_HTTPS, str(port), path], methods=BESIDE,
    ),
    Speaker(
        "node fetch", "openssl", (), "node",
        lambda lab, path, port: [lab.folder / "node", "-e", NODE_FETCH, str(port), path], methods=BESIDE,
    ),
    Speaker("git", "gnutls", GNUTLS, "git-remote-http", git),
    Speaker("apt", "gnutls", GNUTLS, "https", apt),
    Speaker("tstclnt", "nss", NSS, "tstclnt", tstclnt, say=GET),
    Speaker(
        "wolfSSL client", "wolfssl", WOLF, "python3",
        lambda lab, path, port: [PYTHON, "-c", WOLFSSL, "client", str(port), path, "-"],
    ),
    Speaker(
        "Mbed TLS client", "mbedtls", MBED, "python3",
        lambda lab, path, port: [PYTHON, "-c", MBEDTLS, "client", str(port), path, "-"],
    ),
)  # fmt: skip

SERVERS = (
    Speaker("gnutls-serv", "gnutls", GNUTLS, "gnutls-serv", gnutls_serv, states=UNTIL_CLOSE),
    Speaker("selfserv", "nss", NSS, "selfserv", selfserv, states=NOT_READ),
    Speaker(
        "wolfSSL server", "wolfssl", WOLF, "python3",
        lambda lab, _path, _port: [PYTHON, "-c", WOLFSSL, "server", "{port}", lab.certificate, lab.key],
    ),
    Speaker(
        "Mbed TLS server", "mbedtls", MBED, "python3",
        lambda lab, _path, _port: [PYTHON, "-c", MBEDTLS, "server", "{port}", lab.certificate, lab.key],
    ),
)  # fmt: skip


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
        wait_for(lambda: attached(daemon, *wanted), 20, f"all libraries attached\n{daemon.text()}")
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
        watch.wait_for(2, 10)
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
    check(mine, theirs, speaker, "client")
    assert mine.response.status == 200, said
    assert watch.losses == []


@pytest.mark.parametrize("speaker", SERVERS, ids=lambda speaker: speaker.name)
def test_server(stage: Stage, speaker: Speaker):
    process, port = serve(stage.lab, *speaker.command(stage.lab, "", 0))
    watch = stage.daemon.watch()
    path = "/hello?" + speaker.name.replace(" ", "-")
    said = stage.lab.run("curl", "-skv", "--max-time", "5", f"https://127.0.0.1:{port}{path}")
    with contextlib.suppress(TimeoutError):
        watch.wait_for(2, 10)
    watch.settle(0.3)
    watch.stop()

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
