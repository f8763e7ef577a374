"""The watch itself: opens the stream, feeds the printer, and knows when to stop.

Takes a request, a printer and the conditions that end the watch; returns why it ended. Starts the command
(``-- COMMAND``) only when the stream has answered ``Started``. Raises ClientError when the daemon cannot be
reached, refuses, or breaks the stream; with ``reconnect`` it waits for the daemon instead and goes on where
it was. Never polls while a stream is open: idle, it sleeps in epoll.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from spliffctl import client
from spliffctl.child import Child
from spliffctl.errors import ClientError, PreconditionError, UnavailableError
from spliffctl.items import Printer
from spliffctl.output import Output
from spliffctl.render.quote import quote
from spliffctl.resume import FIRST_PAUSE_S, Place, gap, longer

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

START_TIMEOUT_S = 10.0
"""A daemon that serves says Started at once; one that does not within this time hangs."""

FLUSH_TIMEOUT_S = 15.0
"""After the command ended: how long the daemon may take to work off what it has captured by then (it gives
itself 10 s), and how long nothing may come before its ``Flushed``."""

GRACE_SILENCE_S = 0.3
"""The same where the daemon cannot say when that is: how long nothing must come before the watch ends. The
retry queue gives up after 50 ms and the daemon flushes every 5 ms, so an idle machine needs far less."""

GRACE_MAX_S = 2.0
"""And the longest wait, for descendants that go on talking."""


class End(enum.Enum):
    """Why a watch ended."""

    INTERRUPTED = enum.auto()
    TERMINATED = enum.auto()
    COUNT_REACHED = enum.auto()
    TIME_IS_UP = enum.auto()
    OUTPUT_CLOSED = enum.auto()
    COMMAND_ENDED = enum.auto()
    COMMAND_FAILED = enum.auto()
    HISTORY_ENDED = enum.auto()


class Watch:
    """One run of the stream. ``proof``: send a token that proves who asks (secrets take one)."""

    def __init__(
        self,
        path: str,
        request: pb.WatchRequest,
        printer: Printer,
        output: Output,
        *,
        seconds: float | None,
        proof: bool = False,
        reconnect: bool = False,
    ) -> None:
        self._path = path
        self._request = request
        self._printer = printer
        self._output = output
        self._seconds = seconds
        self._proof = proof
        self._place = Place() if reconnect else None
        self._running = False
        self._ended: asyncio.Future[None] | None = None
        self._connected: Callable[[], None] | None = None
        """What to do when the next stream has begun; None while one is open."""
        self.command_error: OSError | None = None

    async def run(self, child: Child | None) -> End:
        """Watches until something ends it. KeyboardInterrupt: a signal broke a write that hung."""
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[End] = loop.create_future()
        restore = self._stop_on_signals(loop, stop)
        self._stop_on_closed_output(loop, stop)
        try:
            place = self._place
            if place is None:
                return await self._once(self._request, stop, child)
            return await self._again_and_again(place, stop, child)
        finally:
            restore()

    async def _once(self, request: pb.WatchRequest, stop: asyncio.Future[End], child: Child | None) -> End:
        path, metadata = client.way(self._path)
        if self._proof and not metadata:
            metadata = client.bearer(self._path)
        # grpc.aio has no typed stub for a mixed sync and asyncio code base.
        async with client.streaming_channel(path) as channel:
            from spliffd.pb.spliff_pb2_grpc import SpliffStub

            stub: Any = SpliffStub(channel)
            flush = None
            if child:
                request, flush = _flushable(request, stub, self._path)
            stream: Any = stub.Watch(request, metadata=metadata or None)
            try:
                return await self._follow(stream, stop, child, flush)
            finally:
                stream.cancel()

    async def _again_and_again(self, place: Place, stop: asyncio.Future[End], child: Child | None) -> End:
        """Until something but the connection ends the watch."""
        pause, broke_ns, history = FIRST_PAUSE_S, 0, True
        while True:
            request = place.request(self._request) if history else place.live(self._request)
            if broke_ns:
                self._connected = lambda since=broke_ns, kept=history: self._tell_gap(since, history=kept)
            try:
                return await self._once(request, stop, child)
            except PreconditionError:
                if not (place.epoch and history):
                    raise
                history = False  # this daemon keeps none: go on live, and say so
                continue
            except UnavailableError as error:
                if not place.epoch:
                    raise  # never connected: a mistake of the operator's rather than a restart
                if self._connected is None:
                    pause, broke_ns = FIRST_PAUSE_S, time.time_ns()
                    print(f"spliffctl: {error}; waiting for it", file=sys.stderr)
            done, _ = await asyncio.wait({stop}, timeout=pause)
            if done:
                return stop.result()
            pause = longer(pause)

    def _tell_gap(self, since_ns: int, *, history: bool) -> None:
        self._connected = None
        now = time.time_ns()
        print(f"spliffctl: connected again after {(now - since_ns) / 1e9:.1f} s", file=sys.stderr)
        self._printer.show(gap(since_ns, now, history=history))

    async def _follow(
        self, stream: Any, stop: asyncio.Future[End], child: Child | None, flush: Flush | None
    ) -> End:
        """Reads batches until ``stop``, enough exchanges, or the daemon has told all of the command."""
        loop = asyncio.get_running_loop()
        ended = self._ended = self._ended or loop.create_future()
        started = False
        flushing: asyncio.Future[bool] | None = None
        deadline = 0.0
        reading = asyncio.ensure_future(stream.read())
        try:
            while True:
                timeout = None if started else START_TIMEOUT_S
                waiting: set[asyncio.Future[Any]] = {reading, stop}
                if not ended.done():
                    waiting.add(ended)
                elif flushing is not None:
                    timeout = FLUSH_TIMEOUT_S
                    if not flushing.done():
                        waiting.add(flushing)
                    elif not flushing.result():
                        deadline = deadline or loop.time() + GRACE_MAX_S
                        timeout = max(0.0, min(GRACE_SILENCE_S, deadline - loop.time()))
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if stop in done:
                    return stop.result()
                flushed = False
                if reading in done:
                    batch = self._taken(reading)
                    if batch is None:
                        return End.HISTORY_ENDED
                    reading = asyncio.ensure_future(stream.read())
                    if not started:
                        started = True
                        if not self._begin(loop, stop, child, ended):
                            return End.COMMAND_FAILED
                    if self._place is not None:
                        self._place.note(batch)
                    if self._printer.show(batch):
                        return End.COUNT_REACHED
                    flushed = any(item.HasField("flushed") for item in batch.items)
                if flush is not None and flushing is None and started and ended.done():
                    flushing = asyncio.ensure_future(flush())
                elif flushing is not None and (flushed or (deadline and loop.time() >= deadline)):
                    return End.COMMAND_ENDED
                elif not done:
                    if flushing is None:
                        raise UnavailableError(
                            f"spliffd accepts connections but did not answer within {START_TIMEOUT_S:.0f} s: "
                            "see systemctl status spliffd"
                        )
                    if not deadline:
                        _doubt(f"nothing came for {FLUSH_TIMEOUT_S:.0f} s")
                    return End.COMMAND_ENDED
        finally:
            reading.cancel()
            if flushing is not None:
                flushing.cancel()

    def _taken(self, reading: asyncio.Future[Any]) -> pb.WatchResponse | None:
        """The batch; None at the end of history, where that is all that was asked for."""
        import grpc.aio

        try:
            batch = reading.result()
        except grpc.RpcError as error:
            raise client.explain(error) from None
        if batch is not grpc.aio.EOF:
            found: pb.WatchResponse = batch
            return found
        if self._request.HasField("follow") and not self._request.follow:
            return None
        raise UnavailableError(
            "spliffd ended the stream (it stopped or was restarted): run the command again"
        )

    def _begin(
        self,
        loop: asyncio.AbstractEventLoop,
        stop: asyncio.Future[End],
        child: Child | None,
        ended: asyncio.Future[None],
    ) -> bool:
        """The stream has begun: the clock and the command start with the first one."""
        if self._connected is not None:
            self._connected()
        if self._running:
            return True
        self._running = True
        self._start_clock(loop, stop)
        return child is None or self._release(child, loop, ended)

    def _start_clock(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Future[End]) -> None:
        if self._seconds is not None:
            loop.call_later(self._seconds, _finish, stop, End.TIME_IS_UP)

    def _release(self, child: Child, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> bool:
        """Starts the command now that its watch is in place; False when it cannot be executed."""
        self.command_error = child.release()
        if self.command_error:
            return False

        def at_end() -> None:
            loop.remove_reader(child.pidfd)
            ended.set_result(None)

        loop.add_reader(child.pidfd, at_end)
        return True

    def _stop_on_signals(
        self, loop: asyncio.AbstractEventLoop, stop: asyncio.Future[End]
    ) -> Callable[[], None]:
        """SIGINT and SIGTERM end the watch; they break a write that a stalled reader holds up."""

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            if self._output.writing:
                raise KeyboardInterrupt
            end = End.INTERRUPTED if number == signal.SIGINT else End.TERMINATED
            loop.call_soon_threadsafe(_finish, stop, end)

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        return restore

    def _stop_on_closed_output(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Future[End]) -> None:
        """Notices that the reader of a pipe went away although there is nothing to write."""
        if stat.S_ISFIFO(os.fstat(self._output.fd).st_mode):

            def closed() -> None:
                loop.remove_reader(self._output.fd)
                _finish(stop, End.OUTPUT_CLOSED)

            # epoll reports an error on the writing end when the last reader closes.
            loop.add_reader(self._output.fd, closed)


def _finish(stop: asyncio.Future[End], end: End) -> None:
    if not stop.done():
        stop.set_result(end)


Flush = Callable[[], Awaitable[bool]]


def _flushable(request: pb.WatchRequest, stub: Any, path: str) -> tuple[pb.WatchRequest, Flush]:
    """The request with a key, and the call that asks the daemon for a ``Flushed`` in its stream.

    That returns False when none will come: the daemon is too old to know, or cannot say.
    """
    from spliffd.pb import spliff_pb2

    keyed = spliff_pb2.WatchRequest()
    keyed.CopyFrom(request)
    # Another key for each stream: a broken one may still be open at the daemon's end.
    keyed.flush_key = int.from_bytes(os.urandom(8), "big") or 1

    async def flush() -> bool:
        import grpc

        asked = spliff_pb2.FlushRequest(flush_key=keyed.flush_key)
        try:
            _, metadata = client.way(path)  # anew: a token lives for less than many a command
            await stub.Flush(asked, metadata=metadata or None, timeout=FLUSH_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                _doubt(quote(error.details() or error.code().name))
            return False
        except ClientError as error:
            _doubt(str(error))
            return False
        return True

    return keyed, flush


def _doubt(reason: str) -> None:
    print(f"spliffctl: what the command said last may be missing: {reason}", file=sys.stderr)
