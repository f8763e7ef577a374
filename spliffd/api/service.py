"""The gRPC service ``spliff.v1.Spliff``, once for each way into the daemon.

Takes the hub, the talk with the supervisor, the shared counters and a ``Door`` that knows who calls; returns
one generic handler for a ``grpc.aio`` server. ``Watch`` writes bytes that are serialised already, so its
response serializer is the identity. Secrets unmasked, and the debug log, take a role, and a line in the
journal before anything is done. Never waits for anything but its own caller and, bounded, the supervisor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.message import Message

from spliffd import audit, ipc, metrics, statistics
from spliffd.api import wire, wishes
from spliffd.api.access import Caller, Context, Door, abort, refuse
from spliffd.api.history import delivery_of
from spliffd.api.hub import FLUSH_SECONDS, Hub
from spliffd.api.replay import Archive, Replay
from spliffd.api.subscribers import Subscriber
from spliffd.api.supervisor_link import RefusedError, SupervisorLink, UnavailableError
from spliffd.config import Config
from spliffd.counters import Area, Region
from spliffd.pb import spliff_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["Spliff"].full_name

MAX_AUDITED_FILTER = 2048
"""Characters of a filter that the journal gets."""


class Service:
    """All RPCs of the contract."""

    def __init__(
        self,
        hub: Hub,
        supervisor: SupervisorLink,
        area: Area,
        kernel: Region,
        config: Config,
        door: Door,
        archive: Archive | None = None,
    ) -> None:
        self._hub = hub
        self._supervisor = supervisor
        self._area = area
        self._kernel = kernel
        self._config = config
        self._door = door
        self._archive = archive
        self._flushable: dict[tuple[int | None, int], Subscriber] = {}
        """Watches that go on, by owner and flush_key."""
        self._flushing: set[tuple[int | None, int]] = set()
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
            "Flush": _unary(self._flush, pb.FlushRequest),
            "GetExchange": _unary(self._get_exchange, pb.GetExchangeRequest),
            "GetStats": _unary(self._get_stats, pb.GetStatsRequest),
            "GetInfo": _unary(self._get_info, pb.GetInfoRequest),
            "ListLibraries": _unary(self._passed_on("ListLibraries"), pb.ListLibrariesRequest),
            "ListInterfaces": _unary(self._passed_on("ListInterfaces"), pb.ListInterfacesRequest),
            "SetDebug": _unary(self._set_debug, pb.SetDebugRequest),
            "ListFlows": _unary(self._passed_on("ListFlows"), pb.ListFlowsRequest),
            "ListProcesses": _unary(self._passed_on("ListProcesses"), pb.ListProcessesRequest),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)

    def families(self) -> list[metrics.Family]:
        """Every number, read now."""
        return metrics.collect(self._area, self._kernel, self._config.capture.workers)

    async def _watch(self, request: pb.WatchRequest, context: Context) -> None:
        caller = await self._door.enter("Watch", context)
        try:
            wanted = wishes.read(request, self._config.access.queue_mib << 20, owner=caller.owner)
        except wishes.WishError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if wanted.past is not None:
            await self._check_past(wanted, context)
        if wanted.reveal:
            await self._may_reveal(request, context)
        if self._supervisor.stop.is_set():
            await abort(context, grpc.StatusCode.UNAVAILABLE, "spliffd is stopping")
        if not self._hub.has_room(caller.owner):
            await abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._config.access.watchers} watchers are connected already; end one of them"
                if caller.owner is None
                else "no more watchers of own processes are allowed; end one of yours, or wait",
            )
        if wanted.past is not None and not wanted.past.follow:
            with self._hub.reading(caller.owner):
                async for response in Replay(self._hub.history, wanted, self._archive).responses():
                    await context.write(response)
            return
        key = (caller.owner, request.flush_key)
        if request.flush_key and key in self._flushable:
            await abort(context, grpc.StatusCode.ALREADY_EXISTS, "another watch has this flush_key")
        subscriber = self._hub.subscribe(wanted)
        subscriber.beforehand = True
        if request.flush_key:
            self._flushable[key] = subscriber
        try:
            await self._hub.acknowledged()
            # What comes from here on is queued, and follows Started; what came before is nobody's.
            next_id = self._hub.next_id if caller.owner is None else self._hub.own_next(caller.owner)
            if wanted.past is None:
                subscriber.beforehand = False
                started = pb.Started(next_id=next_id, epoch=self._hub.epoch)
                await context.write(wire.entry("started", started.SerializeToString()))
            else:
                async for response in Replay(self._hub.history, wanted, self._archive).responses():
                    await context.write(response)
                # Nothing was awaited since the last record was read: no exchange is missed or comes twice.
                subscriber.beforehand = False
            while (waiting := await subscriber.next()) is not None:
                await context.write(waiting)
                subscriber.written()
        finally:
            self._flushable.pop(key, None)
            self._hub.unsubscribe(subscriber)

    async def _flush(self, request: Message, context: Context) -> bytes:
        caller = await self._door.enter("Flush", context)
        assert isinstance(request, pb.FlushRequest)
        key = (caller.owner, request.flush_key)
        if key not in self._flushable:
            await abort(context, grpc.StatusCode.NOT_FOUND, "no watch that goes on has this flush_key")
        if key in self._flushing:
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "this watch is being flushed already")
        self._flushing.add(key)
        try:
            flushed = await self._hub.flushed()
        finally:
            self._flushing.discard(key)
        if not flushed:
            await abort(
                context,
                grpc.StatusCode.UNAVAILABLE,
                f"the workers did not catch up within {FLUSH_SECONDS:.0f} s: some of it may not have come",
            )
        subscriber = self._flushable.get(key)
        if subscriber is None or not subscriber.mark():
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the watch does not read, or has ended")
        return pb.FlushResponse().SerializeToString()

    async def _check_past(self, wanted: wishes.Wishes, context: Context, number: int = 0) -> None:
        """Ends the call when history cannot serve it; ``number``: the one exchange that it asks for."""
        past, hub = wanted.past, self._hub
        assert past is not None
        if not hub.history.enabled:
            await abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "this spliffd keeps no history (history.memory_mib is 0): watch live only",
            )
        next_id = hub.next_id if wanted.owner is None else hub.own_next(wanted.owner)
        of_now = past.after_epoch in (0, hub.epoch)
        if past.after_id is not None and of_now and past.after_id >= next_id:
            asked, field = f"after_id is {past.after_id}", "after_epoch"
            if number:
                asked, field = f"there is no exchange {number} yet", "epoch"
            await abort(
                context,
                grpc.StatusCode.OUT_OF_RANGE,
                f"{asked}, and the next exchange will be {next_id}: for an earlier daemon's "
                f"send its epoch as well ({field}), ids start anew with the daemon",
            )

    async def _may_reveal(self, request: pb.WatchRequest, context: Context) -> None:
        """Returns when the caller may see secrets and the journal says so; else ends the call."""
        caller = await self._door.identify("reveal", context)
        group = self._config.access.reveal_group
        reason = ""
        if not caller.reveal and caller.name:
            reason = f"the certificate of {caller.name} may not see secrets: tls.reveal does not name it"
        elif not caller.reveal and not group:
            reason = "nobody may see secrets here: access.reveal_group names no group"
        elif not caller.reveal:
            reason = (
                f"only members of group {group} may see secrets: sudo usermod -aG {group} $USER, log in again"
            )
        await self._audit("reveal", caller, reason, _one_line(request.filter), context)

    async def _set_debug(self, request: Message, context: Context) -> bytes:
        await self._door.enter("SetDebug", context)
        caller = await self._door.identify("SetDebug", context)
        reason = "" if caller.debug else "only root and those who may see secrets may switch the debug log"
        switched = "on" if isinstance(request, pb.SetDebugRequest) and request.enabled else "off"
        await self._audit("debug", caller, reason, switched, context)
        return await self._ask("SetDebug", request, context)

    async def _audit(self, what: str, caller: Caller, reason: str, wanted: str, context: Context) -> None:
        """Writes to the journal what was asked; ends the call for ``reason``, or when that fails."""
        audited = audit.Audited(caller.uid, caller.pid, not reason, reason, wanted, caller.name, what)
        try:
            await self._supervisor.ask("Audit", ipc.encode(audited))
        except (UnavailableError, RefusedError) as error:
            await abort(
                context, grpc.StatusCode.UNAVAILABLE, f"{what}: the journal cannot be written: {error}"
            )
        if reason:
            await refuse(context, self._area.api, reason)

    async def _get_exchange(self, request: Message, context: Context) -> bytes:
        caller = await self._door.enter("GetExchange", context)
        assert isinstance(request, pb.GetExchangeRequest)
        past = wishes.Past(after_id=max(0, request.id - 1), after_epoch=request.epoch, follow=False)
        wanted = wishes.Wishes(past=past, bodies=True, owner=caller.owner)
        await self._check_past(wanted, context, request.id)
        record = None
        if self._hub.has_room(caller.owner):
            with self._hub.reading(caller.owner):
                record = await Replay(self._hub.history, wanted, self._archive).find(request.id)
        if record is None:
            await abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"history has no exchange {request.id}: it is too old, or not finished yet (spliffctl list)",
            )
        delivery = delivery_of(record, owner=caller.owner)
        found = pb.WatchResponse.FromString(delivery.with_bodies(0, 0).entry).items[0].exchange
        return pb.GetExchangeResponse(exchange=found, epoch=record.epoch).SerializeToString()

    async def _get_stats(self, _request: Message, context: Context) -> bytes:
        await self._door.enter("GetStats", context)
        families = self.families()
        response = pb.GetStatsResponse(
            text=statistics.text(families, time.time_ns() - self._since_ns),
            values=statistics.values(families),
            since_time_ns=self._since_ns,
        )
        return response.SerializeToString()

    async def _get_info(self, request: Message, context: Context) -> bytes:
        caller = await self._door.enter("GetInfo", context)
        info = await self._ask("GetInfo", request, context)
        if caller.owner is not None:
            # Health and scope tell of what others do.
            known = pb.GetInfoResponse.FromString(info)
            info = pb.GetInfoResponse(
                version=known.version,
                kernel=known.kernel,
                hostname=known.hostname,
                start_time_ns=known.start_time_ns,
            ).SerializeToString()
        # Ids start anew when this process does, and only this process knows that: the field that
        # comes last wins.
        return info + pb.GetInfoResponse(epoch=self._hub.epoch).SerializeToString()

    def _passed_on(self, name: str) -> Callable[[Message, Context], Awaitable[bytes]]:
        async def ask(request: Message, context: Context) -> bytes:
            caller = await self._door.enter(name, context)
            return await self._ask(name, request, context, caller.owner)

        return ask

    async def _ask(self, name: str, request: Message, context: Context, owner: int | None = None) -> bytes:
        try:
            return await self._supervisor.ask(name, request.SerializeToString(), owner)
        except UnavailableError as error:
            await abort(context, grpc.StatusCode.UNAVAILABLE, f"{name}: {error}")
        except RefusedError as error:
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"{name}: {error}")


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
