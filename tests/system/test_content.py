"""Content codings on the wire: what curl --compressed and nginx say to each other is shown decoded, sizes told."""

from __future__ import annotations

import base64
import json
import subprocess
import zlib

import pytest

from tests.support.client import exchanges
from tests.support.daemon import PYTHON, Daemon
from tests.support.lab import REPOSITORY, Lab
from tests.support.servers import Nginx
from tests.support.shared import daemon_of_the_file, lab_of_the_file

PAGE = "<p>row</p>\n" * 3000
DOCUMENT = {"rows": [{"n": n, "text": "x" * 20} for n in range(200)]}


lab = lab_of_the_file("content")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def server(lab: Lab, daemon: Daemon) -> Nginx:
    types = "types { text/html html; application/json json; image/png png; } gzip on; gzip_types *;"
    server = Nginx(lab, tls=types)
    server.file("page.html", PAGE.encode())
    server.file("rows.json", json.dumps(DOCUMENT).encode())
    server.file("liar.json", b"\x89PNG\r\n\x1a\n" + bytes(3000))
    daemon.wait_attached()
    return server


def watched(lab: Lab, daemon: Daemon, server: Nginx, name: str, *options: str) -> str:
    """What spliffctl shows of one curl --compressed."""
    client = lab.start(
        PYTHON, "-m", "spliffctl", "--socket", daemon.socket, "watch", "-b", *options, "--",
        "curl", "-sk", "--compressed", "-o", "/dev/null", server.url(name),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    out, err = client.communicate(timeout=30)
    assert client.returncode == 0, err
    return out.decode()


def test_a_compressed_page(lab: Lab, daemon: Daemon, server: Nginx):
    _, _, facts, *lines = watched(lab, daemon, server, "/page.html").splitlines()
    assert facts.startswith("    [gzip: ")
    assert facts.endswith(" on the wire, 32.2 KiB decoded]")
    assert lines == ["    <p>row</p>"] * 3000


def test_what_json_output_holds_is_what_the_wire_held(lab: Lab, daemon: Daemon, server: Nginx):
    (exchange,) = exchanges(watched(lab, daemon, server, "/page.html", "-o", "json"))
    response = exchange["response"]
    body = base64.b64decode(response["body"])
    assert len(body) == int(response["body_size"]) < 2000
    assert zlib.decompress(body, 47) == PAGE.encode()
    assert "decoded_size" not in response


def test_compressed_json_is_decoded_by_the_daemon_and_indented(lab: Lab, daemon: Daemon, server: Nginx):
    _, _, facts, *lines = watched(lab, daemon, server, "/rows.json").splitlines()
    assert facts.startswith("    [gzip: ")
    assert facts.endswith(f"{len(json.dumps(DOCUMENT)) / 1024:.1f} KiB decoded]")
    assert [line[4:] for line in lines] == json.dumps(DOCUMENT, indent=2).splitlines()


def test_a_limit_cuts_and_says_so(lab: Lab, daemon: Daemon, server: Nginx):
    _, _, facts, *lines = watched(lab, daemon, server, "/page.html", "--body-limit", "50").splitlines()
    assert facts.startswith("    [gzip: ")
    assert lines[-1].endswith(" body bytes not sent …")
    assert "decoded from 50 of " in lines[-2]


def test_bytes_contradict_a_type(lab: Lab, daemon: Daemon, server: Nginx):
    _, _, facts, first, *_ = watched(lab, daemon, server, "/liar.json").splitlines()
    assert "image/png by its bytes, not application/json" in facts
    assert first.startswith("    00000000  89 50 4e 47")
