"""HTTP/2 between real programs: every stream an exchange, at both ends, paired rightly."""

from __future__ import annotations

from collections import Counter

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab, say, wait_for
from tests.support.servers import Nginx, free_port
from tests.support.shared import daemon_of_the_file, lab_of_the_file
from tests.support.speakers import listening, private_program

STREAMS = 1009
CONNECTIONS = 7


lab = lab_of_the_file("http2")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def server(lab: Lab) -> Nginx:
    return Nginx(lab, http2=True)


def at_both_ends(watch: Watch, paths: list[str]) -> list[list[spliff_pb2.Exchange]]:
    """The exchanges of all paths as the client, and as the server had them; nothing was lost."""
    watch.wait_for(2 * len(paths))
    watch.settle()
    assert watch.losses == []
    ends = [[one for one in watch.exchanges if one.connection.role == role] for role in ("client", "server")]
    for seen in ends:
        assert sorted(one.request.path for one in seen) == sorted(paths)
    return ends


def test_curl_asks_over_one_connection(lab: Lab, daemon: Daemon, server: Nginx):
    server.file("body.txt", b"spliff " * 4096)
    watch = daemon.watch(bodies=True)
    paths = [f"/body.txt?n={n}" for n in range(101)]
    out = lab.run("curl", "-sk", "--http2", "--parallel", *(server.url(path) for path in paths))
    assert out.stdout == b"spliff " * 4096 * len(paths)
    for seen in at_both_ends(watch, paths):
        assert (
            len({one.stream_id for one in seen if one.connection.local.port == seen[0].connection.local.port})
            > 1
        )
        for one in seen:
            assert (one.protocol, one.request.method, one.request.scheme) == ("http2", "GET", "https")
            assert one.request.authority == f"127.0.0.1:{server.port}"
            assert (one.response.status, one.request.version, one.completeness.state) == (
                200,
                "2",
                "complete",
            )
            assert watch.body(one, response=True) == b"spliff " * 4096
            assert one.correlation.method == "SOCKET_NESTED"
    watch.stop()


def test_a_thousand_streams_at_once(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch()
    each = -(-STREAMS // CONNECTIONS)
    paths = lab.folder / "paths"
    paths.write_text("".join(f"{server.url(f'/hello?n={n}')}\n" for n in range(STREAMS)))
    done = lab.run("h2load", "-n", STREAMS, "-c", CONNECTIONS, "-m", each, "-i", paths)
    assert f"{STREAMS} succeeded, 0 failed" in done.stdout.decode(), done.stdout.decode()
    watch.wait_for(2 * STREAMS)
    watch.settle()

    assert watch.losses == []
    for role in ("client", "server"):
        seen = [one for one in watch.exchanges if one.connection.role == role]
        assert len(seen) == STREAMS
        asked = Counter(one.request.path for one in seen)
        assert set(asked) <= {f"/hello?n={n}" for n in range(STREAMS)}
        assert {(one.protocol, one.response.status, one.response.body_size) for one in seen} == {
            ("http2", 200, 12)
        }
        assert {one.completeness.state for one in seen} == {"complete"}
        streams = {(one.connection.local.port, one.connection.remote.port, one.stream_id) for one in seen}
        assert len(streams) == STREAMS
    # What one end asked on a stream is what the other end was asked on it.
    ends = [
        {
            (
                *sorted((one.connection.local.port, one.connection.remote.port)),
                one.stream_id,
            ): one.request.path
            for one in watch.exchanges
            if one.connection.role == role
        }
        for role in ("client", "server")
    ]
    assert ends[0] == ends[1]
    say(f"{STREAMS} streams over {CONNECTIONS} connections: all paired rightly at both ends")
    watch.stop()


NODE = r"""
const fs = require("fs");
const [port, cert, key] = process.argv.slice(1);
require("http2").createSecureServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) },
  (request, answer) => { answer.writeHead(200, { "x-asked": request.url }); answer.end("hello from node\n"); }
).listen(port, "127.0.0.1");
"""


def test_node_as_the_server(lab: Lab, daemon: Daemon, server: Nginx):
    port = free_port()
    node = private_program(lab, daemon, "/usr/bin/node", "-e", "setTimeout(() => {}, 100000)")
    lab.start(node, "-e", NODE, port, lab.certificate, lab.key)
    wait_for(lambda: listening(port), 30, "node listens")
    daemon.wait_attached()  # to the library that nginx and curl share
    watch = daemon.watch(bodies=True)
    paths = [f"/n/{n}" for n in range(101)]
    urls = [f"https://127.0.0.1:{port}{path}" for path in paths]
    out = lab.run("curl", "-sk", "--http2", "--parallel", *urls)
    assert out.stdout == b"hello from node\n" * len(paths)
    for seen in at_both_ends(watch, paths):
        for one in seen:
            assert (one.protocol, one.response.status, one.completeness.state) == ("http2", 200, "complete")
            asked = {header.name: header.value for header in one.response.headers}["x-asked"]
            assert asked == one.request.path
            assert watch.body(one, response=True) == b"hello from node\n"
    watch.stop()
