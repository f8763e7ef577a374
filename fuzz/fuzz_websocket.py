"""Fuzzes WebSocket: nothing raises, cuts make no difference, the websockets library reads the same.

Run by packaging/fuzz.sh. An input is two bytes of settings and the bytes of one direction; cut at places that
depend on the input, and once more with a gap. The library is the oracle for inputs that it accepts.
"""

from __future__ import annotations

import sys

import atheris
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.protocol import Protocol, Side, State

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd"]):
    from spliffd.protocols.websocket import MAX_KEPT, WebSocket
    from spliffd.protocols.websocket_deflate import Agreed
    from spliffd.protocols.websocket_message import Room, WebSocketMessage


def oracle(data: bytes, *, from_server: bool, deflate: bool) -> list[tuple[int, bytes]] | None:
    """Opcode and payload of every message; None when the library objects to anything."""
    peer = Protocol(Side.CLIENT if from_server else Side.SERVER, state=State.OPEN, max_size=None)
    if deflate:
        peer.extensions = [PerMessageDeflate(False, False, 15, 15)]
    peer.receive_data(data)
    if peer.parser_exc is not None:
        return None
    if deflate and peer.extensions[0].decoder.eof:
        return None  # a final block (RFC 7692, 7.2.3.4): behind it the library inflates nothing any more
    out: list[tuple[int, bytes]] = []
    opcode, payload = 0, b""
    for frame in peer.events_received():
        if frame.opcode >= 8:
            out.append((int(frame.opcode), bytes(frame.data)))
            continue
        opcode, payload = int(frame.opcode) or opcode, payload + bytes(frame.data)
        if frame.fin:
            out.append((opcode, payload))
            opcode, payload = 0, b""
    return out


def read(
    data: bytes, cuts: list[int], *, side: int, deflate: bool, lost: tuple[int, int] = (0, 0)
) -> list[WebSocketMessage]:
    room = Room()
    before = room.left
    socket = WebSocket(Agreed(deflate), room)
    out: list[WebSocketMessage] = []
    at = 0
    for end in [*cuts, len(data)]:
        if lost[1] and at <= lost[0] < end:
            out += socket.feed(side, data[at : lost[0]], at)
            out += socket.gap(side, lost[1], at)
            at = lost[0]
        out += socket.feed(side, data[at:end], at)
        at = end
    out += socket.close(at)
    assert room.left == before
    assert all(len(message.data) <= MAX_KEPT for message in out)
    return out


def facts(messages: list[WebSocketMessage]) -> list[tuple[int, bytes, int, int, str]]:
    """Of what cannot be inflated, zlib gives more or less, as it was cut."""
    broken = [m.compressed and m.state != "complete" for m in messages]
    return [
        (m.opcode, b"" if bad else m.data, 0 if bad else m.size, m.wire_size, m.state)
        for m, bad in zip(messages, broken, strict=True)
    ]


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    side, deflate = data[0] & 1, bool(data[0] & 2)
    step = data[1] or 1
    data = data[2:]
    whole = read(data, [], side=side, deflate=deflate)
    cuts = list(range(step, len(data), step))
    assert facts(whole) == facts(read(data, cuts, side=side, deflate=deflate))
    read(data, cuts, side=side, deflate=deflate, lost=(step % (len(data) + 1), 1 + step % 50))
    expected = oracle(data, from_server=bool(side), deflate=deflate)
    if expected is not None:
        found = [(m.opcode, m.data) for m in whole if m.state == "complete"]
        # The library looks at a header only when its whole frame is there: the last one may still be bad.
        assert found[: len(expected)] == expected, (found, expected)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
