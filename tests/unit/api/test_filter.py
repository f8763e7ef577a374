"""Filters against a naive evaluation, and the refusals."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from api_harness import summary
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.api import filter as filters
from spliffd.api.filter import Filter, FilterError, host_of
from spliffd.ipc import Summary
from spliffd.pb import spliff_pb2 as pb

WORDS = ["curl", "nginx", "python3", "a*", "", "c?rl", "*n*", "[cn]*"]
HOSTS = ["api.example.com", "API.example.com:443", "[::1]:8443", "*.example.com", "::1", "192.0.2.1", "10.*"]
PATHS = ["/", "/users?id=1", "/users*", "*", "/[ab]", "/\n"]
CONTAINERS = ["abcdef012345", "abcdef", "abcdee"]

values = st.builds(
    Summary,
    pid=st.integers(1, 5),
    ppid=st.integers(1, 5),
    uid=st.sampled_from([0, 33, 1000]),
    comm=st.sampled_from(WORDS),
    exe=st.sampled_from(WORDS),
    user=st.sampled_from(["root", "www-data", "33", ""]),
    unit=st.sampled_from(WORDS),
    container=st.sampled_from([*CONTAINERS, ""]),
    library=st.sampled_from(["openssl", "go", ""]),
    protocol=st.sampled_from(["http1", "http2", ""]),
    local_port=st.sampled_from([443, 8443, 50000]),
    remote_port=st.sampled_from([443, 8443, 50000]),
    remote_address=st.sampled_from(["192.0.2.1", "::1", "10.1.2.3", ""]),
    sni=st.sampled_from(["api.example.com", "", "API.EXAMPLE.com"]),
    authority=st.sampled_from([*HOSTS, "", "user@api.example.com:1"]),
    path=st.sampled_from(PATHS),
    method=st.sampled_from(["GET", "get", "POST", ""]),
    status=st.sampled_from([0, 101, 200, 299, 404, 500]),
)


def some(choices):
    return st.lists(st.sampled_from(choices), max_size=3)


requests = st.builds(
    pb.Filter,
    pids=some([1, 2, 3]),
    comms=some(WORDS),
    exes=some(WORDS),
    users=some(["root", "33", "0", "nobody"]),
    units=some(WORDS),
    containers=some(CONTAINERS),
    hosts=some(HOSTS),
    paths=some(PATHS),
    methods=some(["GET", "post", "PUT"]),
    statuses=some([pb.StatusRange(first=200, last=299), pb.StatusRange(first=404, last=404)]),
    protocols=some(["http1", "grpc"]),
    libraries=some(["openssl", "nss"]),
    ports=some([443, 80]),
)


def naive(f: pb.Filter, s: Summary, *, process_only=False, early=False) -> bool:
    def glob(text, patterns):
        return any(fnmatchcase(text, pattern) for pattern in patterns)

    authority = s.authority.split("@")[-1]
    if authority.startswith("["):
        authority = authority[1 : authority.index("]")]
    elif authority.count(":") == 1:
        authority = authority.split(":")[0]
    names = [name.lower() for name in (authority, s.sni, s.remote_address) if name]
    process = [
        (f.pids, s.pid in f.pids),
        (f.comms, glob(s.comm, f.comms)),
        (f.exes, glob(s.exe, f.exes)),
        (f.users, s.user in f.users or str(s.uid) in f.users),
        (f.units, glob(s.unit, f.units)),
        (f.containers, any(s.container.startswith(c) for c in f.containers)),
        (f.libraries, s.library in f.libraries),
        (f.ports, s.local_port in f.ports or s.remote_port in f.ports),
        (f.hosts, any(glob(name, [host.lower() for host in f.hosts]) for name in names)),
    ]
    exchange = [
        (f.paths, glob(s.path, f.paths)),
        (f.methods, s.method.lower() in [m.lower() for m in f.methods]),
        (f.protocols, s.protocol in f.protocols),
    ]
    status = [(f.statuses, any(r.first <= s.status <= r.last for r in f.statuses))]
    conditions = process if process_only else process + exchange + ([] if early else status)
    return all(holds for wanted, holds in conditions if wanted)


@settings(max_examples=500)
@given(requests, st.lists(values, min_size=1, max_size=5))
def test_a_filter_agrees_with_the_naive_evaluation(request, summaries):
    compiled = Filter(request)

    for one in summaries:
        assert compiled.match(one) == naive(request, one)
        assert compiled.match_early(one) == naive(request, one, early=True)
        assert compiled.match_connection(one) == naive(request, one, process_only=True)


def test_an_empty_filter_matches_everything():
    assert Filter(pb.Filter()).match(summary())


def test_descendants_join_the_wanted_parents():
    shell, make, curl, other = 10, 11, 12, 13
    match = Filter(pb.Filter(ppids=[shell])).match

    assert not match(summary(pid=curl, ppid=make))
    assert match(summary(pid=make, ppid=shell))
    assert match(summary(pid=curl, ppid=make))
    assert not match(summary(pid=other, ppid=1))
    # The parent has ended and init took over its child: it is a descendant still.
    assert match(summary(pid=curl, ppid=1))
    # The wanted parent itself is not its own child.
    assert not match(summary(pid=shell, ppid=1))


def test_a_process_in_between_need_not_speak():
    shell, make, curl = 10, 11, 12
    match = Filter(pb.Filter(ppids=[shell])).match

    assert match(summary(pid=curl, ppid=make, ancestors=[make, shell, 1]))
    assert match(summary(pid=curl, ppid=1))  # all above it have ended
    assert not match(summary(pid=13, ppid=make, ancestors=[make, 1]))
    assert not match(summary(pid=shell, ppid=1, ancestors=[1]))


def test_descendants_are_learned_whatever_else_the_filter_says():
    match = Filter(pb.Filter(ppids=[10], comms=["curl"])).match

    assert not match(summary(pid=11, ppid=10, comm="make"))
    assert match(summary(pid=12, ppid=11, comm="curl"))


def test_a_full_set_of_descendants_counts_whom_it_refuses(monkeypatch):
    monkeypatch.setattr(filters, "MAX_DESCENDANTS", 1)
    compiled = Filter(pb.Filter(ppids=[10]))

    assert compiled.match(summary(pid=11, ppid=10))
    assert compiled.match(summary(pid=12, ppid=10))
    assert compiled.descendants.refused == 1
    assert not compiled.match(summary(pid=13, ppid=12))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pb.Filter(containers=["abcde"]), "filter.containers: 'abcde' has 5 characters; give 6 to 64"),
        (pb.Filter(comms=["x" * 257]), "filter.comms: a pattern of 257 characters; at most 256"),
        (pb.Filter(paths=["*"] * 65), "filter.paths: 65 patterns; at most 64"),
        (pb.Filter(pids=range(1025)), "filter.pids: 1025 values; at most 1024"),
        (pb.Filter(ports=[65536]), "filter.ports: 65536 is no TCP port"),
        (pb.Filter(ports=[0]), "filter.ports: 0 is no TCP port"),
        (pb.Filter(protocols=["http"]), "filter.protocols: 'http' is not known; use one of: http1, http2"),
        (pb.Filter(libraries=["ssl"]), "filter.libraries: 'ssl' is not known; use one of: openssl"),
        (pb.Filter(statuses=[pb.StatusRange(first=404)]), "filter.statuses: 404-0 is no range"),
        (pb.Filter(expression="true && x"), "filter.expression, column 9: an exchange has no field 'x'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_the_field_and_the_remedy(request_, said):
    with pytest.raises(FilterError) as error:
        Filter(request_)

    assert str(error.value).startswith(said)


@pytest.mark.timeout(5)
def test_a_hostile_glob_costs_no_more_than_its_length():
    match = Filter(pb.Filter(paths=["*a" * 127 + "*b"])).match

    assert not match(summary(path="/" + "a" * 65536))


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("example.com", "example.com"),
        ("example.com:8443", "example.com"),
        ("example.com:", "example.com"),
        ("u:p@example.com:1", "example.com"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", ""),
    ],
)
def test_the_host_of_an_authority(authority, host):
    assert host_of(authority) == host
