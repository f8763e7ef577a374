"""The fields of Exchange that expressions may name: their types, and where their values are found.

Takes a path; returns a ``Field``, or raises ``ExpressionError`` with the column of the name that is wrong and
the names that exist. A value comes from the frame's ``Summary`` where that has it, else from the message,
which is parsed once for all watchers and only when somebody's expression needs it. What no expression may
look at has no field here: bodies (they come in pieces, to those who asked), ids (they tell of what others
do) and what is revealed to single watchers.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from spliffd import ipc
from spliffd.api.expression.lexer import ExpressionError
from spliffd.api.expression.parser import Path
from spliffd.pb import spliff_pb2 as pb


class Subject(Protocol):
    """What an expression is asked about: ``delivery.Delivery``."""

    @property
    def summary(self) -> ipc.Summary:
        """The few facts that filters need."""

    @property
    def message(self) -> Any:
        """The parsed message of the frame."""


Get = Callable[[Subject], Any]

SUMMARY: dict[str, Get] = {
    "process.pid": lambda s: s.summary.pid,
    "process.ppid": lambda s: s.summary.ppid,
    "process.uid": lambda s: s.summary.uid,
    "process.comm": lambda s: s.summary.comm,
    "process.exe": lambda s: s.summary.exe,
    "process.user": lambda s: s.summary.user,
    "process.unit": lambda s: s.summary.unit,
    "process.container_id": lambda s: s.summary.container,
    "tls.library": lambda s: s.summary.library,
    "tls.sni": lambda s: s.summary.sni,
    "protocol": lambda s: s.summary.protocol,
    "connection.local.port": lambda s: s.summary.local_port,
    "connection.remote.port": lambda s: s.summary.remote_port,
    "connection.remote.address": lambda s: s.summary.remote_address,
    "request.authority": lambda s: s.summary.authority,
    "request.path": lambda s: s.summary.path,
    "request.method": lambda s: s.summary.method,
    "response.status": lambda s: s.summary.status,
}
"""Where the summary has the same value as the message."""

HIDDEN = frozenset(("id", "part_key", "revealed", "body"))
"""Names that no path may have in it."""

_INTEGERS = frozenset(
    (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    )
)


class Field(NamedTuple):
    """``type`` is int, string, bool, headers, list (of integers), messages or message."""

    path: str
    type: str
    get: Get
    present: Get
    """Whether it is there; for a field without presence: whether it differs from its default."""
    duration: bool


def find(path: Path) -> Field:
    """The field of ``path``; raises ExpressionError."""
    described: Descriptor = pb.Exchange.DESCRIPTOR
    field: FieldDescriptor | None = None
    for depth, (name, column) in enumerate(zip(path.names, path.columns, strict=True)):
        if field is not None:
            inner = field.message_type
            if inner is None or _repeated(field):
                raise ExpressionError(f"{'.'.join(path.names[:depth])} has no fields", column)
            described = inner
        field = described.fields_by_name.get(name)
        if field is None or name in HIDDEN:
            raise ExpressionError(_no_such_field(path.names[:depth], name, described), column)
    assert field is not None
    text = ".".join(path.names)
    kind = _type(field)
    get = SUMMARY.get(text) or _reader(text)
    return Field(text, kind, get, _presence(path.names, field, get), _is_duration(field, kind))


def known_in(message: Descriptor) -> Callable[[str], bool]:
    """Says of a path whether items of ``message`` have it; of Exchange's paths they share names and types."""
    exchange = pb.Exchange.DESCRIPTOR.fields_by_name
    shared = {
        name
        for name, field in message.fields_by_name.items()
        if name in exchange
        and field.message_type is not None
        and field.message_type == exchange[name].message_type
    }
    return lambda path: path in SUMMARY or path.partition(".")[0] in shared


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        if not _repeated(field):
            return "message"
        return "headers" if field.message_type is pb.Header.DESCRIPTOR else "messages"
    if field.cpp_type in _INTEGERS:
        return "list" if _repeated(field) else "int"
    return "bool" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else "string"


def _is_duration(field: FieldDescriptor, kind: str) -> bool:
    return kind == "int" and field.name.endswith("_ns") and not field.name.endswith("_time_ns")


def _reader(path: str) -> Get:
    read = attrgetter(path)
    return lambda s: read(s.message)


def _presence(names: tuple[str, ...], field: FieldDescriptor, get: Get) -> Get:
    if not field.has_presence:
        return lambda s: bool(get(s))
    name = names[-1]
    if len(names) == 1:
        return lambda s: s.message.HasField(name)
    parent = attrgetter(".".join(names[:-1]))
    return lambda s: parent(s.message).HasField(name)


def _no_such_field(before: tuple[str, ...], name: str, described: Descriptor) -> str:
    where = ".".join(before) or "an exchange"
    if name in HIDDEN and name in described.fields_by_name:
        return f"filters cannot look at {'.'.join((*before, name))}"
    names = [one for one in described.fields_by_name if one not in HIDDEN]
    import difflib

    near = difflib.get_close_matches(name[:64], names, 1)
    if near:
        return f"{where} has no field {name[:64]!r}; did you mean {near[0]}?"
    return f"{where} has no field {name[:64]!r}; it has {', '.join(names)}"
