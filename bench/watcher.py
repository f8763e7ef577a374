"""A watcher of everything over gRPC: reads messages as bytes, parses nothing while it is measured.

Started with the daemon's socket, and ``--comm NAME`` to watch programs of that name only; prints "started"
once the stream is set up. When told to end (SIGTERM) it prints one line of JSON: messages, bytes and, with
``--latency``, for every exchange seen at a server the seconds from its last TLS call's return
(``end_time_ns``, the kernel's time) to its arrival here.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

import grpc

from spliffd.pb import spliff_pb2


def main() -> None:
    """Until told to end."""
    channel = grpc.insecure_channel(f"unix:{sys.argv[1]}", options=[("grpc.max_receive_message_length", -1)])
    watch: Any = channel.unary_stream(
        "/spliff.v1.Spliff/Watch",
        request_serializer=spliff_pb2.WatchRequest.SerializeToString,
        response_deserializer=None,
    )
    wanted = spliff_pb2.Filter()
    if "--comm" in sys.argv:
        wanted.comms.append(sys.argv[sys.argv.index("--comm") + 1])
    call = watch(spliff_pb2.WatchRequest(filter=wanted))
    signal.signal(signal.SIGTERM, lambda *_: call.cancel())
    keep = "--latency" in sys.argv
    arrived: list[tuple[int, bytes]] = []
    messages = size = 0
    try:
        for data in call:
            now = time.time_ns()
            if not messages:
                print("started", flush=True)
            messages += 1
            size += len(data)
            if keep:
                arrived.append((now, data))
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.CANCELLED:
            raise
    print(json.dumps({"messages": messages, "bytes": size, "latencies": latencies(arrived)}), flush=True)


def latencies(arrived: list[tuple[int, bytes]]) -> list[float]:
    """Seconds for each complete exchange at a server."""
    found = []
    for now, data in arrived:
        for item in spliff_pb2.WatchResponse.FromString(data).items:
            exchange = item.exchange
            if exchange.connection.role == "server" and exchange.end_time_ns:
                found.append((now - exchange.end_time_ns) / 1e9)
    return found


if __name__ == "__main__":
    main()
