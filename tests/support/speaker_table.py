"""The table of TLS speakers: programs, what they are linked to, how to make them speak, and what is to be seen.

``CLIENTS`` speak to nginx, ``SERVERS`` answer curl; both ends are probed in every row. No row needs more than
Debian's packages and the wheels of ``packaging/setup.sh``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.lab import PYTHON, Lab
from tests.support.speakers import (
    AIOHTTP,
    AIOHTTP_SERVER,
    APACHE,
    ASYNCIO,
    BIO_ONLY,
    CFFI,
    HTTP_CLIENT,
    HTTP_SERVER,
    MBEDTLS,
    NODE_FETCH,
    NODE_HTTPS,
    NODE_SERVER,
    OPENSSL_11,
    PYCURL,
    REQUESTS,
    WOLFSSL,
    nss_database,
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
    again: bool = False
    """Whether it is asked twice over one connection: with memory BIOs the first request, captured like the second,
    may be without its socket still."""


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


def apache(lab: Lab, _path: str, _port: int) -> list[str | Path]:
    folder = lab.folder / "apache"
    folder.mkdir(exist_ok=True)
    (folder / "hello").write_text("hello\n")
    configuration = folder / "apache2.conf"
    configuration.write_text(APACHE.format(folder=folder, certificate=lab.certificate, key=lab.key))
    return ["/usr/sbin/apache2", "-X", "-f", configuration, "-c", "Listen 127.0.0.1:{port}"]


WHEELS = ("pycurl.libs", "pycurl", "curl_cffi", "curl_cffi-*.dist-info", "curl_cffi.libs", "psycopg2_binary.libs", "cffi", "_cffi_backend*",
          "certifi", "requests", "urllib3", "idna", "charset_normalizer", "[0-9a-f]*__mypyc*", "aiohttp", "yarl",
          "multidict", "frozenlist", "propcache", "aiosignal", "aiohappyeyeballs", "attr", "attrs",
          "typing_extensions.py", "rtls", "psycopg2")  # fmt: skip
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
    Speaker(
        "requests", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", REQUESTS, str(port), path],
    ),
    Speaker(
        "aiohttp", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", AIOHTTP, str(port), path], methods=("SOCKET_THREAD",),
    ),
    Speaker(
        "BIO_f_ssl", "openssl", (), "python3",
        lambda lab, path, port: [PYTHON, "-c", BIO_ONLY, str(port), path],
    ),
    Speaker(
        "s_client", "openssl", (), "openssl",
        lambda lab, path, port: ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}"], say=GET,
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
    Speaker("apache2", "openssl", (), "apache2", apache),
    Speaker(
        "s_server", "openssl", (), "openssl",
        lambda lab, _path, _port: ["openssl", "s_server", "-quiet", "-www", "-accept", "127.0.0.1:{port}",
                                   "-cert", lab.certificate, "-key", lab.key],
        states=UNTIL_CLOSE,
    ),
    Speaker(
        "http.server", "openssl", (), "python3",
        lambda lab, _path, _port: [PYTHON, "-c", HTTP_SERVER, "{port}", lab.certificate, lab.key],
    ),
    Speaker(
        "aiohttp server", "openssl", (), "python3",
        lambda lab, _path, _port: [PYTHON, "-c", AIOHTTP_SERVER, "{port}", lab.certificate, lab.key],
        methods=("SOCKET_THREAD",), again=True,
    ),
    Speaker(
        "node server", "openssl", (), "node",
        lambda lab, _path, _port: [lab.folder / "node", "-e", NODE_SERVER, "{port}", lab.certificate, lab.key],
        methods=BESIDE, again=True,
    ),
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
