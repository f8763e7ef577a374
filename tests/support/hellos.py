"""TLS hellos byte by byte (RFC 8446, 4.1 and 5.1), and real ones: OpenSSL's own, shaken hands in memory."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import NamedTuple


def vector(size: int, data: bytes) -> bytes:
    """``data`` behind its length in ``size`` bytes."""
    return len(data).to_bytes(size, "big") + data


def numbers(values: Sequence[int]) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, one) for one in protocols)))


def record(kind: int, body: bytes, version: int = 0x0301) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + vector(2, body)


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(3, body)


def client_hello(
    ciphers: list[int], extensions: bytes = b"", *, version: int = 0x0303, session: bytes = b""
) -> bytes:
    """A ClientHello as one message."""
    body = version.to_bytes(2, "big") + b"R" * 32 + vector(1, session) + vector(2, numbers(ciphers))
    return message(1, body + b"\x01\x00" + (vector(2, extensions) if extensions else b""))


def server_hello(
    cipher: int,
    extensions: bytes = b"",
    *,
    version: int = 0x0303,
    session: bytes = b"",
    random: bytes = b"S" * 32,
) -> bytes:
    """A ServerHello as one message."""
    body = version.to_bytes(2, "big") + random + vector(1, session) + cipher.to_bytes(2, "big") + b"\0"
    return message(2, body + (vector(2, extensions) if extensions else b""))


def usual(
    kinds: list[int], *, algorithms: Sequence[int] = (), versions: Sequence[int] = (), first: bytes = b"h2"
):
    """Extensions of these kinds in this order, those that JA4 reads with content."""
    out = b""
    for kind in kinds:
        if kind == 0:
            out += server_name(b"example.org")
        elif kind == 16:
            out += alpn(first, b"http/1.1") if first else extension(16, b"\0\0")
        elif kind == 13:
            out += extension(13, vector(2, numbers(algorithms)))
        elif kind == 43:
            out += extension(43, vector(1, numbers(versions)))
        else:
            out += extension(kind, b"xyz")
    return out


class Shaken(NamedTuple):
    """What OpenSSL has sent in the clear, and what it says of it."""

    client: bytes
    server: bytes
    version: str
    cipher: str
    alpn: str
    reused: bool
    session: ssl.SSLSession


def shake(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Shaken:
    """Both ends in memory; raises ssl.SSLError when they do not agree."""
    ways = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    one = client.wrap_bio(*ways[0], server_hostname=name, session=session)
    other = server.wrap_bio(*ways[1], server_side=True)
    sent = [b"", b""]
    finished = [False, False]
    for _ in range(20):
        for side, end in enumerate((one, other)):
            try:
                if finished[side]:
                    end.read(1)  # takes tickets
                else:
                    end.do_handshake()
                    finished[side] = True
            except ssl.SSLWantReadError:
                pass
            moved = ways[side][1].read()
            sent[side] += moved
            ways[1 - side][0].write(moved)
    cipher = one.cipher()
    assert all(finished)
    assert cipher is not None
    return Shaken(
        sent[0], sent[1], one.version() or "", cipher[0], one.selected_alpn_protocol() or "",
        bool(one.session_reused), one.session,
    )  # fmt: skip
