"""Who is calling, and what they may ask: one ``Door`` for each way into the daemon.

Takes the context of a gRPC call; returns a ``Caller``, or ends the call with a status and a sentence that
says what to do. ``GroupDoor`` is the socket of group spliff: the kernel let them in, so they see everything,
and only what a role decides (secrets, the debug log) takes a token. ``OwnDoor`` is the socket for everybody:
each call takes a token, and shows what the user's own processes did. ``CertificateDoor`` is the TCP
listener: names in the client's certificate are roles. Never decides by what a caller says of itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc
import grpc.aio

from spliffd.api.tokens import Identity, TokenError, Tokens
from spliffd.counters import Region

Context = grpc.aio.ServicerContext[Any, Any]

OWN_METHODS = frozenset(("Watch", "Flush", "GetExchange", "GetInfo", "ListFlows", "ListProcesses"))
"""What users may ask about their own processes. The others tell of everybody's."""


class Caller(NamedTuple):
    """Somebody who may ask. ``uid`` and ``pid`` are what the kernel said; -1 and 0 for others."""

    uid: int
    pid: int
    name: str
    """Of the certificate."""
    owner: int | None
    """The user whose processes are all that the caller may know of; None: everybody's."""
    reveal: bool
    """Whether the role allows secrets unmasked."""
    debug: bool
    """Whether the role allows to switch the debug log."""


class Door(Protocol):
    """A way into the daemon."""

    async def enter(self, method: str, context: Context) -> Caller:
        """Who calls ``method``; does not return when they may not."""

    async def identify(self, purpose: str, context: Context) -> Caller:
        """Who calls, for something that a role decides; does not return when nobody knows."""


class GroupDoor:
    """``spliffd.sock``. ``auth`` is where tokens come from, for the sentence that says so."""

    def __init__(self, tokens: Tokens, auth: str, region: Region) -> None:
        self._tokens = tokens
        self._auth = auth
        self._region = region

    async def enter(self, method: str, context: Context) -> Caller:
        """Whoever reaches the socket may ask."""
        del method, context
        return Caller(-1, 0, "", None, reveal=False, debug=False)

    async def identify(self, purpose: str, context: Context) -> Caller:
        """By the token."""
        who = await bearer(purpose, context, self._tokens, self._auth, self._region)
        return Caller(who.uid, who.pid, "", None, who.reveal, who.reveal or who.uid == 0)


class OwnDoor:
    """``user.sock``: any local user, own processes only."""

    def __init__(self, tokens: Tokens, auth: str, region: Region) -> None:
        self._tokens = tokens
        self._auth = auth
        self._region = region

    async def enter(self, method: str, context: Context) -> Caller:
        """By the token, and only what tells of own processes."""
        if method not in OWN_METHODS:
            await refuse(
                context,
                self._region,
                f"{method} tells of every user's processes: members of the daemon's group may ask on its "
                "other socket (access.group)",
            )
        return await self.identify(method, context)

    async def identify(self, purpose: str, context: Context) -> Caller:
        """By the token."""
        who = await bearer(purpose, context, self._tokens, self._auth, self._region)
        return Caller(who.uid, who.pid, "", who.uid, who.reveal, debug=False)


class CertificateDoor:
    """The TCP listener, where gRPC has verified the client's certificate; the names in it are roles."""

    def __init__(self, watch: Sequence[str], reveal: Sequence[str], region: Region) -> None:
        self._watch = frozenset((*watch, *reveal))
        self._reveal = frozenset(reveal)
        self._region = region

    async def enter(self, method: str, context: Context) -> Caller:
        """By the names in the certificate."""
        del method
        return await self.identify("", context)

    async def identify(self, purpose: str, context: Context) -> Caller:
        """By the names in the certificate."""
        del purpose
        names = certificate_names(context)
        known = [name for name in names if name in self._watch]
        if not known:
            shown = ", ".join(names)[:200] or "none"
            await refuse(
                context,
                self._region,
                f"the names in your certificate ({shown}) are not among tls.watch and tls.reveal",
            )
        reveal = not self._reveal.isdisjoint(known)
        return Caller(-1, 0, known[0], None, reveal, debug=reveal)


def certificate_names(context: Context) -> list[str]:
    """Subject alternative names and the common name of the verified certificate."""
    facts = context.auth_context()
    found = [*facts.get("x509_subject_alternative_name", ()), *facts.get("x509_common_name", ())]
    names = [name.decode(errors="replace") for name in found]
    return list(dict.fromkeys(names))


async def bearer(purpose: str, context: Context, tokens: Tokens, auth: str, region: Region) -> Identity:
    """What the call's token proves; ends the call when there is none or it proves nothing."""
    metadata = dict(context.invocation_metadata() or ())
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    if scheme.lower() != "bearer":
        region.add("refused_permission")
        await abort(
            context,
            grpc.StatusCode.UNAUTHENTICATED,
            f"{purpose} takes a token from {auth}, "
            "sent as metadata `authorization: Bearer TOKEN` (spliffctl does that by itself)",
        )
    try:
        return tokens.read(token.strip(), time.time_ns())
    except TokenError as error:
        region.add("refused_permission")
        await abort(context, grpc.StatusCode.UNAUTHENTICATED, f"{purpose}: {error}")


async def refuse(context: Context, region: Region, text: str) -> NoReturn:
    """Ends a call that the caller may not make."""
    region.add("refused_permission")
    await abort(context, grpc.StatusCode.PERMISSION_DENIED, text)


async def abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    """Ends a call."""
    await context.abort(code, text)
    raise AssertionError("abort raises")
