"""Where a watch is in the daemon's numbering, so that it can go on after the connection broke.

Takes batches as they come; gives the request that asks for everything behind them. The daemon tells what it
lost in between; what it never keeps (handshakes, messages, chunks) is told here, as a loss of the client.
Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

FIRST_PAUSE_S = 0.1
"""Before the first attempt: a daemon's api process that died is back within half a second."""

LONGEST_PAUSE_S = 2.0
"""Between attempts, after some: nobody waits longer than that for a daemon that is back."""


class Place:
    """Epoch and id of the last exchange that was seen."""

    def __init__(self) -> None:
        self.epoch = 0
        self._id = 0

    def note(self, batch: pb.WatchResponse) -> None:
        """Remembers where the batch ends."""
        for item in batch.items:
            kind = item.WhichOneof("kind")
            if kind == "exchange":
                self._id = item.exchange.id
            elif kind == "started":
                self.epoch, self._id = item.started.epoch, max(0, item.started.next_id - 1)

    def request(self, wanted: pb.WatchRequest) -> pb.WatchRequest:
        """``wanted``, from here on; as it is when nothing was seen yet."""
        from spliffd.pb import spliff_pb2

        if not self.epoch:
            return wanted
        request = spliff_pb2.WatchRequest()
        request.CopyFrom(wanted)
        request.since_time_ns = request.last = 0
        request.after_id, request.after_epoch = self._id, self.epoch
        return request

    def live(self, wanted: pb.WatchRequest) -> pb.WatchRequest:
        """``wanted`` without history, for a daemon that keeps none."""
        request = self.request(wanted)
        request.ClearField("after_id")
        request.after_epoch = 0
        return request


def gap(first_ns: int, last_ns: int, *, history: bool) -> pb.WatchResponse:
    """What nobody can say of the time without a connection, as a loss."""
    from spliffd.pb import spliff_pb2

    reason = "disconnected_but_for_exchanges" if history else "disconnected"
    loss = spliff_pb2.Loss(stage="client", reason=reason, first_time_ns=first_ns, last_time_ns=last_ns)
    return spliff_pb2.WatchResponse(items=[spliff_pb2.Item(loss=loss)])


def longer(pause: float) -> float:
    """The pause after ``pause``."""
    return min(pause * 2, LONGEST_PAUSE_S)
