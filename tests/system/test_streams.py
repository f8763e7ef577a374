"""What never ends is seen all the same: server-sent events as they come, and exchanges that take long."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, stop, wait_for
from tests.support.shared import daemon_of_the_file, lab_of_the_file

SERVER = r"""
import json, socket, ssl, sys, threading, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)

def serve(raw):
    try:
        tls = context.wrap_socket(raw, server_side=True)
        path = tls.recv(65536).split()[1]
        kind = b"application/x-ndjson" if path == b"/lines" else b"text/event-stream"
        if path == b"/slow":
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
            tls.recv(1)  # until the client has gone
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(1 << 30):
            text = json.dumps({"number": number, "password": "S3CR3T-%06d" % number}).encode()
            text = text + b"\n" if path == b"/lines" else b"data: " + text + b"\n\n"
            tls.sendall(b"%x\r\n" % len(text) + text + b"\r\n")
            time.sleep(0.1)
    except OSError:
        pass

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


lab = lab_of_the_file("streams")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def url(lab: Lab, daemon: Daemon) -> str:
    server = lab.start(PYTHON, "-c", SERVER, lab.certificate, lab.key, stdout=subprocess.PIPE)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    daemon.wait_attached()
    return f"https://127.0.0.1:{port}"


def curl(lab: Lab, url: str) -> subprocess.Popen[bytes]:
    return lab.start("curl", "-skN", url, stdout=subprocess.DEVNULL)


def told(watch: Watch) -> list[spliff_pb2.Exchange]:
    return [item.progress.exchange for item in watch.items if item.WhichOneof("kind") == "progress"]


def test_events_come_while_the_exchange_goes_on(lab: Lab, daemon: Daemon, url: str):
    watch = daemon.watch(bodies=True, progress=True)
    client = curl(lab, url + "/events")

    def events(key: int) -> bytes:
        return b"".join(part.data for part in watch.parts.get(key, {}).get(True, []))

    wait_for(lambda: len(told(watch)) == 2, 30, "both ends told of")
    for exchange in told(watch):
        assert (exchange.request.path, exchange.response.status) == ("/events", 200)
        assert (exchange.completeness.state, exchange.id) == ("in_progress", 0)
        assert exchange.response.content_type == "text/event-stream"
        wait_for(lambda key=exchange.part_key: b'"number": 11,' in events(key), 30, "eleven events")
    assert watch.exchanges == []
    stop(client)
    watch.wait_for(2)
    watch.settle(0.3)
    watch.stop()
    assert len(told(watch)) == 2
    assert {e.part_key for e in watch.exchanges} == {e.part_key for e in told(watch)}
    for exchange in watch.exchanges:
        assert exchange.completeness.state == "aborted"
        body = watch.body(exchange, response=True)
        assert len(body) == exchange.response.body_size
        numbers = [json.loads(event[6:])["number"] for event in body.decode().split("\n\n") if event]
        assert numbers == list(range(len(numbers)))
        assert b"S3CR3T" not in body
    assert watch.losses == []


def test_an_exchange_that_takes_long_is_told_of_once(lab: Lab, daemon: Daemon, url: str):
    watch = daemon.watch(progress=True)
    other = daemon.watch()
    client = curl(lab, url + "/slow")
    wait_for(lambda: len(told(watch)) == 2, 30, "both ends told of")
    assert {exchange.request.path for exchange in told(watch)} == {"/slow"}
    stop(client)
    watch.wait_for(2)
    watch.settle(0.3)
    other.settle(0)
    for one in (watch, other):
        one.stop()
        assert [exchange.request.path for exchange in one.exchanges] == ["/slow", "/slow"]
    assert len(told(watch)) == 2
    assert other.items == []  # it did not ask


def test_spliffctl_prints_events_as_they_come(lab: Lab, daemon: Daemon, url: str):
    client = daemon.client("watch", "-b", "-C", "--comm", "curl", "--for", "60s")
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 1, 30, "a watcher")
    program = curl(lab, url + "/events")
    lines: list[str] = []
    assert client.stdout is not None

    def until(what: str) -> None:
        while what not in (lines[-1] if lines else ""):
            line = client.stdout.readline().decode() if client.stdout else ""
            assert line, client.communicate()
            lines.append(line.rstrip("\n"))

    until('data: {"number": 7')
    assert f"→ GET {url}/events" in lines[0]
    assert "← 200 " in lines[1]
    assert "[in progress]" in lines[1]
    stop(program)
    until("[aborted")
    text = "\n".join(lines)
    assert text.count("→ GET ") == 1
    for number in range(8):
        assert text.count(f'data: {{"number": {number},') == 1


def test_spliffctl_prints_json_lines_as_they_come(lab: Lab, daemon: Daemon, url: str):
    client = daemon.client("watch", "-b", "-o", "json", "--comm", "curl", "--for", "60s")
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 1, 30, "a watcher")
    program = curl(lab, url + "/lines")
    found: list[dict] = []
    assert client.stdout is not None
    while b'"number": 7,' not in b"".join(base64.b64decode(o["body_part"]["data"]) for o in found[1:]):
        found.append(json.loads(client.stdout.readline()))
    key = found[0]["progress"]["exchange"]["part_key"]
    assert {one["body_part"]["part_key"] for one in found[1:]} == {key}
    stop(program)
    while "exchange" not in found[-1]:
        found.append(json.loads(client.stdout.readline()))
    exchange = found[-1]["exchange"]
    body = b"".join(base64.b64decode(one["body_part"]["data"]) for one in found[1:-1])
    assert int(exchange["response"].get("body_offset", len(body))) == len(body)
    assert exchange["completeness"]["state"] == "aborted"
    assert b"S3CR3T" not in body
