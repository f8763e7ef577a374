"""HTTP/2 and gRPC through the engine: who speaks first, joins, losses, and what they are counted as."""

from __future__ import annotations

import h2.connection
import pytest
from wire_records import BEGAN, SERVER, Stage, Tls

from spliffd.kernel import records
from spliffd.protocols.messages import COMPLETE
from tests.unit.protocols.websocket_transcripts import Peer

GET = [(":method", "GET"), (":scheme", "https"), (":authority", "api.example.com")]
OK = [(":status", "200"), ("content-type", "text/plain")]
CALL = [
    (":method", "POST"), (":scheme", "https"), (":authority", "api.example.com"),
    (":path", "/shop.v1.Cart/Add"), ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip


class Pair:
    """A client and a server of the h2 library, joined to the records of a TLS object at one end."""

    def __init__(self, tls: Tls) -> None:
        self.tls = tls
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client.initiate_connection()
        self.server.initiate_connection()

    def requests(self) -> bytes:
        data = self.client.data_to_send()
        self.server.receive_data(data)
        return self._record(data, from_client=True)

    def responses(self) -> bytes:
        data = self.server.data_to_send()
        self.client.receive_data(data)
        return self._record(data, from_client=False)

    def _record(self, data: bytes, *, from_client: bool) -> bytes:
        at_client = self.tls.conn["role"] != SERVER
        return self.tls.sent(data) if from_client == at_client else self.tls.received(data)

    def get(self, stream: int, path: str) -> None:
        self.client.send_headers(stream, [*GET, (":path", path), ("x-id", "7")], end_stream=True)

    def answer(self, stream: int, body: bytes) -> None:
        self.server.send_headers(stream, OK)
        self.server.send_data(stream, body, end_stream=True)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize("role", [1, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("first", ["client", "server"])
def test_concurrent_requests_at_either_end(stage, role, first):
    """A server may send its SETTINGS before the client's preface is seen."""
    pair = Pair(Tls(role=role, pid=role))
    opening = (
        [pair.responses(), pair.requests()] if first == "server" else [pair.requests(), pair.responses()]
    )
    for stream in (1, 3, 5):
        pair.get(stream, f"/{stream}")
    asked = pair.requests()
    for stream in (5, 1, 3):
        pair.answer(stream, b"x" * stream)
    stage.handle(*opening, asked, pair.responses())

    assert [one.request.path for one in stage.told.exchanges] == ["/5", "/1", "/3"]
    assert [one.stream_id for one in stage.told.exchanges] == [5, 1, 3]
    assert [one.response.body_size for one in stage.told.exchanges] == [5, 1, 3]
    assert {one.state for one in stage.told.exchanges} == {COMPLETE}
    assert stage.told.protocols == ["http2"] * 3
    assert stage.told.facts[0].role == ("server" if role == SERVER else "client")
    assert stage.count("exchanges/http2/openssl/SOCKET_NESTED/NONE") == 3


def test_the_preface_in_small_pieces(stage):
    pair = Pair(Tls())
    pair.get(1, "/a")
    data = pair.client.data_to_send()
    pair.server.receive_data(data)
    records_ = [pair.tls.sent(data[i : i + 3]) for i in range(0, len(data), 3)]
    pair.answer(1, b"x")
    stage.handle(*records_, pair.responses())
    assert stage.paths() == ["/a"]
    assert stage.states() == [COMPLETE]


def test_grpc_calls_are_counted_apart(stage):
    pair = Pair(Tls())
    pair.client.send_headers(1, CALL)
    pair.client.send_data(1, b"\0\0\0\0\3abc", end_stream=True)
    pair.get(3, "/plain")
    asked = pair.requests()
    pair.server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    pair.server.send_data(1, b"\0\0\0\0\2ok")
    pair.server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    pair.answer(3, b"")
    stage.handle(asked, pair.responses())

    call = next(one.grpc for one in stage.told.exchanges if one.grpc is not None)
    assert (call.service, call.method, call.status) == ("shop.v1.Cart", "Add", 0)
    assert (call.request_messages, call.response_messages) == (1, 1)
    assert stage.count("exchanges/grpc/openssl/SOCKET_NESTED/NONE") == 1
    assert stage.count("exchanges/http2/openssl/SOCKET_NESTED/NONE") == 1


@pytest.mark.parametrize("role", [1, SERVER], ids=["client", "server"])
def test_a_connection_older_than_the_worker_is_read_from_its_next_request(stage, role):
    pair = Pair(Tls(role=role, generation=BEGAN - 500))
    pair.requests(), pair.responses()
    pair.get(1, "/before")
    pair.requests()
    pair.answer(1, b"before")
    pair.responses()  # all this was never seen
    pair.get(3, "/after")
    asked = pair.requests()
    pair.answer(3, b"after")
    stage.handle(asked, pair.responses())

    (exchange,) = stage.told.exchanges
    assert (exchange.request.method, exchange.request.path) == ("GET", "/after")
    assert exchange.response.body_size == 5
    assert stage.told.facts[0].role == ("server" if role == SERVER else "client")


@pytest.mark.parametrize("role", [1, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("middle", [False, True], ids=["at a frame", "in a body"])
def test_a_connection_older_than_the_probes_is_read_from_its_next_request(stage, role, middle):
    """Its TLS object is new to us, its stream offsets begin at 0: only what it says tells its age."""
    before = Pair(Tls(role=role))
    before.get(1, "/before")
    before.requests()
    before.answer(1, b"x")
    before.responses()
    tls = before.tls = Tls(role=role, flags=0)
    if middle:
        stage.handle(tls.received(b"the rest of a body"))
    before.get(3, "/new")
    stage.handle(before.requests())
    before.answer(3, b"yes")
    stage.handle(before.responses())
    (exchange,) = stage.told.exchanges
    assert (exchange.request.path, exchange.response.body_size) == ("/new", 3)
    assert exchange.state == "joined_mid_stream"  # x-id and others are of before


def test_a_websocket_over_http2_becomes_messages(stage):
    """RFC 8441: one stream is a WebSocket, the others go on as ever."""
    stage.engine.wants_chunks = True
    pair = Pair(Tls())
    pair.server.update_settings({8: 1})  # SETTINGS_ENABLE_CONNECT_PROTOCOL
    stage.handle(pair.requests(), pair.responses(), pair.requests())
    ask = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:], (":path", "/chat")]
    pair.client.send_headers(1, ask)
    pair.get(3, "/other")
    stage.handle(pair.requests())
    pair.server.send_headers(1, [(":status", "200"), ("sec-websocket-extensions", "permessage-deflate")])
    pair.answer(3, b"beside it")
    stage.handle(pair.responses())
    client, server = Peer(deflate=True), Peer(server=True, deflate=True)
    up = client.text("hello") + client.binary(b"x" * 1000, 400)
    pair.client.send_data(1, up[:9])
    stage.handle(pair.requests())
    pair.client.send_data(1, up[9:] + client.close(1000))
    pair.server.send_data(1, server.text("hello yourself") + server.close(1000), end_stream=True)
    stage.handle(pair.requests(), pair.responses())
    pair.client.end_stream(1)
    stage.handle(pair.requests())

    told = stage.told.messages
    assert [(m.from_server, m.opcode, m.data[:14]) for m in told] == [
        (False, 1, b"hello"), (False, 2, b"x" * 14), (False, 8, b"\x03\xe8"), (True, 1, b"hello yourself"),
        (True, 8, b"\x03\xe8"),
    ]  # fmt: skip
    assert {message.state for message in told} == {"complete"}
    chat = next(one for one in stage.told.exchanges if one.stream_id == 1)
    assert all(message.exchange is chat for message in told)
    assert (chat.websocket, chat.state, chat.request.path) == (True, "complete", "/chat")
    assert [one.stream_id for one in stage.told.exchanges] == [3, 1]
    assert stage.count("exchanges/websocket/openssl/SOCKET_NESTED/NONE") == 1


@pytest.mark.parametrize("known", [True, False], ids=["in a payload", "of frames"])
def test_a_websocket_over_http2_survives_a_loss(stage, known):
    stage.engine.wants_chunks = True
    pair = Pair(Tls())
    pair.server.update_settings({8: 1})
    stage.handle(pair.requests(), pair.responses(), pair.requests())
    pair.client.send_headers(
        1, [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:], (":path", "/chat")]
    )
    stage.handle(pair.requests())
    pair.server.send_headers(1, [(":status", "200")])
    stage.handle(pair.responses())
    pair.server.send_data(1, Peer(server=True).binary(bytes(range(200)) * 5))
    data = pair.server.data_to_send()
    stage.handle(pair.tls.received(data[:300]))
    pair.tls.lose(1, 100 if known else 2000)
    if known:
        stage.handle(pair.tls.received(data[400:]))
    stage.handle(pair.tls.close())
    (message,) = stage.told.messages
    assert message.state == "gap"
    if known:
        assert (message.missing_bytes, len(message.data)) == (100, 900)


def test_a_loss_costs_the_stream_it_touches(stage):
    pair = Pair(Tls())
    pair.get(1, "/a"), pair.get(3, "/b")
    asked = pair.requests()
    pair.server.send_headers(1, OK)
    pair.server.send_data(1, b"x" * 1000, end_stream=True)
    data = pair.server.data_to_send()
    pair.client.receive_data(data)
    whole, lost = data[:-500], data[-500:]
    stage.handle(asked, pair.tls.received(whole))
    pair.tls.received(lost)  # the ring was full
    pair.answer(3, b"yy")
    stage.handle(pair.responses())
    stage.handle(pair.tls.record(records.CLOSE))

    states = {one.request.path: one.state for one in stage.told.exchanges}
    assert states == {"/a": "gap", "/b": COMPLETE}
    assert stage.count("gap_bytes") == 500


def test_what_is_open_at_the_end_comes_out(stage):
    pair = Pair(Tls())
    pair.get(1, "/never")
    stage.handle(pair.requests())
    stage.handle(pair.tls.record(records.CLOSE))
    assert stage.paths() == ["/never"]
    assert stage.states() != [COMPLETE]


def test_zeros_and_binary_protocols_stay_raw(stage):
    for number, data in enumerate(
        (bytes(64), b"\0\0\0\x10\x0e\0\x04MQTT\0\0\0\0\0", b"\x16\x03\x01" + bytes(40))
    ):
        tls = Tls(ssl=0x100 + number)
        stage.handle(tls.sent(data), tls.received(data))
    assert stage.told.exchanges == []
    assert {one.state for one in stage.engine.connections.values()} == {2}
