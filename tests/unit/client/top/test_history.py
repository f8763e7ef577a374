"""What is remembered is bounded in number and bytes, and numbers stay those of the watch."""

from __future__ import annotations

from spliffctl.top.history import SLACK, History
from spliffd.pb import spliff_pb2 as pb


def test_the_oldest_are_dropped_and_numbers_stay(build):
    history = History(max_rows=100)
    for start in range(1, 3001, 50):
        history.take(
            pb.WatchResponse(items=build.items(*(build.exchange(n) for n in range(start, start + 50))))
        )
    window = history.live()
    assert history.total == window.end == 3000
    assert 100 <= len(window.rows) <= 100 + SLACK
    assert window.row(2999).exchange.id == 3000
    assert window.row(0) is None
    assert window.row(3000) is None


def test_bodies_are_bounded(build):
    history = History(max_rows=10_000, max_bytes=1 << 20)
    for number in range(3000):
        exchange = build.exchange(number)
        exchange.response.body = bytes(1000)
        history.take(pb.WatchResponse(items=build.items(exchange)))
    assert sum(row.bytes for row in history.live().rows) <= 1 << 20
    assert history.total == 3000


def test_a_frozen_window_keeps_what_is_dropped(build):
    history = History(max_rows=10)
    history.take(pb.WatchResponse(items=build.items(build.exchange(1))))
    frozen = history.frozen()
    history.take(pb.WatchResponse(items=build.items(*(build.exchange(n) for n in range(2, SLACK + 20)))))
    assert history.live().row(0) is None
    assert frozen.row(0).exchange.id == 1


def test_parts_are_joined_losses_counted_secrets_put_in_place(build):
    exchange = build.exchange(part_key=3)
    exchange.request.headers.add(name="cookie").masked.CopyFrom(pb.Masked(length=3, hash="x"))
    exchange.revealed.add(header=0, value="a=b")
    exchange.response.body, exchange.response.body_offset = b"lo", 3
    items = build.items(
        pb.BodyPart(part_key=3, response=True, data=b"hel"), pb.BodyPart(part_key=4, data=b"x"),
        pb.Discard(part_keys=[4]), exchange, pb.Loss(count=5), pb.Handshake(),
    )  # fmt: skip
    history = History()
    history.take(pb.WatchResponse(items=[*items, pb.Item()]))
    (row,) = history.live().rows
    assert row.bodies[1].data == b"hello"
    assert row.exchange.request.headers[0].value == "a=b"
    assert history.lost == 5
    history.clear()
    assert (history.total, history.lost) == (0, 0)
