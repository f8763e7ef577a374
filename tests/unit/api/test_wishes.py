"""What a request becomes, and what is refused (the refusals over gRPC are in test_service)."""

from __future__ import annotations

import pytest

from spliffd.api import wishes
from spliffd.pb import spliff_pb2 as pb

MAXIMUM = 64 << 20


@pytest.mark.parametrize(
    ("asked", "maximum", "given"),
    [
        (0, MAXIMUM, 16 << 20),
        (1, MAXIMUM, 256 << 10),
        (1 << 20, MAXIMUM, 1 << 20),
        (1 << 40, MAXIMUM, MAXIMUM),
        (0, 1 << 20, 1 << 20),
    ],
)
def test_the_queue_is_bounded_whatever_is_asked_for(asked, maximum, given):
    assert wishes.read(pb.WatchRequest(queue_bytes=asked), maximum).queue_bytes == given


def test_a_limit_without_bodies_means_nothing():
    found = wishes.read(pb.WatchRequest(body_limit=5), MAXIMUM)

    assert (found.bodies, found.body_limit) == (False, 0)


@pytest.mark.parametrize("request_", [pb.WatchRequest(), pb.WatchRequest(filter=pb.Filter())])
def test_without_conditions_nothing_is_evaluated(request_):
    assert wishes.read(request_, MAXIMUM).filter is None


def test_following_is_the_default_and_may_be_said():
    assert wishes.read(pb.WatchRequest(follow=True), MAXIMUM) == wishes.read(pb.WatchRequest(), MAXIMUM)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (pb.WatchRequest(filter=pb.Filter(expression="a")), "filter.expression, column 1"),
        (pb.WatchRequest(filter=pb.Filter(containers=["a"])), "filter.containers"),
        (pb.WatchRequest(fields=["request.pathh"]), "'request.pathh' is no field"),
        (pb.WatchRequest(fields=["request.headers.name"]), "ask for request.headers"),
        (pb.WatchRequest(fields=["protocol.x"]), "'protocol.x' is no field"),
        (pb.WatchRequest(fields=["id"] * 129), "at most 128"),
        (pb.WatchRequest(after_id=1, last=2), "leave since_time_ns and last away"),
        (pb.WatchRequest(after_epoch=1), "after_epoch says what after_id"),
    ],
)
def test_what_cannot_be_meant_is_refused(request_, why):
    with pytest.raises(wishes.WishError, match=why):
        wishes.read(request_, MAXIMUM)


@pytest.mark.parametrize(
    ("request_", "past"),
    [
        (pb.WatchRequest(), None),
        (pb.WatchRequest(last=5), wishes.Past(last=5)),
        (pb.WatchRequest(follow=False), wishes.Past(follow=False)),
        (pb.WatchRequest(after_id=0), wishes.Past(after_id=0)),
        (pb.WatchRequest(after_id=7, after_epoch=3), wishes.Past(after_id=7, after_epoch=3)),
        (pb.WatchRequest(since_time_ns=9, last=2), wishes.Past(since_ns=9, last=2)),
    ],
)
def test_history_is_asked_only_when_something_of_it_is_wanted(request_, past):
    assert wishes.read(request_, MAXIMUM).past == past


@pytest.mark.parametrize(
    ("fields", "bodies"), [(["request.path"], False), (["request.body"], True), (["response"], True)]
)
def test_bodies_that_no_field_holds_are_not_asked_for(fields, bodies):
    assert wishes.read(pb.WatchRequest(bodies=True, fields=fields), MAXIMUM).bodies is bodies
