"""What one watcher asked for, checked and put into plain values.

Takes a ``WatchRequest`` and the configured maximum of a queue; returns ``Wishes``. What cannot be done is
refused with a sentence that says so: a wish that is silently ignored would make the watcher believe in data
that never comes. Raises ``WishError``.
"""

from __future__ import annotations

from typing import NamedTuple

from spliffd import ipc
from spliffd.api import whom
from spliffd.api.filter import Filter, FilterError
from spliffd.api.mask import Mask, MaskError
from spliffd.pb import spliff_pb2 as pb

DEFAULT_QUEUE_BYTES = 16 << 20
"""About 12,000 exchanges: a watcher may stand still for 200 ms at full load, for minutes otherwise."""

MIN_QUEUE_BYTES = 256 << 10
"""Less could not hold one flush interval at full load; a smaller wish is raised to this."""


class WishError(ValueError):
    """The request cannot be served."""


class Past(NamedTuple):
    """What a watcher wants of history; without ``follow`` the stream ends with it."""

    since_ns: int = 0
    last: int = 0
    after_id: int | None = None
    after_epoch: int = 0
    follow: bool = True


class Wishes(NamedTuple):
    """What one watcher wants. ``filter`` is None when everything matches, ``past`` without history."""

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
    mask: Mask | None = None
    """The fields of an exchange that are wanted; None for all."""
    past: Past | None = None
    owner: int | None = None
    """A user id: this watcher may know of that user's processes only. None: of everybody's."""


def read(request: pb.WatchRequest, max_queue_bytes: int, *, owner: int | None = None) -> Wishes:
    """Checks ``request``; raises WishError."""
    wanted: Filter | None = None
    mask: Mask | None = None
    try:
        if request.HasField("filter") and request.filter.ListFields():
            wanted = Filter(request.filter)
        if request.fields:
            mask = Mask(request.fields)
    except (FilterError, MaskError) as error:
        raise WishError(str(error)) from None
    bodies = request.bodies and (mask is None or mask.bodies)
    queue_bytes = max(MIN_QUEUE_BYTES, request.queue_bytes or DEFAULT_QUEUE_BYTES)
    return Wishes(
        filter=wanted,
        bodies=bodies,
        body_limit=request.body_limit if bodies else 0,
        handshakes=request.handshakes,
        messages=request.messages,
        queue_bytes=min(queue_bytes, max_queue_bytes),
        reveal=request.reveal,
        whom=whom.of(request.filter),
        progress=request.progress,
        mask=mask,
        past=_past(request),
        owner=owner,
    )


def _past(request: pb.WatchRequest) -> Past | None:
    follow = not request.HasField("follow") or request.follow
    resume = request.HasField("after_id")
    if resume and (request.since_time_ns or request.last):
        raise WishError("after_id says where to begin: leave since_time_ns and last away")
    if request.after_epoch and not resume:
        raise WishError("after_epoch says what after_id belongs to: set that as well")
    if follow and not (resume or request.since_time_ns or request.last):
        return None
    after = request.after_id if resume else None
    return Past(request.since_time_ns, request.last, after, request.after_epoch, follow)
