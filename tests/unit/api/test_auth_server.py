"""The socket of tokens: gRPC clients are served, anything else ends, nothing is unbounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.api import auth_server
from spliffd.api.auth_server import MAX_BYTES, MAX_OF_USER, AuthServer, frame
from spliffd.api.tokens import Tokens
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[AuthServer, Tokens]]:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.bind(str(path))
    tokens = Tokens(None)
    server = AuthServer(sock, tokens)
    await server.start()
    try:
        yield server, tokens
    finally:
        server.stop()
        for _ in range(1000):
            if not server.connections:
                break
            await asyncio.sleep(0.01)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_grpc_client_gets_its_token_as_often_as_it_asks(folder: Path):
    async with serving(folder / "auth.sock") as (_, tokens):
        async with grpc.aio.insecure_channel(f"unix:{folder}/auth.sock") as channel:
            for _ in range(3):
                answer = await spliff_pb2_grpc.AuthStub(channel).GetToken(pb.GetTokenRequest(), timeout=5)
                who = tokens.read(answer.token, answer.expiry_time_ns)
                assert (who.uid, who.pid) == (os.getuid(), os.getpid())


async def said(folder: Path, data: bytes) -> bytes:
    """What the server says to ``data``, until it hangs up or a tenth of a second is over."""
    reader, writer = await asyncio.open_unix_connection(str(folder / "auth.sock"))
    out = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(0.1):
            while piece := await reader.read(65536):
                out += piece
    await hang_up(writer)
    return out


async def test_what_is_no_http2_is_hung_up_on(folder: Path):
    async with serving(folder / "auth.sock") as (server, _):
        assert b"grpc-status" not in await said(folder, b"GET / HTTP/1.1\r\n\r\n")
        assert b"grpc-status" not in await said(folder, PREFACE + frame(1, 0, 1, b"x" * 100) * 1000)
        assert frame(6, 1, 0, b"12345678") in await said(folder, PREFACE + frame(6, 0, 0, b"12345678"))
        await asyncio.sleep(0.05)
        assert server.connections == 0


async def test_too_much_and_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auth_server, "SECONDS", 2.0)
    async with serving(folder / "auth.sock") as (server, _):
        reader, writer = await asyncio.open_unix_connection(str(folder / "auth.sock"))
        writer.write(PREFACE + frame(0, 0, 1, b"x" * 1000) * (MAX_BYTES // 1000 + 1))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await hang_up(writer)

        waiting = [
            await asyncio.open_unix_connection(str(folder / "auth.sock")) for _ in range(MAX_OF_USER + 5)
        ]
        refused = 0
        for one, _ in waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    first = await one.read(9)
                    refused += not first
        assert refused == 5
        for _ in range(200):
            if not server.connections:
                break
            await asyncio.sleep(0.05)
        assert server.connections == 0  # their time is over
        assert not server.users
        for _, one in waiting:
            await hang_up(one)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.binary(max_size=30)), max_size=5),
    st.booleans(),
)
def test_nothing_raises(tmp_path_factory, frames, begun):
    folder = tmp_path_factory.mktemp("auth")
    data = (PREFACE if begun else b"") + b"".join(frame(kind, flags, 1, load) for kind, flags, load in frames)

    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with serving(folder / "auth.sock"):
            reader, writer = await asyncio.open_unix_connection(str(folder / "auth.sock"))
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                writer.write_eof()
                await reader.read()
            await hang_up(writer)
        assert failures == []

    asyncio.run(run())
