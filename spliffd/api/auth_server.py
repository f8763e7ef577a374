"""``spliff.v1.Auth`` on its own Unix socket: whoever connects gets a token for what the kernel says they are.

Takes a bound socket and ``Tokens``; answers every call with GetToken's response, for that is the only
method here. Speaks the little of HTTP/2 and gRPC that this needs by hand (RFC 9113; grpc.io,
"PROTOCOL-HTTP2"), because a gRPC server does not say who its peer is. Reads nothing of a request but where
it ends. Bounded in connections, bytes and seconds; never waits for anybody.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import Counter
from typing import cast

from spliffd.api.tokens import Peer, Tokens, peer_of
from spliffd.pb import spliff_pb2 as pb

log = logging.getLogger("spliffd.api")

MAX_CONNECTIONS = 256
"""At a time; a client needs its connection for a millisecond."""

MAX_OF_USER = 16
"""Of one user, who can so take nobody else's place."""

MAX_BYTES = 64 << 10
"""What one connection may send: preface, SETTINGS and a few calls are below 1 KiB."""

SECONDS = 5.0
"""How long a connection may last."""

BACKLOG = 16

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0, 1, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4

_RESPONSE = b"\x88\x0f\x10\x10application/grpc"
"""HPACK (RFC 7541): ``:status: 200`` is index 8 of the static table; ``content-type`` is the name of index
31, its value a literal that is not indexed."""
_TRAILERS = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class AuthServer:
    """Serves ``sock``, which is bound already."""

    def __init__(self, sock: socket.socket, tokens: Tokens) -> None:
        self._sock = sock
        self._tokens = tokens
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.users: Counter[int] = Counter()
        """Open connections by user id."""

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self, self._tokens), sock=self._sock, backlog=BACKLOG
        )

    def stop(self) -> None:
        """Accepts no more; connections end by themselves."""
        if self._server is not None:
            self._server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, server: AuthServer, tokens: Tokens) -> None:
        self._server = server
        self._tokens = tokens
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._data = bytearray()
        self._seen = 0
        self._begun = False
        self._peer: Peer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        server.connections += 1
        self._transport = cast(asyncio.Transport, transport)
        try:
            self._peer = peer_of(transport.get_extra_info("socket"))
        except OSError as error:
            log.error("the kernel does not say who asks for a token: %s", error.strerror)
            self._transport.abort()
            return
        server.users[self._peer.uid] += 1
        if server.connections > MAX_CONNECTIONS or server.users[self._peer.uid] > MAX_OF_USER:
            log.warning("too many clients fetch tokens at once: one of uid %d is refused", self._peer.uid)
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(SECONDS, self._transport.abort)
        self._transport.write(frame(_SETTINGS, 0, 0, b""))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._server.connections -= 1
        if self._peer is not None:
            self._server.users[self._peer.uid] -= 1
            self._server.users += Counter()  # forgets who has none
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        self._seen += len(data)
        self._data += data
        if self._seen > MAX_BYTES or not self._read(transport):
            transport.abort()

    def _read(self, transport: asyncio.Transport) -> bool:
        """Takes whole frames; False when this is not HTTP/2."""
        buffer = self._data
        if not self._begun:
            if len(buffer) < len(_PREFACE):
                return _PREFACE.startswith(buffer)
            if not buffer.startswith(_PREFACE):
                return False
            del buffer[: len(_PREFACE)]
            self._begun = True
        while len(buffer) >= 9:
            size = int.from_bytes(buffer[:3], "big")
            if len(buffer) < 9 + size:
                return size <= MAX_BYTES
            kind, flags, stream = struct.unpack_from(">BBI", buffer, 3)
            payload = bytes(buffer[9 : 9 + size])
            del buffer[: 9 + size]
            if kind == _SETTINGS and not flags & _ACK:
                transport.write(frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                transport.write(frame(_PING, _ACK, 0, payload))
            elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self._answer(transport, stream & 0x7FFFFFFF)
            elif kind == _GOAWAY:
                transport.close()
                return True
        return True

    def _answer(self, transport: asyncio.Transport, stream: int) -> None:
        assert self._peer is not None
        token, expiry = self._tokens.issue(self._peer, time.time_ns())
        message = pb.GetTokenResponse(token=token, expiry_time_ns=expiry).SerializeToString()
        transport.write(
            frame(_HEADERS, _END_HEADERS, stream, _RESPONSE)
            + frame(_DATA, 0, stream, b"\0" + struct.pack(">I", len(message)) + message)
            + frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS)
        )
