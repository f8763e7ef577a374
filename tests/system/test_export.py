"""``watch -w`` with the real daemon: what curl and nginx said is in every format, and tshark takes it apart."""

from __future__ import annotations

import json
import subprocess

import jsonschema

from tests.support.client import watchers
from tests.support.daemon import Daemon
from tests.support.har_schema import HAR
from tests.support.lab import Lab
from tests.support.readers import har_validator, mitmproxy_flows
from tests.support.servers import Nginx


def test_the_same_exchanges_in_three_formats(lab: Lab, daemon: Daemon, server: Nginx, tmp_path):
    names = ("out.har", "out.pcapng", "out.mitm")
    clients = [
        daemon.client("watch", "--comm", "curl", "--count", "4", "-w", str(tmp_path / name)) for name in names
    ]
    watchers(daemon, 3)
    for number in range(3):
        lab.run("curl", "-sk", "-o", "/dev/null", server.url(f"/hello?number={number}"))
    lab.run("curl", "-sk", "-o", "/dev/null", "-d", "a=1", server.url("/hello?number=3"))
    for client in clients:
        _, err = client.communicate(timeout=60)
        assert client.returncode == 0, err
        assert b"4 exchanges, 0 lost in out." in err, err

    log = json.loads((tmp_path / "out.har").read_text())
    jsonschema.Draft202012Validator(HAR).validate(log)
    har_validator().validate(log)
    entries = log["log"]["entries"]
    assert [entry["request"]["url"] for entry in entries] == [
        server.url(f"/hello?number={number}") for number in range(4)
    ]
    assert {entry["response"]["content"]["text"] for entry in entries[:3]} == {"hello world\n"}
    assert {entry["_process"]["comm"] for entry in entries} == {"curl"}

    found = subprocess.run(
        ["tshark", "-n", "-r", tmp_path / "out.pcapng", "-d", f"tcp.port=={server.port},http",
         "-Y", "http.request or http2.headers.path", "-T", "fields",
         "-e", "http.request.uri", "-e", "http2.headers.path", "-e", "frame.comment"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    for number, line in enumerate(lines):
        assert f"/hello?number={number}" in line
    # The comment is on the packet where the request begins; that with a body is dissected where it ends.
    assert all("spliff: exchange " in line and "curl (" in line for line in lines[:3])

    flows = mitmproxy_flows(tmp_path / "out.mitm")
    assert [flow["url"] for flow in flows] == [server.url(f"/hello?number={number}") for number in range(4)]
    assert [flow["method"] for flow in flows] == ["GET", "GET", "GET", "POST"]
    assert flows[3]["asked"] == "a=1"
    for flow, entry in zip(flows[:3], entries, strict=False):
        assert (flow["status"], flow["answered"]) == (200, "hello world\n")
        assert (flow["server"], flow["tls"]) == (["127.0.0.1", server.port], entry["_tls"]["version"])
        assert flow["comment"].startswith("curl (")
        assert flow["metadata"]["process"]["comm"] == "curl"
