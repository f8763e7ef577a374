"""The Prometheus endpoint: what it serves, what it refuses, and that nobody can block it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

from spliffd import ipc
from spliffd.api import metrics_server


@pytest.fixture
def served(start):
    api = start(metrics=True)
    assert api.hear() == ipc.Ready()
    return api


async def talk(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return response.read().decode()


def test_the_page_shows_the_counters_as_they_are_now(served):
    assert "spliff_worker_restarts_total 0\n" in get(served.port)
    served.area.supervisor.add("worker_restarts", 3)
    served.area.workers[0].add("exchanges/http1/openssl/SOCKET_NESTED/NONE", 1009)

    page = get(served.port)
    assert "spliff_worker_restarts_total 3\n" in page
    assert (
        'spliff_exchanges_total{protocol="http1",library="openssl",method="SOCKET_NESTED",wire="NONE"} 1009\n'
        in page
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_finds_nothing_wrong(served):
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=get(served.port),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found"),
        (b"GET /metricsx HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"GET metrics HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n", b"431 Request Header Fields Too Large"),
    ],
)
async def test_requests_and_their_status(served, request_, status):
    answer = await talk(served.port, request_)

    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head


async def test_head_has_the_length_and_no_body(served):
    answer = await talk(served.port, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b""
    assert f"Content-Length: {len(get(served.port))}".encode() in head


async def test_405_says_what_is_allowed(served):
    assert b"Allow: GET, HEAD\r\n" in await talk(served.port, b"PUT /metrics HTTP/1.1\r\n\r\n")


async def test_idle_connections_block_nobody_but_themselves(served):
    idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(16)]
    refused = await talk(served.port, b"GET /metrics HTTP/1.1\r\n\r\n")
    # They said nothing for 5 s: they are told, and make room.
    answers = await asyncio.gather(*(reader.read() for reader, _ in idle))
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    page = await asyncio.to_thread(get, served.port)
    assert page.startswith("# HELP")


def test_limits_have_the_documented_values():
    assert (metrics_server.MAX_CONNECTIONS, metrics_server.READ_SECONDS) == (16, 5.0)


def test_without_a_socket_nothing_listens(api):
    import psutil

    assert not psutil.Process(api.process.pid).net_connections(kind="inet")
