"""Bodies: what a watcher gets is byte for byte what the program sent, however it was written and framed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.http_programs import HttpServer, content, http_client, sha256
from tests.support.lab import Lab, say
from tests.support.servers import Nginx
from tests.support.shared import daemon_of_the_file, lab_of_the_file

MIB = 1 << 20
FILE = 64 * MIB

ALL_THE_QUEUE = (1 << 64) - 1

# One byte a call costs some 20 us in the programs: 64 MiB of them take half an hour (ONE_BYTE_WRITES=67108864
# does it). A prime number of bytes above 2^18 shows the same.
ONES = int(os.environ.get("ONE_BYTE_WRITES", "262147"))
PATIENCE = ONES // 10_000
WRITES = [(1, ONES), (16_383, FILE), (16_384, FILE), (16_385, FILE), (MIB, FILE)]
IDS = [f"{size}-byte writes" for size, _ in WRITES]


lab = lab_of_the_file("bodies")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def server(lab: Lab, daemon: Daemon) -> HttpServer:
    return HttpServer(lab)


@pytest.fixture
def watch(daemon: Daemon) -> Iterator[Watch]:
    watch = daemon.watch(bodies=True, queue_bytes=ALL_THE_QUEUE)
    yield watch
    watch.stop()


def both_ends(daemon: Daemon, watch: Watch, count: int = 1) -> dict[str, list[spliff_pb2.Exchange]]:
    """Exchanges by role, in order, once ``count`` are there at each end; asserts that nothing was lost."""
    watch.wait_for(2 * count)
    watch.settle(0.2)
    assert watch.losses == []
    stats = daemon.stats()
    for cause in ("ring_full", "control_ring_full"):
        assert stats[f'spliff_lost_total{{stage="ring",reason="{cause}"}}'] == 0
    found: dict[str, list[spliff_pb2.Exchange]] = {"client": [], "server": []}
    for exchange in watch.exchanges:
        found[exchange.connection.role].append(exchange)
    assert [len(exchanges) for exchanges in found.values()] == [count, count]
    return found


def check_body(
    watch: Watch, exchange: spliff_pb2.Exchange, total: int, digest: str, *, response: bool
) -> None:
    """The body is whole: size, digest, and nothing said to be missing."""
    message = exchange.response if response else exchange.request
    assert exchange.completeness.state == "complete"
    assert (exchange.completeness.missing_bytes, exchange.completeness.body_not_sent) == (0, 0)
    assert message.body_size == total
    body = watch.body(exchange, response=response)
    assert len(body) == total
    assert sha256(body) == digest


@pytest.mark.timeout(300 + PATIENCE)
@pytest.mark.parametrize(("size", "total"), WRITES, ids=IDS)
def test_download_is_captured_whole_at_both_ends(
    lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch, size: int, total: int
):
    done = http_client(
        lab, server.port, [{"path": f"/down?seed=3&size={size}&total={total}"}], seconds=120 + PATIENCE
    )
    digest = sha256(content(3, total))
    assert done["responses"][0]["sha256"] == digest

    for (exchange,) in both_ends(daemon, watch).values():
        check_body(watch, exchange, total, digest, response=True)
    say(f"download in {size}-byte writes: {total:,} bytes, the file's SHA-256 at both ends")


@pytest.mark.timeout(300 + PATIENCE)
@pytest.mark.parametrize(("size", "total"), WRITES, ids=IDS)
def test_upload_is_captured_whole_at_both_ends(
    lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch, size: int, total: int
):
    step = {"method": "PUT", "path": "/up", "seed": 5, "total": total, "size": size}
    http_client(lab, server.port, [step], seconds=120 + PATIENCE)
    digest = sha256(content(5, total))

    for (exchange,) in both_ends(daemon, watch).values():
        check_body(watch, exchange, total, digest, response=False)
        assert watch.body(exchange, response=True) == digest.encode()  # what the server computed
    say(f"upload in {size}-byte writes: {total:,} bytes, the file's SHA-256 at both ends")


def test_curl_downloads_from_nginx(lab: Lab, daemon: Daemon, watch: Watch):
    nginx = Nginx(lab)
    data = content(7, FILE)
    nginx.file("large.bin", data)
    out = lab.folder / "downloaded"
    assert lab.run("curl", "-sk", "-o", out, nginx.url("/large.bin")).returncode == 0
    assert sha256(out.read_bytes()) == sha256(data)

    for (exchange,) in both_ends(daemon, watch).values():
        check_body(watch, exchange, FILE, sha256(data), response=True)
    say(f"curl from nginx: {FILE:,} bytes, the file's SHA-256 at both ends")


def test_curl_uploads_after_100_continue(lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch):
    data = content(11, FILE)
    file = lab.folder / "large.up"
    file.write_bytes(data)
    expect = ["--expect100-timeout", "10", "-H", "Expect: 100-continue"]
    done = lab.run("curl", "-sk", "-T", file, *expect, f"https://127.0.0.1:{server.port}/up")
    assert done.stdout.decode() == sha256(data)

    for (exchange,) in both_ends(daemon, watch).values():
        check_body(watch, exchange, FILE, sha256(data), response=False)
        assert list(exchange.response.interim) == [100]
    say(f"curl's upload: {FILE:,} bytes, the file's SHA-256 at both ends")


def test_spliffctl_prints_the_whole_body(lab: Lab, daemon: Daemon):
    nginx = Nginx(lab)
    data = content(13, FILE)
    nginx.file("large.bin", data)
    out = lab.folder / "watched.json"
    # The command joins the lab by itself, then becomes curl: the same pid that is watched.
    curl = ["curl", "-sk", "-o", "/dev/null", nginx.url("/large.bin")]
    command = lab.command("env", f"LD_LIBRARY_PATH={lab.libraries}", *curl)
    with out.open("wb") as file:
        client = daemon.client("watch", "-b", "-o", "json", "--", *command, stdout=file)
        _, errors = client.communicate(timeout=180)
    assert (client.returncode, errors) == (0, b"")

    lines = [json.loads(text) for text in out.read_text().splitlines()]
    # A download that takes longer than a second is told of while it goes on.
    (exchange,) = [line["exchange"] for line in lines if "progress" not in line]
    body = base64.b64decode(exchange["response"]["body"])
    assert len(body) == FILE
    assert sha256(body) == sha256(data)
    assert exchange["completeness"].pop("proof") in ("offsets", "wire")
    assert exchange["completeness"] == {"state": "complete"}
    say(f"spliffctl watch -b -o json: {FILE:,} bytes, the file's SHA-256")


def test_every_framing_on_one_connection(lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch):
    """Chunked both ways, HEAD, 204, 304, 100-continue: each ends where it ends, or the next would not fit."""
    total = 100_003
    steps: list[dict[str, Any]] = [
        {"path": f"/down?chunked=1&size=997&seed=17&total={total}"},
        {"method": "HEAD", "path": f"/down?seed=17&total={total}"},
        {"path": "/empty"},
        {"path": "/same"},
        {"method": "POST", "path": "/up", "chunked": True, "seed": 19, "total": total, "size": 1009},
        {"method": "PUT", "path": "/up", "expect": True, "seed": 23, "total": total, "size": 16_384,
         "headers": {"Expect": "100-continue"}},
        {"method": "DELETE", "path": "/last-one"},
    ]  # fmt: skip
    done = http_client(lab, server.port, steps)
    assert [one["status"] for one in done["responses"]] == [200, 200, 204, 304, 200, 200, 200]

    for role, seen in both_ends(daemon, watch, len(steps)).items():
        assert [exchange.request.method for exchange in seen] == [s.get("method", "GET") for s in steps]
        assert [exchange.request.path for exchange in seen] == [s["path"] for s in steps]
        assert [exchange.response.status for exchange in seen] == [200, 200, 204, 304, 200, 200, 200]
        assert [e.response.body_size for e in seen] == [total, 0, 0, 0, 64, 64, len("/last-one")]
        assert [e.request.body_size for e in seen] == [0, 0, 0, 0, total, total, 0]
        check_body(watch, seen[0], total, sha256(content(17, total)), response=True)
        check_body(watch, seen[4], total, sha256(content(19, total)), response=False)
        check_body(watch, seen[5], total, sha256(content(23, total)), response=False)
        for message in (seen[0].response, seen[4].request):
            trailers = message.headers[message.trailer_start :]
            assert [(trailer.name, trailer.value) for trailer in trailers] == [("X-Trailer", "11")]
        assert list(seen[5].response.interim) == [100]
        assert {exchange.completeness.state for exchange in seen} == {"complete"}
        cookies = {exchange.connection.socket_cookie for exchange in seen}
        assert len(cookies) == 1
        assert (cookies == {done["cookie"]}) == (role == "client")


def test_pipelined_requests_keep_their_answers(lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch):
    paths = [f"/down?seed=29&total={total}" for total in (0, 1, 16_384, 3)] + ["/empty", "/same", "/plain"]
    http_client(lab, server.port, [[{"path": path} for path in paths[:3]], [{"path": p} for p in paths[3:]]])

    for seen in both_ends(daemon, watch, len(paths)).values():
        assert [exchange.request.path for exchange in seen] == paths
        assert [e.response.body_size for e in seen] == [0, 1, 16_384, 3, 0, 0, len("/plain")]
        assert [e.response.status for e in seen] == [200, 200, 200, 200, 204, 304, 200]
        for exchange, total in zip(seen, (0, 1, 16_384, 3), strict=False):
            check_body(watch, exchange, total, sha256(content(29, total)), response=True)


def test_an_error_before_the_body_is_sent(lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch):
    total = 100_003
    step = {"method": "POST", "path": "/refuse", "seed": 31, "total": total, "size": 1009}
    http_client(lab, server.port, [step])

    for (exchange,) in both_ends(daemon, watch).values():
        assert exchange.response.status == 413
        assert watch.body(exchange, response=True) == b"big\n"
        check_body(watch, exchange, total, sha256(content(31, total)), response=False)


def test_an_error_that_stops_the_upload(lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch):
    sent, announced = 70_001, 1_000_003
    step = {"method": "POST", "path": "/refuse", "seed": 37, "total": sent, "size": 1009}
    http_client(lab, server.port, [{**step, "announced": announced}])

    for (exchange,) in both_ends(daemon, watch).values():
        assert exchange.response.status == 413
        assert exchange.completeness.state == "aborted"
        assert exchange.completeness.missing_bytes == announced - sent
        assert sha256(watch.body(exchange, response=False)) == sha256(content(37, sent))


@pytest.mark.parametrize("end", ["reset", "die"])
def test_a_body_cut_short_is_marked(lab: Lab, daemon: Daemon, watch: Watch, end: str):
    """A TCP reset, and a server that is killed: what came is there, what did not is counted."""
    server = HttpServer(lab)
    total = 3 * MIB
    done = http_client(lab, server.port, [{"path": f"/{end}?seed=41&size=16385&total={total}"}])
    assert done.get("error") or done["responses"][0]["length"] == total // 2

    for (exchange,) in both_ends(daemon, watch).values():
        assert exchange.response.status == 200
        assert exchange.completeness.state == "aborted"
        assert exchange.completeness.missing_bytes == total - total // 2
        body = watch.body(exchange, response=True)
        assert body == content(41, total)[: total // 2]


@pytest.mark.parametrize(("rude", "state"), [(0, "complete"), (1, "aborted")], ids=["clean", "rude"])
def test_a_body_until_close_needs_close_notify(
    lab: Lab, daemon: Daemon, server: HttpServer, watch: Watch, rude: int, state: str
):
    """RFC 9112 section 9.8: without close_notify nobody can know that the body was whole."""
    total = 300_007
    done = http_client(lab, server.port, [{"path": f"/last?rude={rude}&seed=43&total={total}"}])
    assert done["responses"][0]["length"] == total

    seen = both_ends(daemon, watch)
    assert seen["client"][0].completeness.state == state
    for (exchange,) in seen.values():
        assert watch.body(exchange, response=True) == content(43, total)
        assert exchange.response.body_size == total
