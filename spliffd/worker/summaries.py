"""What filters are told of an exchange: an ``ipc.Summary``, encoded in two pieces.

Takes what the engine knows of a connection and what a parser read of an exchange; returns MessagePack. What
is the same for all exchanges of a connection is encoded once, and kept in ``ConnectionFacts.told``. Masked as
what it tells of is: a pattern must not tell a secret. Never looks into bodies.
"""

from __future__ import annotations

from typing import Final

import msgspec

from spliffd import ipc
from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols.masking import Masker
from spliffd.protocols.messages import HttpExchange

_pack: Final = msgspec.msgpack.Encoder().encode
_HEAD: Final = b"\xdc" + len(ipc.Summary.__struct_fields__).to_bytes(2, "big")
"""Of an array of so many elements (MessagePack, array 16)."""


def told(facts: ConnectionFacts) -> bytes:
    """The beginning of an encoded Summary: what is the same for all exchanges of a connection."""
    common = (
        facts.pid,
        facts.ppid,
        facts.uid,
        facts.comm,
        facts.exe,
        facts.user,
        facts.unit,
        facts.container_id,
        facts.library,
        facts.local_port,
        facts.remote_port,
        facts.remote_address,
        facts.sni,
        facts.ancestors,
    )
    # One array in MessagePack, begun here and ended by ``summary``: its head tells how many elements it has.
    try:
        return _HEAD + _pack(common)[1:]
    except UnicodeEncodeError:  # a name that is no UTF-8
        clean = [one.encode(errors="replace").decode() if isinstance(one, str) else one for one in common]
        return _HEAD + _pack(clean)[1:]


def rest(
    facts: ConnectionFacts, exchange: HttpExchange, protocol: str, masker: Masker, *, known: bool = True
) -> bytes:
    """The end of an encoded ipc.Summary, whose beginning is then ``facts.told``.

    Masked as what it tells of is: a pattern must not tell a secret. Without ``known`` the status is left out.
    """
    request, response = exchange.request, exchange.response
    if facts.prefix is None:
        facts.told = told(facts)
    if request is not None:
        authority, path = masker.authority(request.authority), masker.path(request.path)
        method = request.method
    else:
        authority = path = method = ""
    status = response.status if response is not None and known else 0
    return _pack((protocol, authority, path, method, status))[1:]


def summary(
    facts: ConnectionFacts, exchange: HttpExchange, protocol: str, masker: Masker, *, known: bool = True
) -> bytes:
    """An encoded ipc.Summary, of both parts."""
    end = rest(facts, exchange, protocol, masker, known=known)
    return facts.told + end
