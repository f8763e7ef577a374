"""A tracer for tests of demand: what is delivered of connections, by whom somebody watches."""

from __future__ import annotations

from spliffd import ipc
from spliffd.kernel import records
from spliffd.kernel.maps import DEMAND_CUT, DEMAND_LOOKED, DEMAND_PRESSED, DEMAND_SHARE, DEMAND_SINCE
from spliffd.stages.demands import Demands
from tests.support.tracer import Record, Tracer

GET = b"GET /1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
FAR_AWAY = 1 << 62


class Watched:
    """A tracer whose share of unwatched connections stays what the test says."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.demands = Demands(tracer.maps, 1)
        self.leave()
        tracer.maps.demand[DEMAND_SINCE] = FAR_AWAY  # no window ends
        self.share(1024)
        self.press(0)
        self._counted = tracer.maps.counters.get("unsampled_exchanges")
        self._shed = tracer.maps.counters.get("shed_exchanges")
        self._unjudged = tracer.maps.counters.get("unjudged_calls")

    def share(self, share: int) -> None:
        self.tracer.maps.demand[DEMAND_SHARE] = share

    def watch(self, whom: ipc.Whom | None) -> None:
        self.demands.wanted(0, 1, whom)
        self.judge()

    def judge(self) -> None:
        """All cgroups that nobody judged yet, as the supervisor does beside other work."""
        for _ in self.demands.look():
            pass

    def leave(self) -> None:
        self.demands.wanted(0, 0, None)

    def press(self, cut: int, *, looked: int = FAR_AWAY) -> None:
        """Leaves so many 1,024ths out, until the ring is looked at again."""
        demand = self.tracer.maps.demand
        demand[DEMAND_CUT], demand[DEMAND_PRESSED], demand[DEMAND_LOOKED] = cut, int(cut > 0), looked

    def shed(self) -> int:
        return self.tracer.maps.counters.get("shed_exchanges") - self._shed

    def unjudged(self) -> int:
        return self.tracer.maps.counters.get("unjudged_calls") - self._unjudged

    def unsampled(self) -> int:
        return self.tracer.maps.counters.get("unsampled_exchanges") - self._counted

    def data(self) -> list[Record]:
        return [record for record in self.tracer.read() if record.kind == records.DATA]

    def said(self) -> list[bytes]:
        """What was delivered of each call, by whoever made it: one entry for writing, one for reading."""
        return [record.payload for record in self.data()]


def twice(*messages: bytes) -> list[bytes]:
    """Written by one end, read by the other."""
    return [message for message in messages for _ in range(2)]
