"""Protobuf messages as JSON text, with proto field names: one line each.

Takes a message of the contract, returns the same JSON that ``google.protobuf.json_format`` would write
with ``preserving_proto_field_name`` (https://protobuf.dev/programming-guides/json/): 64-bit integers as
strings, bytes in base64, unset fields left out, maps as objects. A small part of its cost, because a
function for each message type is generated once from its descriptor, as ``dataclasses`` does.

Everything but printable ASCII is escaped, so no control character can reach a terminal. Nothing but
names of the contract's own fields goes into generated code.
"""

from __future__ import annotations

import math
from binascii import b2a_base64
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Writer = Callable[[Any], str]
"""Writes one value as JSON text."""

_writers: dict[str, Writer] = {}
"""Writers of message types by full name; the contract has some forty, so it needs no bound."""


def to_json(message: Message) -> str:
    """The message as one line of JSON, without the newline."""
    return _message_writer(message.DESCRIPTOR)(message)


def item_line(kind: str, message: Message) -> str:
    """``{"exchange": {…}}``: one key that names what it is."""
    return f'{{"{kind}": {to_json(message)}}}'


def _bytes(value: bytes) -> str:
    return f'"{b2a_base64(value, newline=False).decode("ascii")}"'


def _double(value: float) -> str:
    if math.isfinite(value):
        # Counters are doubles: 5, not 5.0. Beyond 2**53 digits would be made up.
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
    return '"NaN"' if math.isnan(value) else ('"Infinity"' if value > 0 else '"-Infinity"')


_EXACT = 2.0**53
"""Doubles up to here are exact whole numbers."""

_NAMES = {
    "_string": encode_basestring_ascii,
    "_bytes": _bytes,
    "_double": _double,
}
"""What generated code may call, besides the writers of other message types."""

_SCALARS = {
    FieldDescriptor.CPPTYPE_INT32: "f'{%s}'",
    FieldDescriptor.CPPTYPE_UINT32: "f'{%s}'",
    FieldDescriptor.CPPTYPE_INT64: """f'"{%s}"'""",
    FieldDescriptor.CPPTYPE_UINT64: """f'"{%s}"'""",
    FieldDescriptor.CPPTYPE_STRING: "_string(%s)",
    FieldDescriptor.CPPTYPE_BOOL: "('true' if %s else 'false')",
    FieldDescriptor.CPPTYPE_DOUBLE: "_double(%s)",
}
"""Expressions that give the JSON text of one value, by the kind of field."""


def _expression(field: FieldDescriptor, value: str, names: dict[str, Any]) -> str:
    """The expression that writes one value of a field, ``value`` being the one that holds it.

    Raises NotImplementedError for kinds that the contract does not use: a test walks the whole
    contract, so a new kind is noticed there and not by a user.
    """
    if field.message_type is not None:
        name = f"write_{field.message_type.name}"
        names[name] = _message_writer(field.message_type)
        return f"{name}({value})"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return f"_bytes({value})"
    if field.cpp_type not in _SCALARS:
        raise NotImplementedError(f"{field.full_name}: no JSON writer for this kind of field")
    return _SCALARS[field.cpp_type] % value


def _map_expression(entry: Any, names: dict[str, Any]) -> str:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    if key.type != FieldDescriptor.TYPE_STRING:
        raise NotImplementedError(f"{entry.full_name}: only maps with text as key have a JSON writer")
    pair = f"_string(key) + ': ' + {_expression(value, 'v[key]', names)}"
    return f"'{{' + ', '.join([{pair} for key in v]) + '}}'"


def _field_expression(field: FieldDescriptor, names: dict[str, Any]) -> str:
    """The expression that gives ``, "name": value`` of a field, or nothing when it is not set."""
    prefix = f"""', "{field.name}": '"""
    condition = f"(v := m.{field.name})"
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        text = _map_expression(field.message_type, names)
    elif field.is_repeated:
        text = f"'[' + ', '.join([{_expression(field, 'x', names)} for x in v]) + ']'"
    elif field.has_presence:
        condition = f"m.HasField('{field.name}')"
        text = _expression(field, f"m.{field.name}", names)
    else:
        text = _expression(field, "v", names)
    return f"({prefix} + {text} if {condition} else '')"


def _message_writer(descriptor: Any) -> Writer:
    known = _writers.get(descriptor.full_name)
    if known:
        return known
    names: dict[str, Any] = dict(_NAMES)
    # An empty one at the end keeps the tuple a tuple when there is only one field.
    fields = [*(_field_expression(field, names) for field in descriptor.fields), "''"]
    # The first separator is cut off.
    source = f"def write(m):\n    return '{{' + ''.join(({', '.join(fields)}))[2:] + '}}'"
    # The source holds names of fields of our own contract and nothing from outside.
    exec(compile(source, f"<json of {descriptor.full_name}>", "exec"), names)  # noqa: S102
    writer: Writer = names["write"]
    _writers[descriptor.full_name] = writer
    return writer
