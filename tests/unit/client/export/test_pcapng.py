"""pcapng: tshark reads it and takes the exchanges apart again."""

from __future__ import annotations

import json
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffctl.export import segments
from spliffctl.export.pcapng import Pcapng
from spliffctl.parts import Body
from spliffd.pb import spliff_pb2 as pb

NOTHING = (Body(), Body())
NUMBERED = ("frame.number", "frame.interface_name", "frame.comment", "tcp.stream", "tcp.checksum.status")


def body(data: bytes) -> Body:
    return Body(((0, data),)) if data else Body()


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Kind and content of each block; both lengths of a block have to agree."""
    found = []
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, length - 4) == (length,)
        found.append((kind, data[8 : length - 4]))
        data = data[length:]
    return found


@pytest.fixture
def dissect(tmp_path):
    """What tshark finds: one dictionary of fields a packet that matches."""

    def run(data: bytes, what: str, *fields: str) -> list[dict]:
        path = tmp_path / "capture.pcapng"
        path.write_bytes(data)
        command = ["tshark", "-n", "-r", path, "-d", "tcp.port==443,http", "-Y", what, "-T", "json"]
        command += ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
        for field in (*fields, *NUMBERED):
            command += ["-e", field]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]

    return run


def whole(form: Pcapng, *pieces: bytes) -> bytes:
    """A file of a form whose ``head`` was called for the first piece."""
    return b"".join(pieces) + form.end() + form.tail()


def http1(build, number: int, path: str, **changes) -> pb.Exchange:
    return build.exchange(
        number, protocol="http1", stream_id=0, request__path=path, request__version="1.1",
        response__version="1.1", response__reason="OK", **changes,
    )  # fmt: skip


def test_http1_on_one_connection(build, dissect):
    form = Pcapng()
    first, second = http1(build, 1, "/one", request__body_size=3), http1(build, 2, "/two")
    first.request.method = "POST"
    first.request.headers.add(name="Content-Length", value="3")
    first.response.headers.add(name="Content-Length", value="5")
    first.response.body_size = 5
    second.response.headers.add(name="Transfer-Encoding", value="chunked")
    second.response.body_size = 6
    data = whole(
        form, form.head(), form.exchange(first, (body(b"abc"), body(b"hello"))),
        form.exchange(second, (Body(), body(b"chunks"))),
    )  # fmt: skip
    packets = dissect(
        data, "http", "http.request.method", "http.request.uri", "http.response.code", "http.file_data",
        "ip.src", "ip.dst", "tcp.srcport", "tcp.dstport", "frame.time_epoch",
    )  # fmt: skip
    asked = [p for p in packets if "http.request.uri" in p]
    answered = [p for p in packets if "http.response.code" in p]
    assert [(p["http.request.method"], p["http.request.uri"]) for p in asked] == [
        (["POST"], ["/one"]),
        (["GET"], ["/two"]),
    ]
    assert [p["http.file_data"] for p in answered] == [["hello"], ["chunks"]]
    assert (asked[0]["ip.src"], asked[0]["ip.dst"]) == (["192.0.2.10"], ["198.51.100.25"])
    assert (asked[0]["tcp.srcport"], asked[0]["tcp.dstport"]) == (["48372"], ["443"])
    assert {p["tcp.stream"][0] for p in packets} == {"0"}
    assert {p["frame.interface_name"][0] for p in packets} == {"eth0"}
    assert asked[1]["frame.time_epoch"] == ["1795348859.346000000"]
    assert asked[1]["frame.comment"] == ["spliff: exchange 2: curl (403410), SOCKET_NESTED, xdp:eth0"]


def test_the_process_is_named_where_a_connection_begins(build, dissect):
    form = Pcapng()
    exchange = http1(build, 1, "/", process__unit="api.service", process__comm="cu\x1brl")
    (packet,) = dissect(
        whole(form, form.head(), form.exchange(exchange, NOTHING)), "tcp.flags.syn==1 && tcp.flags.ack==0"
    )
    assert packet["frame.comment"] == ['spliff: "cu\\x1brl" (403410), /usr/bin/curl, unit api.service']


def test_the_whole_stream_is_sound(build, dissect):
    """Checksums right, no packet that TCP analysis would call lost, out of order or repeated."""
    form = Pcapng()
    exchange = http1(build, 1, "/large", response__body_size=50_001)
    exchange.response.headers.add(name="Content-Length", value="50001")
    exchange.connection.local.address = exchange.connection.remote.address = "2001:db8::1"
    data = whole(form, form.head(), form.exchange(exchange, (Body(), body(b"x" * 50_001))))
    packets = dissect(data, "tcp", "tcp.analysis.flags", "http.content_length")
    assert len(packets) == 3 + 1 + 1 + 4
    assert {p["tcp.checksum.status"][0] for p in packets} == {"1"}
    assert not [p for p in packets if "tcp.analysis.flags" in p]
    assert packets[-1]["http.content_length"] == ["50001"]


def test_http2_streams_finished_in_another_order(build, dissect):
    form = Pcapng()
    pieces = [form.head()]
    for number in (3, 1, 5):
        exchange = build.exchange(number, stream_id=number, request__path=f"/stream/{number}")
        exchange.request.headers.add(name="X-Long", value="v" * 20_000)
        exchange.response.headers.add(name="content-type", value="text/plain")
        exchange.response.headers.add(name="grpc-status", value="0")
        exchange.response.trailer_start = 1
        pieces.append(form.exchange(exchange, (Body(), body(b"body of %d" % number))))
    packets = dissect(
        whole(form, *pieces), "http2", "http2.streamid", "http2.headers.path", "http2.headers.status",
        "http2.data.data", "http2.header.value", "http2.headers.authority",
    )  # fmt: skip
    paths = [p["http2.headers.path"][0] for p in packets if "http2.headers.path" in p]
    assert paths == ["/stream/3", "/stream/1", "/stream/5"]
    assert [p["http2.headers.status"] for p in packets if "http2.headers.status" in p] == [["200"]] * 3
    bodies = [bytes.fromhex(p["http2.data.data"][0]) for p in packets if "http2.data.data" in p]
    assert bodies == [b"body of 3", b"body of 1", b"body of 5"]
    assert packets[-1]["http2.header.value"] == ["0"], "the trailer"


def test_a_websocket(build, dissect):
    form = Pcapng()
    exchange = http1(build, 1, "/socket", response__status=101, part_key=9)
    for message in (exchange.request, exchange.response):
        message.headers.add(name="Connection", value="Upgrade")
        message.headers.add(name="Upgrade", value="websocket")
    exchange.response.body_size = 0
    said = [
        pb.Message(
            time_ns=build.noon + 60 * 10**9, connection=exchange.connection, direction=direction,
            type="text", data=data,
        )
        for direction, data in (("sent", b"ping you"), ("received", b"y" * 70_000), ("sent", b"z" * 200))
    ]  # fmt: skip
    data = whole(form, form.head(), form.exchange(exchange, NOTHING), *map(form.message, said))
    packets = dissect(data, "websocket", "websocket.payload.text", "websocket.mask", "tcp.srcport")
    assert [p["websocket.payload.text"][0] for p in packets] == ["ping you", "y" * 70_000, "z" * 200]
    assert [p["websocket.mask"][0] for p in packets] == ["1", "0", "1"]


def test_a_websocket_within_http2_stays_in_its_stream(build, dissect):
    form = Pcapng()
    exchange = build.exchange(1, protocol="websocket", part_key=9, request__method="CONNECT", stream_id=5)
    exchange.response.body_size = 0
    message = pb.Message(time_ns=build.noon, connection=exchange.connection, direction="sent", type="text")
    message.exchange_part_key = 9
    pieces = [form.head(), form.exchange(exchange, NOTHING), form.message(message)]
    stray = pb.Message(connection=exchange.connection, exchange_part_key=77)
    assert form.message(stray) == b""
    packets = dissect(whole(form, *pieces), "http2.type==0", "http2.streamid", "http2.length")
    assert [(p["http2.streamid"], p["http2.length"]) for p in packets] == [(["5"], ["6"])]
    assert form.left_out() == {"WebSocket message": 1}


def test_chunks_leave_a_gap_where_bytes_are_missing(build, dissect):
    form = Pcapng()
    connection = build.exchange().connection
    connection.remote.port = 5432
    said = [
        pb.Chunk(time_ns=build.noon, connection=connection, direction="sent", offset=at, data=b"abcd", size=4)
        for at in (0, 4, 108)
    ]
    packets = dissect(whole(form, form.head(), *map(form.chunk, said)), "tcp.len>0", "tcp.seq", "tcp.payload")
    assert [p["tcp.seq"] for p in packets] == [["1"], ["5"], ["109"]]
    assert {p["tcp.payload"][0] for p in packets} == {"61626364"}


def test_a_body_that_is_cut_still_ends_where_its_header_says(build, dissect):
    form = Pcapng()
    first = http1(build, 1, "/cut", response__body_size=9000)
    first.response.headers.add(name="Content-Length", value="9000")
    data = whole(
        form, form.head(), form.exchange(first, (Body(), body(b"only this"))),
        form.exchange(http1(build, 2, "/next"), NOTHING),
    )  # fmt: skip
    packets = dissect(data, "http", "http.request.uri", "http.file_data")
    assert [p["http.request.uri"][0] for p in packets if "http.request.uri" in p] == ["/cut", "/next"]
    assert next(p["http.file_data"] for p in packets if "http.file_data" in p) == ["only this"]
    assert "response's body has 9 of 9000 bytes" in packets[0]["frame.comment"][0]


def test_unknown_addresses_are_told_apart_and_are_nobodys(build, dissect):
    form = Pcapng()
    pieces = [form.head()]
    for number in (1, 2):
        exchange = http1(build, number, f"/{number}")
        exchange.connection.Clear()
        pieces.append(form.exchange(exchange, NOTHING))
    packets = dissect(whole(form, *pieces), "http.request", "ip.src", "http.request.uri")
    assert [(p["ip.src"], p["http.request.uri"]) for p in packets] == [
        (["0.0.0.1"], ["/1"]),
        (["0.0.0.2"], ["/2"]),
    ]


def test_losses_are_in_the_statistics_of_the_file(dissect):
    form = Pcapng()
    head = form.head()
    for count in (3, 4):
        assert form.loss(pb.Loss(stage="subscriber", reason="queue_full", count=count)) == b""
    kind, content = blocks(whole(form, head))[-1]
    assert kind == 5
    assert struct.unpack_from("<HHQ", content, 12) == (5, 8, 7)
    assert b"7 lost (subscriber: queue_full)" in content


def test_more_losses_than_the_statistics_can_say_are_as_many_as_they_can(dissect):
    form = Pcapng()
    head = form.head()
    for reason in ("queue_full", "body_shed"):
        form.loss(pb.Loss(stage="subscriber", reason=reason, count=(1 << 64) - 1))
    data = whole(form, head)
    assert struct.unpack_from("<HHQ", blocks(data)[-1][1], 12) == (5, 8, (1 << 64) - 1)
    assert dissect(data, "frame") == []  # and tshark reads the file


def test_a_new_file_describes_everything_again(build, dissect):
    form = Pcapng()
    form.head()
    form.exchange(http1(build, 1, "/first file"), NOTHING)
    data = whole(form, form.head(), form.exchange(http1(build, 2, "/second"), NOTHING))
    packets = dissect(data, "http.request", "http.request.uri")
    assert [(p["http.request.uri"], p["frame.interface_name"]) for p in packets] == [(["/second"], ["eth0"])]


def test_streams_are_bounded(build):
    streams = segments.Streams(capacity=3)
    connections = [build.exchange(connection__socket_cookie=n).connection for n in range(1, 6)]
    for connection in connections:
        assert streams.of(connection)[1]
    assert [streams.of(connection)[1] for connection in connections[2:]] == [False] * 3
    assert streams.of(connections[0])[1], "forgotten, so it opens anew"


def test_interfaces_are_bounded(build):
    form = Pcapng()
    data = form.head()
    for number in range(300):
        data += form.exchange(http1(build, number, "/", connection__interface=f"veth{number}"), NOTHING)
    kinds = [kind for kind, _ in blocks(data)]
    assert kinds.count(1) == 257


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_anything_of_the_contract_gives_whole_blocks(build, data):
    form = Pcapng()
    written = form.head()
    kinds = {"exchange": pb.Exchange, "message": pb.Message, "chunk": pb.Chunk, "loss": pb.Loss}
    for kind in data.draw(st.lists(st.sampled_from(list(kinds)), max_size=4)):
        item = data.draw(build.any_message(kinds[kind], st.text(max_size=12)))
        if kind == "exchange":
            parts = st.binary(max_size=40).map(body)
            written += form.exchange(item, (data.draw(parts), data.draw(parts)))
        else:
            written += getattr(form, kind)(item)
    assert blocks(whole(form, written))[0][0] == 0x0A0D0D0A
