"""The fields of Exchange that a watcher asked for.

Takes paths (``request.path``); returns a ``Mask`` that leaves nothing else in an entry. ``id`` always stays:
a watcher resumes by it. ``revealed`` and ``part_key`` stay with the headers and bodies that they belong to.
Raises ``MaskError`` that names the path.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from spliffd.api import wire
from spliffd.pb import spliff_pb2 as pb

MAX_PATHS = 128
"""More than Exchange has fields, with those of its parts."""

_BODIES = frozenset(("request", "response", "request.body", "response.body"))


class MaskError(ValueError):
    """A path that is no field."""


class Mask:
    """What stays: names to masks of what is below them, None for all of it."""

    def __init__(self, paths: Sequence[str]) -> None:
        if len(paths) > MAX_PATHS:
            raise MaskError(f"fields: {len(paths)} paths; at most {MAX_PATHS}")
        self.key = tuple(sorted(set(paths)))
        """Masks with the same key are the same."""
        self.bodies = not _BODIES.isdisjoint(paths)
        """Whether a body could stay."""
        self._tree: dict[str, Tree] = {"id": None}
        for path in self.key:
            _add(self._tree, path)
        if self.bodies:
            self._tree["part_key"] = None
        if any(path.endswith("headers") or path in _BODIES for path in self.key):
            self._tree["revealed"] = None

    def apply(self, entry: bytes) -> bytes:
        """The entry of ``WatchResponse.items`` with nothing else in its exchange."""
        items = pb.WatchResponse.FromString(entry).items
        exchange = items[0].exchange
        _prune(exchange, self._tree)
        return wire.entry("exchange", exchange.SerializeToString())


Tree = dict[str, "Tree"] | None


def _add(tree: dict[str, Tree], path: str) -> None:
    described: Descriptor | None = pb.Exchange.DESCRIPTOR
    names = path.split(".")
    for depth, name in enumerate(names):
        field = described.fields_by_name.get(name) if described is not None else None
        if field is None:
            raise MaskError(f"fields: {path[:64]!r} is no field of Exchange")
        if name in tree and tree[name] is None:
            return  # all of it stays already
        if depth == len(names) - 1 or field.is_repeated:
            if depth < len(names) - 1:
                raise MaskError(
                    f"fields: {path[:64]!r}: lists are sent whole; ask for {'.'.join(names[: depth + 1])}"
                )
            tree[name] = None
            return
        below = tree.setdefault(name, {})
        assert below is not None
        tree, described = below, field.message_type


def _prune(message: Message, tree: dict[str, Tree]) -> None:
    for field, value in message.ListFields():
        if field.name not in tree:
            message.ClearField(field.name)
            continue
        below = tree[field.name]
        if below is not None:
            _prune(value, below)
