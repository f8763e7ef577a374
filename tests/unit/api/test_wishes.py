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
    ("request_", "unsupported"),
    [
        (pb.WatchRequest(filter=pb.Filter(expression="a")), False),
        (pb.WatchRequest(filter=pb.Filter(containers=["a"])), False),
    ],
)
def test_wrong_and_unsupported_are_told_apart(request_, unsupported):
    with pytest.raises(wishes.WishError) as error:
        wishes.read(request_, MAXIMUM)

    assert error.value.unsupported is unsupported
