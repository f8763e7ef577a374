"""What a frame becomes for watchers with different wishes."""

from __future__ import annotations

import pytest
from api_harness import exchange, summary

from spliffd import ipc
from spliffd.api.delivery import Delivery
from spliffd.pb import spliff_pb2 as pb


def item(entry: bytes) -> pb.Item:
    (found,) = pb.WatchResponse.FromString(entry).items
    return found


def test_an_exchange_gets_its_id_and_no_body_unless_asked_for():
    delivery = Delivery(exchange("/a", request_body=b"question", response_body=b"answer"), 1009)

    found = item(delivery.plain).exchange

    assert (found.id, found.request.path, found.request.body, found.response.body) == (1009, "/a", b"", b"")
    assert found.request.body_size == 8
    assert found.completeness == pb.Completeness(state="complete")


def test_whole_bodies_are_sent_without_a_limit():
    entry, size = Delivery(exchange(request_body=b"question", response_body=b"answer"), 1).with_bodies(0, 0)

    found = item(entry).exchange
    assert (found.request.body, found.response.body, size) == (b"question", b"answer", 14)
    assert found.completeness.body_not_sent == 0


def test_a_limit_cuts_each_body_and_says_so():
    entry, size = Delivery(exchange(request_body=b"question", response_body=b"an"), 1).with_bodies(3, 0)

    found = item(entry).exchange
    assert (found.request.body, found.response.body, size) == (b"que", b"an", 5)
    assert found.completeness.body_not_sent == 5


def test_a_limit_counts_from_the_start_of_the_body_not_of_the_piece():
    # 100 bytes went ahead as parts, of which this watcher got 40 + 0: its limit is 40.
    frame = exchange(response_body=b"x" * 20, response_offset=100)

    found = item(Delivery(frame, 1).with_bodies(40, 40).entry).exchange
    assert found.response.body == b""
    assert found.completeness.body_not_sent == 80

    found = item(Delivery(frame, 1).with_bodies(110, 100).entry).exchange
    assert (found.response.body, found.response.body_offset) == (b"x" * 10, 100)
    assert found.completeness.body_not_sent == 10


def test_what_the_worker_cut_for_everybody_counts_as_not_sent():
    frame = exchange(response_body=b"x" * 10)
    frame.public += pb.Exchange(response=pb.Response(body_size=1000)).SerializeToString()

    assert item(Delivery(frame, 1).with_bodies(10, 0).entry).exchange.completeness.body_not_sent == 990


def test_who_started_late_is_told_of_the_parts_before():
    frame = exchange(response_body=b"end", response_offset=500)

    assert item(Delivery(frame, 1).with_bodies(0, 0).entry).exchange.completeness.body_not_sent == 500


def test_bytes_that_only_went_as_parts_are_known_from_the_message():
    frame = exchange(part_key=9)
    frame.public += pb.Exchange(response=pb.Response(body_size=700)).SerializeToString()

    assert item(Delivery(frame, 1).with_bodies(0, 0).entry).exchange.completeness.body_not_sent == 700
    assert item(Delivery(frame, 1).with_bodies(0, 700).entry).exchange.completeness.body_not_sent == 0


def test_what_capture_missed_is_not_called_unsent():
    frame = exchange(part_key=9)
    frame.public += pb.Exchange(
        response=pb.Response(body_size=700), completeness=pb.Completeness(state="gap", missing_bytes=100)
    ).SerializeToString()

    assert item(Delivery(frame, 1).with_bodies(0, 600).entry).exchange.completeness.body_not_sent == 0


def test_a_message_that_cannot_be_read_is_measured_by_its_bodies():
    frame = exchange(part_key=9, response_body=b"12345")
    frame.public = b"\xff"

    assert Delivery(frame, 1)._known(0) == 5


def test_shed_bodies_are_stated():
    frame = exchange(response_body=b"end", response_offset=500, request_body=b"1234")

    found = item(Delivery(frame, 7).without_bodies(100)).exchange
    assert (found.id, found.response.body, found.completeness.body_not_sent) == (7, b"", 407)


def test_watchers_with_the_same_wishes_share_the_bytes():
    delivery = Delivery(exchange(response_body=b"answer"), 1)

    assert delivery.with_bodies(3, 0).entry is delivery.with_bodies(3, 0).entry
    assert delivery.plain is delivery.plain


@pytest.mark.parametrize("response", [False, True])
def test_a_part_is_cut_at_the_limit(response):
    half = "response" if response else "request"
    frame = ipc.Frame(
        kind=ipc.BODY_PART,
        part_key=3,
        summary=ipc.encode(summary()),
        public=b"",
        **{f"{half}_body": b"0123456789", f"{half}_offset": 90},
    )

    entry, size = Delivery(frame).with_bodies(95, 0)

    assert item(entry).body_part == pb.BodyPart(part_key=3, response=response, offset=90, data=b"01234")
    assert size == 5
    assert Delivery(frame).with_bodies(90, 0).body_bytes == 0


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("kind", "name"), [(ipc.CHUNK, "chunk"), (ipc.MESSAGE, "message")])
def test_a_payload_counts_as_a_body(kind, name, inside):
    make = pb.Chunk if kind == ipc.CHUNK else pb.Message
    message = make(direction="sent", time_ns=5, data=b"payload" if inside else b"")
    frame = ipc.Frame(
        kind=kind,
        part_key=0,
        summary=ipc.encode(summary()),
        public=message.SerializeToString(),
        request_body=b"" if inside else b"payload",
    )

    delivery = Delivery(frame)

    assert getattr(item(delivery.plain), name) == make(direction="sent", time_ns=5)
    assert getattr(item(delivery.with_bodies(0, 0).entry), name).data == b"payload"
    assert getattr(item(delivery.with_bodies(3, 0).entry), name).data == b"pay"


def test_a_frame_without_a_summary_is_refused():
    with pytest.raises(ValueError, match="without a summary"):
        Delivery(ipc.Frame(kind=ipc.EXCHANGE, part_key=0, summary=b"", public=b""))


def test_secrets_leave_for_those_who_may_see_them_only():
    frame = exchange("/a", request_body=b"p=*abc*", response_body=b"x")
    frame.secret = pb.Exchange(revealed=[pb.Revealed(value="hunter2")]).SerializeToString()
    frame.secret_request_body = b"p=hunt2"
    delivery = Delivery(frame, 1)

    for entry in (delivery.plain, delivery.bare(reveal=False), delivery.without_bodies(0)):
        assert b"hunt" not in entry
    assert b"hunt" not in delivery.with_bodies(0, 0).entry
    assert item(delivery.bare(reveal=True)).exchange.revealed[0].value == "hunter2"
    assert item(delivery.without_bodies(0, reveal=True)).exchange.revealed[0].value == "hunter2"
    found = item(delivery.with_bodies(0, 0, reveal=True).entry).exchange
    assert (found.request.body, found.response.body) == (b"p=hunt2", b"x")
    assert found.revealed[0].value == "hunter2"
    assert b"hunt" not in delivery.with_bodies(0, 0).entry


def test_a_part_that_only_some_may_see():
    frame = exchange("/a", kind=ipc.BODY_PART, part_key=7, secret_response_body=b"hunter2")
    delivery = Delivery(frame)

    assert delivery.with_bodies(0, 0).body_bytes == 0
    part = item(delivery.with_bodies(4, 0, reveal=True).entry).body_part
    assert (part.response, part.data) == (True, b"hunt")


def test_bytes_that_are_withheld_from_everybody_are_stated():
    frame = exchange("/a")
    frame.withheld = 99

    assert item(Delivery(frame, 1).with_bodies(0, 0).entry).exchange.completeness.body_not_sent == 99


def test_the_payload_of_a_chunk_that_only_some_may_see():
    frame = ipc.Frame(
        kind=ipc.CHUNK,
        part_key=0,
        summary=ipc.encode(summary()),
        public=pb.Chunk(size=7).SerializeToString(),
        secret=pb.Chunk(data=b"hunter2").SerializeToString(),
    )
    delivery = Delivery(frame)

    assert not delivery.has_body(reveal=False)
    assert delivery.has_body(reveal=True)
    assert item(delivery.with_bodies(0, 0).entry).chunk == pb.Chunk(size=7)
    assert item(delivery.with_bodies(4, 0, reveal=True).entry).chunk == pb.Chunk(size=7, data=b"hunt")


def test_an_exchange_under_way_is_wrapped_and_secrets_join_it_where_they_may():
    frame = exchange("/a", kind=ipc.PROGRESS, part_key=7)
    frame.public = pb.Exchange(protocol="http1", part_key=7).SerializeToString()
    frame.secret = pb.Exchange(revealed=[pb.Revealed(value="hunter2")]).SerializeToString()
    delivery = Delivery(frame)

    assert item(delivery.plain).progress.exchange == pb.Exchange(protocol="http1", part_key=7)
    assert item(delivery.with_bodies(0, 0).entry).progress.exchange.protocol == "http1"
    found = item(delivery.with_bodies(0, 0, reveal=True).entry).progress.exchange
    assert (found.protocol, found.revealed[0].value) == ("http1", "hunter2")
