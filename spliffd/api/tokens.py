"""Who a caller is, proved by the kernel, and short-lived tokens that carry the proof to a gRPC call.

gRPC in Python does not tell a handler who is at the other end of a Unix socket. So the caller fetches a
token from a socket of its own, where the kernel names the peer (SO_PEERCRED and SO_PEERGROUPS, unix(7)), and
sends it as metadata ``authorization: Bearer …``. A token is ``uid.pid.roles.expiry`` and an HMAC-SHA256 of
that, by a key that this process makes and nobody else gets; a restart of the api makes all tokens void.
Reads no clock.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import NamedTuple

LIFE_NS = 300 * 10**9
"""A token starts calls for five minutes: time to paste it into another client. A call goes on after that."""

MAX_TOKEN = 200
"""Characters of a token: three numbers and a digest are some 110."""

MAX_GROUPS = 256
"""Groups of a peer that are read: what Python's getsockopt() gives at most. Somebody in more of them is
taken to be in none but the first."""

_SO_PEERGROUPS = 59


class TokenError(Exception):
    """The token proves nothing; the text says why."""


class Peer(NamedTuple):
    """Who is at the other end of a socket, as it was when it connected."""

    uid: int
    pid: int
    groups: frozenset[int]


class Identity(NamedTuple):
    """What a token proves."""

    uid: int
    pid: int
    reveal: bool
    """Whether the role allows secrets unmasked."""


def peer_of(sock: socket.socket) -> Peer:
    """Asks the kernel; raises OSError."""
    pid, uid, gid = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, MAX_GROUPS * 4)
    except OSError:
        data = b""  # more than MAX_GROUPS (ERANGE)
    return Peer(uid, pid, frozenset((gid, *struct.unpack(f"={len(data) // 4}I", data))))


class Tokens:
    """Issues and reads tokens. ``reveal_gid`` is the group that may see secrets; None: nobody may."""

    def __init__(self, reveal_gid: int | None) -> None:
        self._key = os.urandom(32)
        self._reveal_gid = reveal_gid

    def issue(self, peer: Peer, now_ns: int) -> tuple[str, int]:
        """(token, expiry in ns since the epoch)."""
        reveal = self._reveal_gid is not None and (peer.uid == 0 or self._reveal_gid in peer.groups)
        expiry = now_ns + LIFE_NS
        text = f"{peer.uid}.{peer.pid}.{'r' if reveal else '-'}.{expiry}"
        return f"{text}.{self._sign(text)}", expiry

    def read(self, token: str, now_ns: int) -> Identity:
        """What ``token`` proves; raises TokenError."""
        text, _, signature = token.rpartition(".")
        genuine = len(token) <= MAX_TOKEN and token.isascii()
        if not (genuine and hmac.compare_digest(signature, self._sign(text))):
            raise TokenError(
                "the token is not genuine, or older than the daemon's last start: fetch a new one"
            )
        uid, pid, roles, expiry = text.split(".")
        if now_ns > int(expiry):
            raise TokenError(f"the token is older than {LIFE_NS // 10**9} s: fetch a new one")
        return Identity(int(uid), int(pid), roles == "r")

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
