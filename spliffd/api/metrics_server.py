"""The Prometheus endpoint: as little HTTP/1.1 (RFC 9112) as a scrape needs.

Takes a listening socket that the supervisor bound, and a function that makes the page; serves GET and
HEAD of ``/metrics``, one request for each connection. Everything a stranger can do to it is bounded:
connections, size and time of a request. Starts no thread and, while nobody asks, no timer.
Never reads a body and never echoes what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus

from spliffd.series import CONTENT_TYPE

log = logging.getLogger("spliffd.api")

MAX_CONNECTIONS = 16
"""Prometheus needs one; two servers, a curl and a health check fit. More are told 503, twice as many are
closed without a word."""

MAX_REQUEST = 8192
"""Request line and headers together; Prometheus sends about 300 bytes."""

READ_SECONDS = 5.0
CLOSE_SECONDS = 2.0
"""For the request, and for taking the answer; a client on this host or the next takes milliseconds."""

HEAD_END = b"\r\n\r\n"
PATH = "/metrics"


class MetricsServer:
    """Serves ``page()`` on ``sock``."""

    def __init__(self, sock: socket.socket, page: Callable[[], bytes]) -> None:
        self._sock = sock
        self._page = page
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to accept."""
        self._server = await asyncio.start_server(self._serve, sock=self._sock, limit=MAX_REQUEST)

    async def stop(self) -> None:
        """Closes the socket; requests under way are cut off."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= 2 * MAX_CONNECTIONS:
                response = await self._answer(reader)
                async with asyncio.timeout(CLOSE_SECONDS):
                    writer.write(response)
                    await writer.drain()
                    writer.write_eof()
                    # Closing with something unread would reset the connection, and the answer with it.
                    while await reader.read(MAX_REQUEST):
                        pass
        except (OSError, TimeoutError):
            pass  # the client is gone or does not read: it has its own timeout and says so
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        if self._connections > MAX_CONNECTIONS:
            log.warning("more than %d connections to the metrics endpoint: one refused", MAX_CONNECTIONS)
            return _response(HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            async with asyncio.timeout(READ_SECONDS):
                head = await reader.readuntil(HEAD_END)
        except TimeoutError:
            return _response(HTTPStatus.REQUEST_TIMEOUT)
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except asyncio.IncompleteReadError:
            return _response(HTTPStatus.BAD_REQUEST)
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
            return _response(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if target.partition("?")[0] != PATH:
            return _response(HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n".encode())
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
        page = self._page()
        return _response(HTTPStatus.OK, page, kind=CONTENT_TYPE, head_only=method == "HEAD")


def _response(
    status: HTTPStatus,
    body: bytes | None = None,
    *,
    kind: str = "text/plain; charset=utf-8",
    extra: str = "",
    head_only: bool = False,
) -> bytes:
    if body is None:
        body = f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    ).encode()
    return head if head_only else head + body
