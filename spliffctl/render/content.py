"""Bodies as people want to read them: decoded, indented, listed; and what was done to them in one line above.

Takes a joined ``Body`` and the message it belongs to, returns lines ready to print. Undoes content codings
(within limits; what the daemon decoded already is left alone), tells the type from the bytes where they
contradict Content-Type, indents JSON, lists forms and the parts of multipart bodies, and shows what is no
text as a hexdump. Changes no value: JSON is laid out anew token by token, so a cut or broken body is shown as
far as it goes. Sizes on the wire, decoded and shown are told wherever they differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from spliffctl import units
from spliffctl.parts import Body
from spliffctl.render.body import INDENT, body_lines, dump, encoding_of, hole_line
from spliffctl.render.colour import Palette
from spliffctl.render.quote import quote
from spliffd.content.coding import BOMB, TOO_LARGE, Decoder, codings, is_known
from spliffd.content.mime import declared, media_type

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_DECODED = 64 << 20
"""Bytes that one body may decode to on a workstation; what is beyond is said to be missing."""

MAX_RATIO = 500
"""Decoded bytes for each one on the wire, beyond the first MiB: text reaches 100, gzip's limit is 1,032."""

SLICE = 4096
"""Bytes that are decoded at a time."""

MAX_BOMB_SHOWN = 64 << 10
"""What is shown of a body that was not decoded to its end for its size: nobody reads a bomb."""

MAX_SNIFFED_JSON = 1 << 20
"""A body that is not declared to be JSON is tried as such up to this size."""

MAX_INDENT = 40
"""Levels that are indented: deeper ones would be more blanks than text."""

MAX_PART_SHOWN = 4096
"""A part of a multipart body is shown with the list when it is text and no longer than this."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)
_DISPOSITION = re.compile(rb'(name|filename)="?([^";\r\n]{0,200})"?', re.IGNORECASE)
_PART_TYPE = re.compile(rb"content-type:[ \t]*([^\r\n]{1,200})", re.IGNORECASE)


def content_lines(
    body: Body, message: pb.Request | pb.Response, palette: Palette, *, hexdump: bool
) -> Iterator[str]:
    """The lines of a message's body; none for an empty one. ``hexdump``: the bytes as they came."""
    if hexdump or not body.segments:
        yield from body_lines(body, message.content_type, palette, hexdump=hexdump)
        return
    facts, body, problem = _decoded(body, message)
    data = body.data
    kind, contradicted = media_type(message.content_type, data)
    if contradicted:
        said = declared(message.content_type)
        facts.insert(0, f"{kind} by its bytes, not {quote(said)}")
    shown = _layout(body, kind, message.content_type) if data else None
    if shown is None and data and not encoding_of(data, "" if contradicted else message.content_type):
        facts.insert(0, f"{quote(kind) or 'unknown data'}, {units.size(len(data))}")
        shown = _dumped(body)
    if facts:
        yield f"{INDENT}{palette.faint}[{'; '.join(facts)}]{palette.reset}"
    if shown is None:
        yield from body_lines(body, message.content_type, palette, hexdump=False)
    else:
        yield from shown
        for hole in body.holes:
            yield hole_line(*hole, palette)
    if problem:
        yield f"{INDENT}{palette.warning}… {problem} …{palette.reset}"


def payload_lines(message: pb.Message, palette: Palette, *, hexdump: bool) -> Iterator[str]:
    """The lines of a WebSocket payload: JSON laid out, other text, a close's reason, or a hexdump."""
    data, start = message.data, 0
    if message.type == "close":
        start = min(2, len(data))  # the code, which stands in the line above
    body = Body(((start, data[start:]),))
    if not hexdump and message.completeness.state == "complete" and _is_json(body.data):
        yield from (INDENT + quote(line) for line in indented(body.data.decode("utf-8", "backslashreplace")))
    elif body.data:
        yield from body_lines(body, "", palette, hexdump=hexdump)


def _decoded(body: Body, message: pb.Request | pb.Response) -> tuple[list[str], Body, str]:
    """(facts to tell, the body without its content codings, what kept the rest from being decoded)."""
    value = message.content_encoding
    if not codings(value):
        return [], body, ""
    name = quote(value)
    on_wire = f"{units.size(message.body_size)} on the wire"
    if message.decoded_size:
        return [f"{name}: {on_wire}, {units.size(message.decoded_size)} decoded"], body, ""
    if not is_known(value):
        return [f"{name} is not known here: as on the wire"], body, ""
    start, data = body.segments[0]
    if start:
        return [f"{name}: its beginning is missing, so it cannot be decoded: as on the wire"], body, ""
    decoder = Decoder(value, max_size=MAX_DECODED, max_ratio=MAX_RATIO)
    # In slices: given all at once, a bomb would be measured against the whole of it.
    slices = range(0, len(data), SLICE)
    out = b"".join([piece for at in slices for piece in decoder.feed(data[at : at + SLICE])])
    if decoder.problem and not out:
        return [f"not {name}, whatever Content-Encoding says ({decoder.problem})"], body, ""
    problem = ""
    if decoder.problem:
        problem = f"decoding stopped after {decoder.size:,} bytes: {decoder.problem}"
        if decoder.problem in (BOMB, TOO_LARGE) and len(out) > MAX_BOMB_SHOWN:
            out = out[:MAX_BOMB_SHOWN]
            problem += f"; {MAX_BOMB_SHOWN:,} are shown"
    elif not decoder.complete:
        problem = (
            f"decoded from {len(data):,} of {message.body_size:,} bytes on the wire: the rest is missing"
        )
    return [f"{name}: {on_wire}, {units.size(decoder.size)} decoded"], Body(((0, out),)), problem


def _layout(body: Body, kind: str, content_type: str) -> Iterator[str] | None:
    """Lines for types that are laid out anew; None for others, and for a body with holes in it."""
    if body.holes or len(body.segments) != 1 or body.segments[0][0]:
        return None
    data = body.data
    if kind.startswith("multipart/"):
        boundary = _BOUNDARY.search(content_type)
        return _parts(data, boundary[1].encode()) if boundary else None
    if kind == "application/x-www-form-urlencoded":
        return _form(data)
    encoding = encoding_of(data, content_type)
    if not encoding:
        return None
    if "json" in kind or (kind in ("", "text/plain") and _is_json(data)):
        return (INDENT + quote(line) for line in indented(data.decode(encoding, "backslashreplace")))
    return None


def _is_json(data: bytes) -> bool:
    """Whether a body of no declared type is a JSON object or array."""
    if data.lstrip()[:1] not in (b"{", b"[") or len(data) > MAX_SNIFFED_JSON:
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def indented(text: str) -> Iterator[str]:
    """JSON (or what there is of it) laid out on lines, two blanks a level; no token is changed."""
    line, depth, before = "", 0, ""
    for piece in _TOKEN.findall(text):
        if piece in ("]", "}"):
            depth = max(0, depth - 1)
            if before not in ("", "[", "{"):
                yield line
                line = "  " * min(depth, MAX_INDENT)
            line += piece
        elif piece == ",":
            yield line + piece
            line = "  " * min(depth, MAX_INDENT)
        elif piece == ":":
            line += ": "
        else:
            if before not in ("", ",", ":"):  # the first in a list, or another document (JSON lines)
                yield line
                line = "  " * min(depth, MAX_INDENT)
            line += piece
            if piece in ("[", "{"):
                depth += 1
        before = piece
    if line.strip():
        yield line


def _form(data: bytes) -> Iterator[str]:
    for field in data.decode("utf-8", "backslashreplace").split("&"):
        name, equals, value = field.partition("=")
        shown = quote(unquote_plus(name)) + (f" = {quote(unquote_plus(value))}" if equals else "")
        yield INDENT + shown


def _parts(data: bytes, boundary: bytes) -> Iterator[str]:
    """One line for each part (RFC 7578), and its text when that is short."""
    pieces = (b"\r\n" + data).split(b"\r\n--" + boundary)
    for number, piece in enumerate(pieces[1:], 1):
        if piece.startswith(b"--"):
            return
        head, _, content = piece.partition(b"\r\n\r\n")
        names = [
            f'{name.decode().lower()}="{quote(value.decode("utf-8", "backslashreplace"))}"'
            for name, value in _DISPOSITION.findall(head)
        ]
        said = _PART_TYPE.search(head)
        kind, _ = media_type(said[1].decode("latin-1") if said else "", content)
        facts = [f"part {number}:", *names, quote(kind), units.size(len(content))]
        yield INDENT + " ".join(fact for fact in facts if fact)
        if content and len(content) <= MAX_PART_SHOWN and (encoding := encoding_of(content, "")):
            for line in content.decode(encoding, "backslashreplace").splitlines():
                yield INDENT * 2 + quote(line)


def _dumped(body: Body) -> Iterator[str]:
    for offset, data in body.segments:
        yield from dump(data, offset)
