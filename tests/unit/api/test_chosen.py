"""What a filter chooses of exchanges that came together is what it chooses of each alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from api_harness import exchange
from hypothesis import given
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.api import chosen
from spliffd.api.chosen import Chosen
from spliffd.api.filter import Filter
from spliffd.entries import Entries, Writer
from spliffd.pb import spliff_pb2 as pb
from tests.support.batches import add

frames = st.builds(
    exchange,
    st.sampled_from(["/a", "/b"]),
    status=st.sampled_from([0, 200, 503]),
    pid=st.sampled_from([7, 9]),
    ppid=st.sampled_from([1, 7]),
    comm=st.sampled_from(["curl", "nginx"]),
    sni=st.sampled_from(["", "one.example"]),
    authority=st.sampled_from(["", "one.example:443", "two.example"]),
)
filters = st.builds(
    pb.Filter,
    pids=st.sampled_from([[], [7], [7, 9], [8]]),
    ppids=st.sampled_from([[], [7]]),
    comms=st.sampled_from([[], ["nginx"], ["n*"]]),
    hosts=st.sampled_from([[], ["one.example"], ["two.*"]]),
    paths=st.sampled_from([[], ["/a"]]),
    statuses=st.sampled_from([[], [pb.StatusRange(first=500, last=599)]]),
)


def together(made: list[ipc.Frame]) -> Entries:
    writer = Writer()
    for frame in made:
        add(writer, frame)
    return Entries(writer.take(), 1)


@given(st.lists(st.lists(frames, min_size=1, max_size=9), min_size=1, max_size=3), filters)
def test_as_one_by_one(batches, wanted):
    """Also of filters that learn from what they see, and of answers that are remembered."""
    alone, all_together = Filter(wanted), Chosen(Filter(wanted))
    for made in batches:
        expected = [index for index, one in enumerate(made) if alone.match(ipc.summary_of(one.summary))]
        runs = all_together.runs(together(made))
        assert [index for start, end in runs for index in range(start, end)] == expected
        assert all(start < end for start, end in runs)
        assert all(before[1] < behind[0] for before, behind in pairwise(runs))


def test_a_connection_is_asked_about_once(monkeypatch: pytest.MonkeyPatch):
    taken_apart: list[bytes] = []

    def counted(encoded: bytes) -> ipc.Summary:
        taken_apart.append(encoded)
        return summary_of(encoded)

    summary_of = ipc.summary_of
    monkeypatch.setattr(ipc, "summary_of", counted)
    made = [exchange(f"/{number}", comm="nginx", local_port=number % 3) for number in range(100)]
    only = Chosen(Filter(pb.Filter(comms=["nginx"])))
    batches = [together(made) for _ in range(5)]
    taken_apart.clear()

    assert [only.runs(batch) for batch in batches] == [[(0, 100)]] * 5
    assert len(taken_apart) == 3


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chosen, "MOST_REMEMBERED", 10)
    only = Chosen(Filter(pb.Filter(pids=list(range(0, 1000, 2)))))
    for _ in range(3):
        made = [exchange("/", pid=pid) for pid in range(100)]
        assert only.runs(together(made)) == [(pid, pid + 1) for pid in range(0, 100, 2)]
        assert len(only._told) <= 10
