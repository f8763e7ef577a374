"""Exchanges and WebSocket messages as bytes of HTTP/1, HTTP/2 and WebSocket.

Takes messages made consistent (content.py), returns the bytes that a peer would have sent: not those that
crossed the wire, which are gone, but what any reader takes apart into the same message. HTTP/1 is RFC 9112,
HTTP/2 RFC 9113, HPACK RFC 7541 (every field a literal without indexing, so that no state is needed),
WebSocket RFC 6455. Does no I/O, keeps no state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spliffctl.export.content import Fields, Message

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

MAX_FRAME = 16_384
"""SETTINGS_MAX_FRAME_SIZE as it is without being negotiated (RFC 9113, 6.5.2)."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _SETTINGS, _CONTINUATION = 0, 1, 4, 9
_END_STREAM, _END_HEADERS = 0x1, 0x4
_OPCODES = {"continuation": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}


def http1_head(start: str, message: Message) -> bytes:
    """Start line and headers, with the empty line."""
    return b"".join([_text(start), b"\r\n", _lines(message.headers), b"\r\n"])


def http1_body(message: Message) -> bytes:
    """The body; with chunked coding as one chunk, then the trailers."""
    if not message.chunked:
        return message.body
    chunk = b"%x\r\n%b\r\n" % (len(message.body), message.body) if message.body else b""
    return chunk + b"0\r\n" + _lines(message.trailers) + b"\r\n"


def _lines(fields: Fields) -> bytes:
    return b"".join([_text(name) + b": " + _text(value) + b"\r\n" for name, value in fields])


def _text(text: str) -> bytes:
    # A line break in a field cannot have been in a message: it would be another field for the reader.
    return text.encode("utf-8", "backslashreplace").replace(b"\r", b" ").replace(b"\n", b" ")


def settings() -> bytes:
    """An empty SETTINGS frame, with which each end begins."""
    return _frame(_SETTINGS, 0, 0, b"")


def http2_headers(stream_id: int, pseudo: Fields, fields: Fields, *, last: bool) -> bytes:
    """HEADERS and, where the block is long, CONTINUATION frames; ``last``: no body or trailers follow."""
    block = b"".join([_literal(name, value) for name, value in [*pseudo, *fields]])
    pieces = [block[at : at + MAX_FRAME] for at in range(0, len(block), MAX_FRAME)] or [b""]
    frames = []
    for number, piece in enumerate(pieces):
        flags = _END_HEADERS if number == len(pieces) - 1 else 0
        if number == 0 and last:
            flags |= _END_STREAM
        frames.append(_frame(_CONTINUATION if number else _HEADERS, flags, stream_id, piece))
    return b"".join(frames)


def http2_data(stream_id: int, data: bytes, *, last: bool) -> bytes:
    """DATA frames."""
    frames = []
    for at in range(0, len(data), MAX_FRAME):
        flags = _END_STREAM if last and at + MAX_FRAME >= len(data) else 0
        frames.append(_frame(_DATA, flags, stream_id, data[at : at + MAX_FRAME]))
    return b"".join(frames)


def http2_body(stream_id: int, message: Message) -> bytes:
    """DATA frames, then the trailers."""
    data = http2_data(stream_id, message.body, last=not message.trailers)
    if message.trailers:
        data += http2_headers(stream_id, [], message.trailers, last=True)
    return data


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big")
        + bytes((kind, flags))
        + (stream_id & 0x7FFFFFFF).to_bytes(4, "big")
        + payload
    )


def _literal(name: str, value: str) -> bytes:
    """Literal header field without indexing, new name, no Huffman coding (RFC 7541, 6.2.2)."""
    return b"\0" + _string(_text(name.lower())) + _string(_text(value))


def _string(data: bytes) -> bytes:
    """A string literal: its length as an integer with a 7-bit prefix (RFC 7541, 5.1 and 5.2)."""
    rest = len(data)
    if rest < 127:
        return bytes((rest,)) + data
    length = bytearray((127,))
    rest -= 127
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + data


def websocket(message: pb.Message, *, from_opener: bool) -> bytes:
    """A message as one final frame, without compression; an opener's is masked, with the key 0."""
    opcode = _OPCODES.get(message.type, 2)
    data = message.data
    mask = 0x80 if from_opener else 0
    if len(data) < 126:
        head = bytes((0x80 | opcode, mask | len(data)))
    elif len(data) < 1 << 16:
        head = bytes((0x80 | opcode, mask | 126)) + len(data).to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, mask | 127)) + len(data).to_bytes(8, "big")
    return head + (bytes(4) if mask else b"") + data
