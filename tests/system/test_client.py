"""spliffctl against the real daemon: commands, JSON, text, and what hostile bytes come to."""

from __future__ import annotations

import base64
import json
import re
import subprocess

import pytest

from spliffd.pb import spliff_pb2
from tests.support.client import exchanges, interrupted, printing, watchers
from tests.support.daemon import PYTHON, Daemon
from tests.support.lab import PYTHON as SYSTEM_PYTHON
from tests.support.lab import REPOSITORY, Lab, wait_for
from tests.support.servers import Nginx


def in_lab(lab: Lab, daemon: Daemon, *arguments: str, **options) -> subprocess.Popen[bytes]:
    """spliffctl inside the lab: its command is in scope."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": REPOSITORY, **options}
    return lab.start(PYTHON, "-m", "spliffctl", "--socket", str(daemon.socket), *arguments, **options)


# ---- watch -- COMMAND ---------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "option", "code"), [("/hello", "-s", 0), ("/missing", "-sf", 22)])
def test_a_command_is_watched_and_nothing_else(
    lab: Lab, daemon: Daemon, server: Nginx, path: str, option: str, code: int
):
    noise = lab.start(
        "/bin/sh", "-c", 'while :; do curl -sk "$0" >/dev/null; done', server.url("/hello?noise"),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    client = in_lab(
        lab, daemon, "watch", "-o", "json", "--", "curl", option, "-k", server.url(path + "?mine")
    )
    out, err = client.communicate(timeout=30)
    noise.kill()

    found = exchanges(out.decode())
    assert client.returncode == code
    assert [e["request"]["path"] for e in found] == [path + "?mine"]
    assert found[0]["process"]["comm"] == "curl"
    assert found[0]["connection"]["role"] == "client"
    if code == 0:
        assert b"hello world" in err  # with -o json the command's output goes to standard error
    assert daemon.stats()["spliff_items_filtered_total"] > 0, "the other curl was not running"


def test_a_commands_children_are_watched_too(lab: Lab, daemon: Daemon, server: Nginx):
    script = f"curl -sk {server.url('/hello?child')} >/dev/null; exit 7"
    client = in_lab(lab, daemon, "watch", "-c", "--", "sh", "-c", script)
    out, err = client.communicate(timeout=30)
    assert client.returncode == 7, err
    (line,) = out.decode().splitlines()
    assert f"GET {server.url('/hello?child')} 200" in line


def test_a_command_that_is_none(lab: Lab, daemon: Daemon, server: Nginx):
    client = in_lab(lab, daemon, "watch", "--", "no-such-command")
    _, err = client.communicate(timeout=30)
    assert client.returncode == 127
    assert b"cannot execute the command: No such file" in err


# ---- JSON -----------------------------------------------------------------------------------------

CONTRACT = [
    "id",
    "start_time_ns",
    "process.pid",
    "process.comm",
    "process.exe",
    "process.uid",
    "process.unit",
    "process.container_id",
    "connection.local.address",
    "connection.local.port",
    "connection.remote.address",
    "connection.remote.port",
    "connection.role",
    "connection.socket_cookie",
    "connection.interface",
    "correlation.method",
    "correlation.wire",
    "correlation.attempts",
    "tls.library",
    "tls.version",
    "tls.alpn",
    "tls.sni",
    "protocol",
    "request.method",
    "request.scheme",
    "request.authority",
    "request.path",
    "request.headers",
    "request.body",
    "request.body_size",
    "response.status",
    "response.headers",
    "response.body",
    "response.body_size",
    "completeness.state",
    "completeness.missing_bytes",
]
"""The names that other programs rely on (protobuf JSON leaves out what is 0 or empty)."""

NOT_SEEN_YET = {
    "process.unit", "process.container_id",  # this curl is in neither
    "tls.sni",  # the client asks for an address
    "correlation.attempts", "completeness.missing_bytes",  # 0
}  # fmt: skip


def test_json_has_the_names_of_the_contract(lab: Lab, daemon: Daemon, server: Nginx):
    client = daemon.client("watch", "-o", "json", "-b", "--comm", "curl", "--count", "1")
    watchers(daemon, 1)
    curl = lab.start(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        "curl", "-sk", "-d", "\x00\xff".encode("latin-1").hex(), server.url("/hello"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = client.communicate(timeout=20)
    (exchange,) = exchanges(out.decode())

    for name in CONTRACT:
        descriptor = spliff_pb2.Exchange.DESCRIPTOR
        for part in name.split("."):
            field = descriptor.fields_by_name[part]  # KeyError: the contract lost a name
            descriptor = field.message_type
        here = exchange
        for part in name.split("."):
            here = here.get(part) if here is not None else None
        assert (here is None) == (name in NOT_SEEN_YET), f"{name}: {here}"
    assert exchange["process"]["pid"] == curl.pid
    assert exchange["process"]["uid"] == 65534
    assert exchange["request"]["body"] == base64.b64encode(b"00ff").decode()
    assert exchange["response"]["body"] == base64.b64encode(b"hello world\n").decode()
    assert exchange["start_time_ns"].isdigit()  # 64-bit numbers are text, as protobuf JSON has it
    assert exchange["connection"]["socket_cookie"].isdigit()
    assert {"name": "Host", "value": f"127.0.0.1:{server.port}"} in exchange["request"]["headers"]


# ---- text -----------------------------------------------------------------------------------------

TOOK = r"[\d.]+ (?:µs|ms|s)"
TIME = r"\d\d:\d\d:\d\d\.\d{3}"


def test_the_forms_of_text(lab: Lab, daemon: Daemon, server: Nginx):
    forms = {
        "plain": [], "compact": ["-c"], "latency": ["-l"], "handshakes": ["-H"], "body": ["-b"], "hexdump": ["-x"],
    }  # fmt: skip
    clients = {name: daemon.client("watch", "--comm", "curl", *options) for name, options in forms.items()}
    clients["count"] = daemon.client("watch", "--comm", "curl", "--count", "1")
    watchers(daemon, len(clients))
    # It begins when the others are there.
    clients["for"] = daemon.client("watch", "--comm", "curl", "--for", "8s")
    watchers(daemon, len(clients))
    curl = lab.start("curl", "-sk", server.url("/hello"), stdout=subprocess.DEVNULL)
    assert curl.wait(30) == 0
    assert clients["count"].wait(30) == 0
    assert clients["for"].wait(30) == 0
    text = {
        name: interrupted(client)[0] if name in forms else client.communicate()[0].decode()
        for name, client in clients.items()
    }

    url = re.escape(server.url("/hello"))
    who = rf"127\.0\.0\.1:\d+ → 127\.0\.0\.1:{server.port} curl \({curl.pid}\)"
    request = rf"{TIME} → GET {url}  http/1.1 {who}\n"
    answer = rf"{TIME} ← 200 {url}  http/1.1 text/plain 12 B {who} {TOOK}  tc:lo\n"
    assert re.fullmatch(request + answer, text["plain"]), text["plain"]
    assert text["count"] == text["for"] == text["plain"]
    assert re.fullmatch(rf"{TIME} GET {url} 200 12 B {TOOK} .*\n", text["compact"]), text["compact"]
    assert re.search(rf"first byte {TOOK}, total {TOOK}  tc:lo", text["latency"]), text["latency"]
    first, *rest = text["handshakes"].splitlines(keepends=True)
    assert re.fullmatch(
        rf"{TIME} \* TLSv1\.[23] handshake TLS_\w+ http/1\.1 ja4=\S+ openssl {who} .* ms.*\n", first
    ), first
    assert "".join(rest) == text["plain"]
    assert re.fullmatch(request + answer + r" +hello world\n", text["body"]), text["body"]
    assert re.search(r"00000000  68 65 6c 6c 6f 20 77 6f  72 6c 64 0a +\|?hello world\.", text["hexdump"]), (
        text["hexdump"]
    )
    assert not any("\x1b" in shown for shown in text.values()), "escape codes in a pipe"


def test_colours_only_where_they_are_wanted(lab: Lab, daemon: Daemon, server: Nginx):
    always = daemon.client("watch", "--color", "always", "--count", "1")
    watchers(daemon, 1)
    assert lab.run("curl", "-sk", server.url()).returncode == 0
    assert b"\x1b[" in always.communicate(timeout=10)[0]


def test_status_stats_and_libraries(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch()
    assert lab.run("curl", "-sk", server.url()).returncode == 0
    watch.wait_for(2)

    def ask(*arguments: str) -> str:
        client = daemon.client(*arguments)
        out, err = client.communicate(timeout=15)
        assert (client.returncode, err) == (0, b""), err
        return out.decode()

    told = ask("status")
    assert f"cgroup {lab.cgroup}" in told
    assert f"path {lab.folder}/*" in told
    assert re.search(r"^health +2 libraries probed, 2 exchanges, 100.0% with socket", told, re.MULTILINE)
    assert f"supervisor ({daemon.process.pid})" in told
    assert re.search(r"^sockets +ok +", told, re.MULTILINE)
    assert json.loads(ask("status", "-o", "json"))["processes"] == daemon.pids()
    assert "SERVING" in told or ask("status", "--wait", "5")

    block = ask("stats")
    assert re.search(r"^  exchanges +2$", block, re.MULTILINE)
    numbers = json.loads(ask("stats", "-o", "json"))["values"]
    assert (
        numbers['spliff_exchanges_total{protocol="http1",library="openssl",method="SOCKET_NESTED",wire="TC"}']
        == 2
    )

    listing = ask("libraries")
    assert re.search(rf"openssl .*attached.*{lab.libraries}/libssl.so.3", listing), listing
    found = [json.loads(line)["library"] for line in ask("libraries", "-o", "json").splitlines()]
    (libssl,) = [one for one in found if one["path"].endswith("libssl.so.3")]
    assert libssl["state"] == "attached"
    symbols = " ".join(site["symbol"] for site in libssl["sites"])
    assert re.search("read.*", symbols)
    assert re.search("write.*", symbols)
    assert "SSL_free" in symbols
    assert all(site["placement"] for site in libssl["sites"])
    for shown in (told, block, listing):
        assert "\x1b" not in shown


def test_a_reader_that_goes_away_ends_the_watch_silently(lab: Lab, daemon: Daemon, server: Nginx):
    client = daemon.client("watch")
    watchers(daemon, 1)
    assert client.stdout is not None
    client.stdout.close()
    assert lab.run("curl", "-sk", server.url()).returncode == 0
    assert client.wait(10) == 0
    assert client.stderr is not None
    assert client.stderr.read() == b""


# ---- hostile bytes -----------------------------------------------------------------------------

HOSTILE_SERVER = r"""
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
tls = context.wrap_socket(listener.accept()[0], server_side=True)
for _ in range(2):
    tls.recv(65536)
    tls.sendall(b"HTTP/1.1 200 \x1b]0;owned\x07 OK\r\nX-Evil: \x1b[2J\xc2\x9b31m\xe2\x80\xae\x9b\r\n"
                b"Content-Type: text/\x1b[31mplain\r\nContent-Length: 25\r\n\r\n\x1b[2J\x07\x08\x7f\xc2\x9bbody\r\nB\rC\xe2\x80\xae \xff\xfe\x00")
tls.recv(1)
"""

HOSTILE_CLIENT = r"""
import socket, ssl, sys
tls = ssl._create_unverified_context().wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
for path in (b"/first", b"/\x1b[31mred\x07\xc2\x9b\xe2\x80\xae\x7f?\x9b=\xff"):
    tls.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: \x1b[2Jhost\r\nX-\x1b[0m: \x1b[0m\r\n\r\n")
    got = b""
    while len(got.partition(b"\r\n\r\n")[2]) < 25:
        got += tls.recv(65536)
tls.close()
"""


def test_hostile_bytes_reach_no_terminal(lab: Lab, daemon: Daemon, server: Nginx):
    forms = (["-b"], ["-x"], ["-c"], ["-H", "-l"], ["-o", "json", "-b"])
    files = [lab.folder / f"shown-{n}" for n in range(len(forms))]
    clients = [printing(daemon, file, "watch", *form) for file, form in zip(files, forms, strict=True)]
    watchers(daemon, len(forms))
    evil = lab.start(SYSTEM_PYTHON, "-c", HOSTILE_SERVER, lab.certificate, lab.key, stdout=subprocess.PIPE)
    assert evil.stdout is not None
    port = int(evil.stdout.readline())
    done = lab.run(SYSTEM_PYTHON, "-c", HOSTILE_CLIENT, str(port))
    assert done.returncode == 0, done.stderr.decode()
    wait_for(lambda: daemon.stats()["spliff_items_delivered_total"] >= 4 * len(forms), 30, "exchanges")

    for form, client, file in zip(forms, clients, files, strict=True):
        # The second exchange, at both ends.
        wait_for(lambda file=file: file.read_bytes().count(b"red") >= 2, 30, f"{form}: the second request")
        interrupted(client)
        out = file.read_bytes().decode()
        assert "/first" in out
        assert "red" in out, f"{form}: the second request was not seen"
        bad = {
            c
            for c in out
            if (ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028"
        }
        assert not bad, f"{form}: {bad}"
        assert "x1b" in out or "u001b" in out  # shown, not dropped
