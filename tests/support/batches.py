"""What a worker sends to the api, made of single frames: those that are alike go together, as from a worker."""

from __future__ import annotations

from collections.abc import Iterable

from spliffd import ipc
from spliffd.entries import Entries, Writer


def is_alike(frame: ipc.Frame) -> bool:
    """Whether every watcher who wants this exchange gets the same of it: no body, no parts, no secrets."""
    return not (
        frame.part_key
        or frame.secret
        or frame.request_body
        or frame.response_body
        or frame.withheld
        or frame.secret_request_body
        or frame.secret_response_body
    )


def add(writer: Writer, frame: ipc.Frame) -> None:
    """The frame's exchange, its summary in two parts as a worker has them."""
    connection, rest = parts(frame.summary)
    writer.add(frame.public, connection, rest, frame.uid)


def parts(summary: bytes) -> tuple[bytes, bytes]:
    """An encoded Summary, cut between what is a connection's and what an exchange's."""
    known = ipc.summary_of(summary)
    rest = ipc.encode((known.protocol, known.authority, known.path, known.method, known.status))[1:]
    return summary.removesuffix(rest), rest


def as_sent(frames: Iterable[ipc.Frame]) -> ipc.Batch:
    """The batch in which a worker sends these."""
    batch: ipc.Batch = []
    writer = Writer()
    for frame in frames:
        if frame.kind == ipc.EXCHANGE and is_alike(frame):
            add(writer, frame)
            continue
        if len(writer):
            batch.append(writer.take())
        batch.append(frame)
    if len(writer):
        batch.append(writer.take())
    return batch


def frames_of(batch: ipc.Batch) -> list[ipc.Frame]:
    """The single frames of a batch."""
    found: list[ipc.Frame] = []
    for one in batch:
        if isinstance(one, ipc.Exchanges):
            entries = Entries(one, 1)
            found += [entries.frame(index) for index in range(len(entries))]
        else:
            found.append(one)
    return found
