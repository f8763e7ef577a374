"""One row per TLS speaker: a real program against a real peer. Captured, the right process, the right
addresses and ports, the method named, and the first request of a fresh process among what is seen."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, stop, wait_for
from tests.support.servers import Nginx
from tests.support.speakers import MBEDTLS, WOLFSSL, attached, copy_library, nss_database, serve

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
    method: str = "SOCKET_NESTED"
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
        daemon = Daemon(lab)
        # Maps the libraries, so that they are probed before the first row speaks; says nothing by TLS itself.
        lab.start("sleep", "60", env={"LD_PRELOAD": " ".join(str(lab.libraries / name) for name in copies)})
        wanted = [lab.libraries / name for name in (*copies, "libssl.so.3")]
        wait_for(lambda: attached(daemon, *wanted), 10, "all libraries attached")
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
    assert mine.correlation.method == speaker.method
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
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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
