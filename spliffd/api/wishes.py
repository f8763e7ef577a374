"""What one watcher asked for, checked and put into plain values.

Takes a ``WatchRequest`` and the configured maximum of a queue; returns ``Wishes``. What this version
cannot do is refused with a sentence that says so: a wish that is silently ignored would make the
watcher believe in data that never comes. Raises ``WishError``.
"""

from __future__ import annotations

from typing import NamedTuple

from spliffd import ipc
from spliffd.api import whom
from spliffd.api.filter import Filter, FilterError
from spliffd.pb import spliff_pb2 as pb

DEFAULT_QUEUE_BYTES = 16 << 20
"""About 12,000 exchanges: a watcher may stand still for 200 ms at full load, for minutes otherwise."""

MIN_QUEUE_BYTES = 256 << 10
"""Less could not hold one flush interval at full load; a smaller wish is raised to this."""


class WishError(ValueError):
    """The request cannot be served; ``unsupported`` tells "not in this version" from "wrong"."""

    def __init__(self, message: str, *, unsupported: bool) -> None:
        super().__init__(message)
        self.unsupported = unsupported


class Wishes(NamedTuple):
    """What one watcher wants. ``filter`` is None when everything matches."""

    filter: Filter | None = None
    bodies: bool = False
    body_limit: int = 0
    handshakes: bool = False
    messages: bool = False
    queue_bytes: int = DEFAULT_QUEUE_BYTES
    reveal: bool = False
    """Secrets too; whoever makes a Subscriber of it has checked that its role allows it."""
    whom: ipc.Whom | None = None
    """Whose connections can match ``filter``, as far as the kernel can tell; None: anybody's."""
    progress: bool = False


def read(request: pb.WatchRequest, max_queue_bytes: int) -> Wishes:
    """Checks ``request``; raises WishError."""
    _refuse_unsupported(request)
    wanted: Filter | None = None
    if request.HasField("filter") and request.filter.ListFields():
        try:
            wanted = Filter(request.filter)
        except FilterError as error:
            raise WishError(str(error), unsupported=False) from None
    queue_bytes = max(MIN_QUEUE_BYTES, request.queue_bytes or DEFAULT_QUEUE_BYTES)
    return Wishes(
        filter=wanted,
        bodies=request.bodies,
        body_limit=request.body_limit if request.bodies else 0,
        handshakes=request.handshakes,
        messages=request.messages,
        queue_bytes=min(queue_bytes, max_queue_bytes),
        reveal=request.reveal,
        whom=whom.of(request.filter),
        progress=request.progress,
    )


def _refuse_unsupported(request: pb.WatchRequest) -> None:
    if request.since_time_ns or request.last or request.HasField("after_id"):
        raise WishError(
            "since_time_ns, last and after_id: this version keeps no history; watch live without them",
            unsupported=True,
        )
    if request.HasField("follow") and not request.follow:
        raise WishError(
            "follow=false: this version keeps no history, so nothing would come; leave follow unset",
            unsupported=True,
        )
    if request.fields:
        raise WishError(
            "fields: this version always sends whole exchanges; leave fields empty", unsupported=True
        )
