"""The stream of the full-screen view: keeps a watch open, also across restarts of the daemon.

Takes the daemon's socket and a request, gives batches to a History and says in ``state`` how it goes. Runs in
the event loop of the view. A daemon that went away is asked again; a filter that it refuses is not, for it
would be refused again. Statistics are asked for only while somebody looks at them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spliffctl import client
from spliffctl.errors import ClientError, NotPermittedError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from spliffctl.top.history import History
    from spliffd.pb import spliff_pb2 as pb

RETRY_S = 1.0
"""Between two tries to reach a daemon that went away: a restart takes about a second."""

CONNECTED = "live"


class Feed:
    """One watch at a time. ``changed`` is called when ``state`` says something new."""

    def __init__(self, path: str, history: History, changed: Callable[[], None]) -> None:
        self.state = "connecting"
        """``live``, or what is in the way."""
        self._path = path
        self._history = history
        self._changed = changed

    async def run(self, request: pb.WatchRequest) -> None:
        """Watches until it is cancelled, or the daemon refuses the request."""
        while True:
            try:
                await self._watch(request)
            except (RefusedError, NotPermittedError) as error:
                self._say(str(error))
                return
            except ClientError as error:
                self._say(f"{error}; trying again")
            await asyncio.sleep(RETRY_S)

    async def statistics(self) -> pb.GetStatsResponse | str:
        """The daemon's numbers, or what is in the way of them."""
        import grpc

        from spliffd.pb import spliff_pb2
        from spliffd.pb.spliff_pb2_grpc import SpliffStub

        try:
            path, metadata = client.way(self._path)
        except ClientError as error:
            return str(error)
        async with client.streaming_channel(path) as channel:
            stub: Any = SpliffStub(channel)
            try:
                answer: pb.GetStatsResponse = await stub.GetStats(
                    spliff_pb2.GetStatsRequest(), timeout=client.CALL_TIMEOUT_S, metadata=metadata or None
                )
            except grpc.RpcError as error:
                return str(client.explain(error))
            return answer

    async def _watch(self, request: pb.WatchRequest) -> None:
        import grpc

        from spliffd.pb.spliff_pb2_grpc import SpliffStub

        path, metadata = client.way(self._path)
        async with client.streaming_channel(path) as channel:
            # grpc.aio has no typed stub for a mixed sync and asyncio code base.
            stream: Any = SpliffStub(channel).Watch(request, metadata=metadata or None)
            try:
                async for batch in stream:
                    if self.state != CONNECTED:
                        self._say(CONNECTED)
                    self._history.take(batch)
            except grpc.RpcError as error:
                raise client.explain(error) from None
            finally:
                stream.cancel()
        raise UnavailableError("spliffd ended the stream (it stopped or was restarted)")

    def _say(self, state: str) -> None:
        self.state = state
        self._changed()
