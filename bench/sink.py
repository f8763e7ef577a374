"""Stands in for the api: wants everything, takes datagrams off a worker's data link, looks at none.

Started by ``worker`` with the link's fd; prints datagrams and bytes when the link ends.
"""

from __future__ import annotations

import contextlib
import socket
import sys

from spliffd import ipc


def main() -> None:
    """Until the worker is gone."""
    link = socket.socket(fileno=int(sys.argv[1]))
    link.send(
        ipc.encode(ipc.Demand(watchers=1, bodies=False, body_limit=0, handshakes=False, messages=False))
    )
    buffer = bytearray(ipc.MAX_DATAGRAM)
    datagrams = size = 0
    with contextlib.suppress(ConnectionResetError):
        while taken := link.recv_into(buffer):
            datagrams += 1
            size += taken
    print(datagrams, size, flush=True)


if __name__ == "__main__":
    main()
