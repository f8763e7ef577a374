"""How long the worker rests: seldom woken while nobody watches, never so long that a ring runs over."""

from __future__ import annotations

from spliffd.worker.rests import (
    BUSY_BYTES,
    BUSY_SECONDS,
    LITTLE_SHARE,
    REST_SECONDS,
    UNWATCHED_SECONDS,
    Rests,
)

SIZE = 1 << 20
LITTLE = SIZE // LITTLE_SHARE


def test_whoever_watches_is_served_soon():
    rests = Rests()
    assert [rests.seconds(at, SIZE, watched=True) for at in (0, 7, BUSY_BYTES)] == [REST_SECONDS] * 3


def test_while_much_comes_even_a_watcher_waits_a_little_longer():
    rests = Rests()
    told = [rests.seconds(at, SIZE, watched=True) for at in (BUSY_BYTES, 2 * BUSY_BYTES, 3 * BUSY_BYTES - 1)]
    assert told == [BUSY_SECONDS, BUSY_SECONDS, REST_SECONDS]


def test_unwatched_it_rests_longer_until_much_comes():
    rests = Rests()
    assert rests.seconds(LITTLE - 1, SIZE, watched=False) == UNWATCHED_SECONDS
    assert rests.seconds(2 * LITTLE - 1, SIZE, watched=False) == BUSY_SECONDS
    assert rests.seconds(2 * LITTLE, SIZE, watched=False) == UNWATCHED_SECONDS


def test_a_new_ring_begins_at_its_beginning():
    rests = Rests()
    rests.seconds(LITTLE * 99, SIZE, watched=False)
    assert rests.seconds(7, SIZE, watched=False) == UNWATCHED_SECONDS
