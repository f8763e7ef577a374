"""A watcher that keeps batches as bytes and takes them apart afterwards, so that it costs little meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import wait_for

METHOD = "/spliff.v1.Spliff/Watch"


class RawWatch:
    """Reads in a thread until ``stop``."""

    def __init__(self, daemon: Daemon, **request) -> None:
        self.batches: list[bytes] = []
        self.last = time.monotonic()
        self._channel = grpc.insecure_channel(
            f"unix:{daemon.socket}", options=[("grpc.max_receive_message_length", -1)]
        )
        call = self._channel.unary_stream(
            METHOD, request_serializer=spliff_pb2.WatchRequest.SerializeToString, response_deserializer=None
        )
        self._call = call(spliff_pb2.WatchRequest(**request))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_for(lambda: bool(self.batches), 30, "Started")

    def _read(self) -> None:
        try:
            for batch in self._call:
                self.batches.append(batch)
                self.last = time.monotonic()
        except grpc.RpcError:
            return

    def settle(self, quiet: float = 1.0, seconds: float = 60.0) -> None:
        """Until nothing has come for ``quiet`` seconds."""
        wait_for(lambda: time.monotonic() - self.last > quiet, seconds, "quiet")

    def items(self) -> Iterator[spliff_pb2.Item]:
        """Everything that has come so far, in order."""
        for batch in self.batches:
            yield from spliff_pb2.WatchResponse.FromString(batch).items

    def stop(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self._thread.join(5)
        self._channel.close()
