"""Whose connections the kernel is told to deliver: never fewer than the filters let through."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd import ipc
from spliffd.api import whom
from spliffd.api.filter import Filter
from spliffd.attribution.processes import owners
from spliffd.pb import spliff_pb2 as pb
from spliffd.stages.judgements import matcher

ID = "5f" * 32


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (pb.Filter(), None),
        (pb.Filter(pids=[7, 9]), ipc.Whom(pids=[7, 9])),
        (pb.Filter(comms=["nginx"]), ipc.Whom(comms=["nginx"])),
        (pb.Filter(comms=["nginx", "py*"]), None),
        (pb.Filter(comms=["a-name-of-16-byt"]), None),
        (pb.Filter(users=["33"]), ipc.Whom(uids=[33])),
        (pb.Filter(users=["33", "www-data"]), None),
        (pb.Filter(pids=[7], comms=["n*"], hosts=["x"]), ipc.Whom(pids=[7])),
        (pb.Filter(pids=[7], ppids=[1]), None),
        (pb.Filter(hosts=["x"], paths=["/y"], units=["z"]), ipc.Whom(units=["z"])),
        (pb.Filter(units=["z", "*"]), None),
        (pb.Filter(units=["z*"], containers=["5F5F5F"]), ipc.Whom(containers=["5f5f5f"])),
        (pb.Filter(pids=[7], units=["z"]), ipc.Whom(pids=[7])),
        (pb.Filter(ppids=[7], units=["z"]), None),
        (pb.Filter(hosts=["x"], paths=["/y"]), None),
    ],
)
def test_one_condition_that_the_kernel_can_decide(asked: pb.Filter, told: ipc.Whom | None):
    assert whom.of(asked) == told


def test_watchers_together():
    assert whom.union([]) is None
    assert whom.union([ipc.Whom(pids=[9, 7]), ipc.Whom(pids=[7], comms=["curl"]), ipc.Whom(uids=[0])]) == (
        ipc.Whom(pids=[7, 9], uids=[0], comms=["curl"])
    )
    assert whom.union([ipc.Whom(pids=[9]), None]) is None
    assert whom.union([ipc.Whom(pids=list(range(whom.MAX_WHOM + 1)))]) is None


filters = st.builds(
    pb.Filter,
    pids=st.lists(st.integers(1, 3), max_size=2),
    comms=st.lists(st.sampled_from(["a", "b", "a*", "[ab]"]), max_size=2),
    users=st.lists(st.sampled_from(["0", "1", "root"]), max_size=2),
    ppids=st.lists(st.integers(1, 3), max_size=1),
    paths=st.lists(st.just("/x"), max_size=1),
    units=st.lists(st.sampled_from(["a.service", "b*", "*"]), max_size=2),
    containers=st.lists(st.sampled_from([ID[:12], ID[:12].upper(), "cd" * 6]), max_size=1),
)
cgroups = st.sampled_from(["/", "/a.service", "/x.slice/b.service", f"/docker-{ID}.scope", "/a.service/leaf"])


@settings(max_examples=1000)
@given(
    st.lists(filters, min_size=1, max_size=3),
    st.integers(1, 3), st.integers(0, 1), st.sampled_from("ab"), st.sampled_from(["", "root"]), st.integers(0, 3),
    cgroups,
)  # fmt: skip
def test_who_matches_a_filter_is_among_them(asked, pid, uid, comm, user, ppid, cgroup):
    told = whom.union([whom.of(one) for one in asked])
    unit, container = owners(cgroup)
    summary = ipc.Summary(
        pid, ppid, uid, comm, "", user, unit, container, "openssl", 1, 2, "", "", [], "http1", "", "/x", "GET",
        200,
    )  # fmt: skip
    matches = any(Filter(one).match(summary) for one in asked)
    kept = (
        told is None
        or pid in told.pids
        or uid in told.uids
        or comm in told.comms
        or matcher(told.units, told.containers)(cgroup)
    )

    assert kept or not matches
