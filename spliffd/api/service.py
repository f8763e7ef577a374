"""The gRPC service ``spliff.v1.Spliff``.

Takes the hub, the talk with the supervisor and the shared counters; returns one generic handler for a
``grpc.aio`` server. ``Watch`` writes bytes that are serialised already, so its response serializer is
the identity. Everybody who reaches the socket may ask everything here, but for secrets unmasked: that takes
a token (``tokens``) of somebody in the reveal group, and a line in the journal before anything is sent.
Never waits for anything but its own caller and, bounded, the supervisor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.message import Message

from spliffd import ipc, metrics, statistics
from spliffd.api import wire, wishes
from spliffd.api.hub import MAX_SUBSCRIBERS, Hub
from spliffd.api.supervisor_link import RefusedError, SupervisorLink, UnavailableError
from spliffd.api.tokens import TokenError, Tokens
from spliffd.config import Config, auth_socket
from spliffd.counters import Area, Region
from spliffd.pb import spliff_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["Spliff"].full_name

MAX_AUDITED_FILTER = 2048
"""Characters of a filter that the journal gets."""

Context = grpc.aio.ServicerContext[Any, Any]


class Service:
    """All RPCs of the contract."""

    def __init__(
        self,
        hub: Hub,
        supervisor: SupervisorLink,
        area: Area,
        kernel: Region,
        config: Config,
        tokens: Tokens,
    ) -> None:
        self._hub = hub
        self._supervisor = supervisor
        self._area = area
        self._kernel = kernel
        self._config = config
        self._tokens = tokens
        # The counters outlive this process: they count since their memory was made.
        self._since_ns = os.fstat(area.fd).st_ctime_ns

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, to be added to a server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=pb.WatchRequest.FromString,
                response_serializer=_identity,
            ),
            "GetStats": _unary(self._get_stats, pb.GetStatsRequest),
            "GetInfo": _unary(self._get_info, pb.GetInfoRequest),
            "ListLibraries": _unary(self._passed_on("ListLibraries"), pb.ListLibrariesRequest),
            "ListInterfaces": _unary(self._passed_on("ListInterfaces"), pb.ListInterfacesRequest),
            "SetDebug": _unary(self._passed_on("SetDebug"), pb.SetDebugRequest),
            "ListFlows": _unary(self._passed_on("ListFlows"), pb.ListFlowsRequest),
            "ListProcesses": _unary(self._passed_on("ListProcesses"), pb.ListProcessesRequest),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)

    def families(self) -> list[metrics.Family]:
        """Every number, read now."""
        return metrics.collect(self._area, self._kernel, self._config.capture.workers)

    async def _watch(self, request: pb.WatchRequest, context: Context) -> None:
        try:
            wanted = wishes.read(request, self._config.access.queue_mib << 20)
        except wishes.WishError as error:
            code = grpc.StatusCode.UNIMPLEMENTED if error.unsupported else grpc.StatusCode.INVALID_ARGUMENT
            await _abort(context, code, str(error))
        if wanted.reveal:
            await self._may_reveal(request, context)
        if self._supervisor.stop.is_set():
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "spliffd is stopping")
        next_id = self._hub.next_id
        subscriber = self._hub.subscribe(wanted)
        if subscriber is None:
            await _abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_SUBSCRIBERS} watchers are connected already; end one of them",
            )
        try:
            # What comes from here on is queued already, and follows Started.
            await self._hub.acknowledged()
            started = pb.Started(next_id=next_id, epoch=self._hub.epoch)
            await context.write(wire.entry("started", started.SerializeToString()))
            while (response := await subscriber.next()) is not None:
                await context.write(response)
                subscriber.written()
        finally:
            self._hub.unsubscribe(subscriber)

    async def _may_reveal(self, request: pb.WatchRequest, context: Context) -> None:
        """Returns when the caller may see secrets and the journal says so; else ends the call."""
        metadata = dict(context.invocation_metadata() or ())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer":
            await _abort(
                context,
                grpc.StatusCode.UNAUTHENTICATED,
                f"reveal takes a token from {auth_socket(self._config.socket)}, "
                "sent as metadata `authorization: Bearer TOKEN` (spliffctl does that by itself)",
            )
        try:
            who = self._tokens.read(token.strip(), time.time_ns())
        except TokenError as error:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, f"reveal: {error}")
        group = self._config.access.reveal_group
        reason = ""
        if not group:
            reason = "nobody may see secrets here: access.reveal_group names no group"
        elif not who.reveal:
            reason = (
                f"only members of group {group} may see secrets: sudo usermod -aG {group} $USER, log in again"
            )
        audited = ipc.Audited(who.uid, who.pid, not reason, reason, _one_line(request.filter))
        try:
            await self._supervisor.ask("Audit", ipc.encode(audited))
        except (UnavailableError, RefusedError) as error:
            await _abort(
                context, grpc.StatusCode.UNAVAILABLE, f"reveal: the journal cannot be written: {error}"
            )
        if reason:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, reason)

    async def _get_stats(self, _request: Message, _context: Context) -> bytes:
        families = self.families()
        response = pb.GetStatsResponse(
            text=statistics.text(families, time.time_ns() - self._since_ns),
            values=statistics.values(families),
            since_time_ns=self._since_ns,
        )
        return response.SerializeToString()

    async def _get_info(self, request: Message, context: Context) -> bytes:
        info = await self._ask("GetInfo", request, context)
        # Ids start anew when this process does, and only this process knows that: the field that
        # comes last wins.
        return info + pb.GetInfoResponse(epoch=self._hub.epoch).SerializeToString()

    def _passed_on(self, name: str) -> Callable[[Message, Context], Awaitable[bytes]]:
        async def ask(request: Message, context: Context) -> bytes:
            return await self._ask(name, request, context)

        return ask

    async def _ask(self, name: str, request: Message, context: Context) -> bytes:
        try:
            return await self._supervisor.ask(name, request.SerializeToString())
        except UnavailableError as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, f"{name}: {error}")
        except RefusedError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"{name}: {error}")


def _one_line(wanted: pb.Filter) -> str:
    text = text_format.MessageToString(wanted, as_one_line=True)
    return text if len(text) <= MAX_AUDITED_FILTER else f"{text[:MAX_AUDITED_FILTER]}…"


def _identity(message: bytes) -> bytes:
    return message


def _unary(
    behaviour: Callable[[Message, Context], Awaitable[bytes]], request: type[Message]
) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        behaviour, request_deserializer=request.FromString, response_serializer=_identity
    )


async def _abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")
