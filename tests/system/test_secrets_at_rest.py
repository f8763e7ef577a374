"""A secret that is masked is nowhere but in the worker: not in the api, a client, history, log or metrics."""

from __future__ import annotations

import json
import os
import sqlite3
import urllib.request

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.http_programs import HttpServer
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx, free_port
from tests.support.shared import lab_of_the_file
from tests.support.websockets import WebSocketServer, websocket_client

MARK = b"S3CR3T" + b"-at-rest"
"""Put together here, so that no memory of a test's own has it in one piece before it is sent."""
FOUND = b"seen-by-everybody"
"""Stands beside each secret: where this is not, nothing was looked at."""


lab = lab_of_the_file("atrest")


def memory(pid: int) -> bytes:
    """All of a process's memory that it may read, as a core dump would have it."""
    out = []
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", 0) as file:
        for line in maps:
            place, rights, *_, name = [*line.split(), ""]
            if "r" not in rights or name in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            try:
                file.seek(start)
                out.append(file.read(end - start))
            except OSError:
                continue  # a mapping of a device
    return b"\0".join(out)


def talk(lab: Lab, server: Nginx, reader: HttpServer, socket: WebSocketServer) -> None:
    """Secrets in every place where they are masked, each beside something that is none."""
    mark, found = MARK.decode(), FOUND.decode()
    body = json.dumps({"password": mark, "note": found})
    for arguments in (
        [
            "-H",
            f"Authorization: Bearer {mark}",
            "-H",
            f"X-Note: {found}",
            server.url(f"/hello?token={mark}&a={found}"),
        ],
        ["--http2", "-H", f"Cookie: a={mark}", "-H", f"X-Note: {found}", server.url("/hello")],
        ["--json", body, f"https://127.0.0.1:{reader.port}/up"],
        ["--data", f"password={mark}&note={found}", f"https://127.0.0.1:{reader.port}/up"],
    ):
        assert lab.run("curl", "-sk", *arguments).returncode == 0
    websocket_client(lab, socket.port, [{"text": body}])


def test_a_masked_secret_rests_nowhere(lab: Lab):
    port = free_port()
    kept = lab.folder / "history/history.db"
    lab.folder.chmod(0o755)
    daemon = Daemon(lab, "--metrics", f"127.0.0.1:{port}", config=f'[history]\npath = "{kept}"\n')
    server = Nginx(lab, http2=True, tls="default_type text/plain;")
    reader, socket = HttpServer(lab), WebSocketServer(lab)
    daemon.wait_attached()
    out = lab.folder / "watched.json"
    with out.open("wb") as file:
        client = daemon.client("watch", "-b", "-o", "json", "--for", "300s", stdout=file)
    watch = daemon.watch(bodies=True, messages=True, handshakes=True, progress=True)
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 2, 30, "both watchers")
    talk(lab, server, reader, socket)
    watch.wait_for(2 * 5)
    wait_for(lambda: sum(item.WhichOneof("kind") == "message" for item in watch.items) >= 8, 30, "messages")
    watch.settle(0.5)

    everything = b"".join(one.SerializeToString() for one in [*watch.exchanges, *watch.items])
    assert FOUND in everything
    assert MARK not in everything
    wait_for(lambda: out.read_bytes().count(b'{"exchange"') >= 10, 30, "what the client prints")
    assert MARK not in out.read_bytes()

    # The api and the client, as their core dumps would have them.
    for pid in (daemon.pids()["api"], client.pid):
        held = memory(pid)
        assert len(held) > 1 << 20
        assert MARK not in held, f"{os.readlink(f'/proc/{pid}/exe')} {pid} holds a secret"
        del held

    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
    assert b"spliff_exchanges_total" in page
    assert MARK not in page
    assert MARK not in daemon.stub().GetStats(spliff_pb2.GetStatsRequest()).SerializeToString()
    watch.stop()
    # What history keeps, for a watcher that comes later.
    again = daemon.watch(bodies=True, messages=True, last=100, follow=False)
    again.wait_ended()
    again.stop()
    assert len(again.exchanges) >= 10
    assert MARK not in b"".join(one.SerializeToString() for one in [*again.exchanges, *again.items])
    assert MARK.decode() not in daemon.stop()
    rows = list(sqlite3.connect(kept).iterdump())
    assert len([row for row in rows if row.startswith("INSERT")]) >= 10
    held = b""
    for folder in (lab.folder / "run", kept.parent):
        for file in folder.rglob("*"):
            if file.is_file():
                held += file.read_bytes()
    assert FOUND in held
    assert MARK not in held
