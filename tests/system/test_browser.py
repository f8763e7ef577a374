"""A HAR file of ours in a browser's own developer tools: their network panel lists what curl and nginx said."""

from __future__ import annotations

import json

import pytest

from tests.support import browser
from tests.support.client import watchers
from tests.support.daemon import Daemon
from tests.support.lab import Lab
from tests.support.servers import Nginx

pytestmark = pytest.mark.skipif(
    browser.BROWSER is None, reason="no browser here, and set-up installs none; apt-get install chromium"
)


def test_developer_tools_list_what_was_said(lab: Lab, daemon: Daemon, server: Nginx, tmp_path):
    file = tmp_path / "out.har"
    server.file("bytes.bin", bytes(range(256)))
    client = daemon.client("watch", "--comm", "curl", "--count", "5", "-b", "-w", str(file))
    watchers(daemon, 1)
    for options, path in (
        ([], "/hello?number=1"),
        (["-d", "a=1&b=%C3%A9"], "/hello?number=2"),
        ([], "/missing"),
        ([], "/bytes.bin"),
        (["-I"], "/moved"),
    ):
        assert lab.run("curl", "-sk", "-o", "/dev/null", *options, server.url(path)).returncode == 0
    _, err = client.communicate(timeout=60)
    assert client.returncode == 0, err

    entries = json.loads(file.read_text())["log"]["entries"]
    listed = browser.imported(file)
    assert [(one["method"], one["url"], one["status"]) for one in listed] == [
        ("GET", server.url("/hello?number=1"), 200),
        ("POST", server.url("/hello?number=2"), 200),
        ("GET", server.url("/missing"), 404),
        ("GET", server.url("/bytes.bin"), 200),
        ("HEAD", server.url("/moved"), 302),
    ]
    for one, entry in zip(listed, entries, strict=True):
        request, response = entry["request"], entry["response"]
        assert (one["method"], one["url"], one["status"]) == (
            request["method"], request["url"], response["status"],
        )  # fmt: skip
        assert one["asked"] == request.get("postData", {}).get("text")
        assert one["answered"] == response["content"].get("text", "")
        assert one["headers"] == [[header["name"], header["value"]] for header in response["headers"]]
        assert one["type"] == response["content"]["mimeType"].partition(";")[0]
    assert listed[1]["asked"] == "a=1&b=%C3%A9"
    assert listed[0]["answered"] == "hello world\n"
