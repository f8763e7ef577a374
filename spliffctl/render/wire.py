"""Addresses and interfaces as text: who talks to whom, and where its packets were seen.

Takes messages of the contract, returns fields of a line, quoted (but ``url``). The opener of a connection is
always the left end of the arrow; the interfaces of a path come in the order in which they saw the first
packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliffctl.render.quote import quote, word

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb


def endpoint(end: pb.Endpoint) -> str:
    """``192.0.2.10:48372``, ``[2001:db8::1]:443``, or ``?``."""
    address = end.address
    if not address:
        return "?"
    return f"[{quote(address)}]:{end.port}" if ":" in address else f"{word(address)}:{end.port}"


def pair(connection: pb.Connection) -> str:
    """``opener → accepter``."""
    local, remote = endpoint(connection.local), endpoint(connection.remote)
    return f"{remote} → {local}" if connection.role == "server" else f"{local} → {remote}"


def process(who: pb.Process, connection: pb.Connection | None = None) -> str:
    """``curl (403410)``; ``nginx (812, server)`` when it is the accepter of ``connection``."""
    role = ", server" if connection is not None and connection.role == "server" else ""
    return f"{word(who.comm or '?')} ({who.pid or '?'}{role})"


def hooks(wire: str, connection: pb.Connection) -> str:
    """``xdp:eth0``; ``tc:wg0,xdp:eth0`` when several interfaces saw it; "" when none did."""
    if wire in ("NONE", ""):
        return ""
    if len(connection.path) > 1:
        return ",".join([hook(hop.hook, hop.interface) for hop in connection.path])
    return hook(wire, connection.interface)


def hook(kind: str, interface: str) -> str:
    """``tc:wg0``."""
    name = word(kind.lower() or "?")
    return f"{name}:{word(interface)}" if interface else name


def url(exchange: pb.Exchange) -> str:
    """What was asked for: scheme, authority (else SNI, else address) and path; not quoted."""
    request = exchange.request
    authority = request.authority or exchange.tls.sni or exchange.connection.remote.address
    path = request.path
    if request.method == "CONNECT" and not path.startswith("/"):
        return authority or path
    if "://" in path[:16]:
        # Absolute form, as sent to a proxy (RFC 9112, 3.2.2).
        return path
    return f"{request.scheme or 'https'}://{authority}{path}"
