"""From connect to close: each connection in scope has a flow with the kernel's own cookie, and no other has."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator

import pytest

from spliffd.kernel import flows
from tests.support.flow_tracer import FlowTracer, Peer, connected
from tests.support.lab import Lab, wait_for
from tests.support.net import Namespace, Network


@pytest.fixture
def place() -> Iterator[Namespace]:
    with Network("life") as network:
        yield network.namespace()


def closed(tracer: FlowTracer, *peers: Peer) -> None:
    wait_for(
        lambda: all(flow is None or flow.closed_ns for flow in map(tracer.flow, peers)), what="flows closed"
    )
    # The kernel counts a close just after it has stamped the flow.
    wait_for(
        lambda: (
            tracer.counted("sockets_closed")[0]
            >= sum(bool(flow.closed_ns) for flow in tracer.flows().values())
        ),
        30,
        "closes counted",
    )


@pytest.mark.parametrize(
    ("host", "listen", "family"), [("127.0.0.1", "", 4), ("::1", "", 6), ("127.0.0.1", "::", 4)]
)
def test_both_ends_from_open_to_close(lab: Lab, place: Namespace, host: str, listen: str, family: int):
    with FlowTracer(lab, place) as tracer:
        client, server = connected(lab, place, host, listen)
        mine, theirs = tracer.flow(client), tracer.flow(server)
        assert mine is not None
        assert theirs is not None
        assert set(tracer.flows()) == {client.cookie, server.cookie}
        for flow, peer, role in ((mine, client, 1), (theirs, server, 2)):
            assert (flow.role, flow.state, flow.family) == (role, flows.ESTABLISHED, family)
            assert flow.netns_cookie == peer.netns == place.cookie()
            local, port = peer.facts["local"]
            assert flows.address(flow.local, family) == local.removeprefix("::ffff:")
            assert flow.local_port == port
            assert flow.remote_port == peer.facts["remote"][1]
            assert (flow.closed_ns, flow.hops, flow.flags) == (0, (), 0)
        assert mine.tgid == client.pid
        assert tracer.cookies() == 4

        client.does("send 1009")
        server.does("receive 1009").does("send 4001")
        client.does("receive 4001").does("close")
        server.does("close")
        closed(tracer, client, server)
        mine, theirs = tracer.flow(client), tracer.flow(server)
        assert mine is not None
        assert theirs is not None
        # SYN and FIN count as a byte each where the kernel has them acknowledged.
        assert 0 <= mine.tcp_sent - 1009 <= 2
        assert 0 <= theirs.tcp_received - 1009 <= 2
        assert 0 <= theirs.tcp_sent - 4001 <= 2
        assert 0 <= mine.tcp_received - 4001 <= 2
        assert mine.first_ns < mine.closed_ns == mine.last_ns
        wait_for(lambda: tracer.cookies() == 0, 30, "tuples forgotten")
        assert tracer.counted("sockets_active", "sockets_passive", "sockets_closed", "flows_made") == [
            1,
            1,
            2,
            2,
        ]


def test_closed_flows_stay_a_while_and_are_swept(lab: Lab, place: Namespace):
    with FlowTracer(lab, place) as tracer:
        sweeper = flows.Sweeper(tracer.maps.fd["flows"], 100)
        client, server = connected(lab, place, "127.0.0.1")
        staying, other = connected(lab, place, "127.0.0.1")
        client.does("close")
        server.does("close")
        closed(tracer, client, server)

        made, over = tracer.counted("flows_made", "sockets_closed")
        assert sweeper.sweep(made, over, time.monotonic_ns()) == (0, 0)
        assert len(tracer.flows()) == 4
        assert sweeper.sweep(made, over, time.monotonic_ns() + flows.LINGER_NS) == (2, 0)
        assert set(tracer.flows()) == {staying.cookie, other.cookie}


def test_what_the_kernel_evicted_is_found_out(lab: Lab, place: Namespace):
    with FlowTracer(lab, place) as tracer:
        sweeper = flows.Sweeper(tracer.maps.fd["flows"], 100)
        client, server = connected(lab, place, "127.0.0.1")
        flows.bpf.map_delete(tracer.maps.fd["flows"], client.cookie.to_bytes(8, "little"))
        server.does("close")
        closed(tracer, server)

        made, over = tracer.counted("flows_made", "sockets_closed")
        assert sweeper.sweep(made, over, time.monotonic_ns()) == (0, 1)


def test_a_connection_that_fails_leaves_nothing(lab: Lab, place: Namespace):
    with FlowTracer(lab, place) as tracer:
        client = Peer(lab, place, "client", "127.0.0.1", 9)
        assert "refused" in client.facts["error"]
        closed(tracer, client)

        flow = tracer.flow(client)
        assert flow is not None
        assert flow.state == flows.CLOSED
        wait_for(lambda: tracer.cookies() == 0, 30, "tuples forgotten")


def test_a_killed_process_closes_its_connections(lab: Lab, place: Namespace):
    with FlowTracer(lab, place) as tracer:
        client, server = connected(lab, place, "127.0.0.1")
        client.process.kill()
        client.process.wait()
        server.does("close")
        closed(tracer, client, server)
        wait_for(lambda: tracer.cookies() == 0, 30, "tuples forgotten")


@pytest.mark.parametrize("typed", [True, False])
def test_connections_older_than_the_programs_are_seeded(lab: Lab, place: Namespace, typed: bool):
    client, server = connected(lab, place, "127.0.0.1")
    six, _ = connected(lab, place, "::1")
    client.does("send 503")
    server.does("receive 503")
    outside = lab.cgroup.with_name(lab.cgroup.name + "-outside")
    outside.mkdir()
    try:
        stranger, _ = connected(lab, place, "127.0.0.1", cgroup=outside)
        with FlowTracer(lab, place, typed=typed) as tracer:
            assert tracer.flows() == {}
            tracer.seed()
            found = tracer.flows()
            assert stranger.cookie not in found
            assert {client.cookie, server.cookie, six.cookie} < set(found)
            assert len(found) == 4
            assert tracer.counted("sockets_seeded") == [4]
            mine = found[client.cookie]
            assert mine.flags & flows.SEEDED
            assert (mine.tgid, mine.role, mine.state) == (client.pid, 0, flows.ESTABLISHED)
            assert 0 <= mine.tcp_sent - 503 <= 1
            assert tracer.cookies() == 8

            tracer.seed()  # again changes nothing
            assert tracer.flows() == found

            client.does("close")
            server.does("close")
            closed(tracer, client, server)
            wait_for(lambda: tracer.cookies() == 4, 30, "tuples forgotten")
            stranger.process.kill()
            stranger.process.wait()
    finally:
        for line in (outside / "cgroup.procs").read_text().split():
            os.kill(int(line), 9)
        wait_for(lambda: not (outside / "cgroup.procs").read_text(), what="strangers gone")
        outside.rmdir()


@pytest.mark.parametrize("typed", [True, False])
def test_without_sock_ops_the_state_opens_them(lab: Lab, place: Namespace, typed: bool):
    with FlowTracer(lab, place, sock_ops=False, typed=typed) as tracer:
        client, server = connected(lab, place, "127.0.0.1")
        if not typed:  # nothing there can make the kernel give a cookie
            assert tracer.flows() == {}
            return
        assert set(tracer.flows()) == {client.cookie, server.cookie}
        assert [tracer.flow(peer).role for peer in (client, server)] == [1, 2]
        client.does("close")
        server.does("close")
        closed(tracer, client, server)
        wait_for(lambda: tracer.cookies() == 0, 30, "tuples forgotten")


@pytest.mark.parametrize("sock_ops", [True, False])
def test_excluded_cgroups_have_no_flows(lab: Lab, place: Namespace, sock_ops: bool):
    excluded = lab.cgroup / "excluded"
    below = excluded / "below"
    below.mkdir(parents=True)
    with FlowTracer(lab, place, excluded=(excluded,), sock_ops=sock_ops) as tracer:
        connected(lab, place, "127.0.0.1", cgroup=below)
        client, server = connected(lab, place, "127.0.0.1")
        tracer.seed()
        assert set(tracer.flows()) == {client.cookie, server.cookie}


@pytest.mark.parametrize("sock_ops", [True, False])
def test_users_out_of_scope_have_no_flows(lab: Lab, place: Namespace, sock_ops: bool):
    nobody = pwd.getpwnam("nobody").pw_uid
    with FlowTracer(lab, place, uids=(nobody,), sock_ops=sock_ops) as tracer:
        connected(lab, place, "127.0.0.1")
        client, server = connected(lab, place, "127.0.0.1", user="nobody")
        tracer.seed()
        assert set(tracer.flows()) == {client.cookie, server.cookie}
