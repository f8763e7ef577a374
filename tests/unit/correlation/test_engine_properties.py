"""Any bytes as records, any order of records: no exception, and the books balance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from wire_records import BEGAN, Stage, Tls, get, ok

from spliffd.correlation import connection as connections
from spliffd.kernel import records


@given(st.lists(st.binary(min_size=records.HEADER_BYTES, max_size=records.HEADER_BYTES + 200), max_size=8))
def test_any_bytes_as_records(blobs):
    stage = Stage()
    stage.engine.wants_chunks = True
    stage.handle(*blobs)
    stage.engine.close_all(1)
    assert stage.engine.connections == {}


kinds = st.integers(0, 8)
pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [get("/a"), ok(b"x"), get("/a") * 3, b"HTTP/1.1 ", b"G", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n"]
    ),
)
steps = st.tuples(st.integers(0, 2), kinds, st.integers(0, 1), pieces, st.integers(0, 300), st.integers(0, 3))


@settings(max_examples=200)
@given(st.lists(steps, max_size=25))
def test_any_order_of_any_records(steps_):
    """Three TLS objects, records of any kind with losses between them: no exception, and the books balance."""
    stage = Stage()
    stage.engine.wants_chunks = True
    objects = [Tls(n % 2, generation=BEGAN + n - 1, method=n) for n in range(3)]
    for which, kind, direction, payload, lost, method in steps_:
        tls = objects[which]
        tls.lose(direction, lost)
        tls.conn["method"] = method
        stage.handle(tls.record(kind, direction, payload, size=len(payload) + lost % 7))
    assert len(stage.engine.connections) <= 3
    stage.engine.close_all(1)
    assert stage.count("connections_opened") == stage.count("connections_closed")
    shown = sum(v for k, v in stage.counters.values().items() if k.startswith("exchanges/"))
    assert shown == len(stage.told.exchanges)
    assert stage.engine.connections == stage.engine._objects == stage.engine._processes == {}


def test_nothing_is_kept_beyond_its_bound():
    stage, tls = Stage(), Tls()
    for _ in range(100):
        stage.handle(tls.sent(b"G"))
    (connection,) = stage.engine.connections.values()
    assert sum(map(len, connection.pending)) < connections.UNDECIDED_BYTES
