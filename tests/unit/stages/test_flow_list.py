"""Flows of the kernel as messages of the contract: addresses, totals, path, owners, and what is left out."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from spliffd.kernel.flows import CLIENT_HELLO, Flow, Hop
from spliffd.pb import spliff_pb2 as pb
from spliffd.stages import flow_list

CLOCK = 1_700_000_000_000_000_000


def flow(**changes) -> Flow:
    """A curl's connection through a tunnel, seen on wg0 by TC, then on eth0 by XDP."""
    made = Flow(
        first_ns=1_000, last_ns=2_000, closed_ns=0, netns_cookie=4223,
        local=socket.inet_aton("10.92.0.1") + bytes(12), remote=socket.inet_aton("10.92.0.2") + bytes(12),
        local_port=48372, remote_port=443, family=4, role=1,
        hops=(Hop(5, 2, 7, 5, 700, 5_000, 1_100), Hop(2, 1, 6, 4, 900, 5_600, 1_200)),
        flags=CLIENT_HELLO, tgid=0, state=1, tcp_sent=0, tcp_received=0,
    )  # fmt: skip
    return made._replace(**changes)


def masked(line: str) -> str:
    return line.replace("secret", "***")


def listed(*flows: tuple[int, Flow], owners=lambda _cookie, _flow: 0, wanted=()) -> list[pb.Flow]:
    names = {2: "eth0", 5: "wg0"}
    data = flow_list.response(flows, names, owners, frozenset(wanted), CLOCK, masked)
    return list(pb.ListFlowsResponse.FromString(data).flows)


def test_a_flow_tells_its_totals_and_its_path():
    (found,) = listed((0x1009, flow()))
    assert found == pb.Flow(
        connection=pb.Connection(
            local=pb.Endpoint(address="10.92.0.1", port=48372),
            remote=pb.Endpoint(address="10.92.0.2", port=443),
            role="client", family="ipv4", netns_cookie=4223, socket_cookie=0x1009, interface="wg0",
            packets_sent=7, packets_received=5, bytes_sent=700, bytes_received=5_000,
            path=[
                pb.PathHop(interface="wg0", hook="TC", packets=12),
                pb.PathHop(interface="eth0", hook="XDP", packets=10),
            ],
        ),
        wire="TC", first_time_ns=CLOCK + 1_000, last_time_ns=CLOCK + 2_000, client_hello=True,
    )  # fmt: skip


def test_a_flow_that_no_hook_saw():
    (found,) = listed((1, flow(hops=(), flags=0)))
    assert (found.wire, found.connection.interface, len(found.connection.path)) == ("NONE", "", 0)
    assert not found.client_hello


def test_an_interface_that_nobody_knows_is_told_by_its_index():
    (found,) = listed((1, flow(hops=(Hop(77, 2, 1, 0, 60, 0, 1),))))
    assert found.connection.interface == "if77"


def test_ipv6_and_servers():
    ends = {"local": socket.inet_pton(socket.AF_INET6, "fd91::2"), "remote": bytes(15) + b"\1"}
    (found,) = listed((1, flow(family=6, role=2, **ends)))
    connection = found.connection
    assert (connection.local.address, connection.remote.address) == ("fd91::2", "::1")
    assert (connection.family, connection.role) == ("ipv6", "server")


def test_closed_flows_are_left_out():
    assert [f.connection.socket_cookie for f in listed((1, flow(closed_ns=5)), (2, flow()))] == [2]


def test_only_flows_of_the_processes_asked_for():
    owners = {1: 7, 2: 11, 3: 0, 4: 11}
    flows = [(cookie, flow()) for cookie in owners]
    found = listed(*flows, owners=lambda cookie, _flow: owners[cookie], wanted=[11])
    assert [f.connection.socket_cookie for f in found] == [2, 4]
    assert {f.process.pid for f in found} == {11}


def test_the_owner_is_described():
    (found,) = listed((1, flow()), owners=lambda *_: os.getpid())
    process = found.process
    assert (process.pid, process.ppid, process.uid) == (os.getpid(), os.getppid(), os.getuid())
    assert process.exe == os.readlink("/proc/self/exe")
    assert process.comm == Path("/proc/self/comm").read_text().rstrip()
    assert process.cmdline


@pytest.mark.parametrize("name", ["a) R 1 (b", "x y"])
def test_a_command_name_may_hold_brackets(tmp_path, name):
    program = tmp_path / name
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        while Path(f"/proc/{process.pid}/comm").read_text().rstrip() != name:
            pass
        found = flow_list.read_process(process.pid)
        process.communicate(b"\n")
    assert (found.comm, found.ppid) == (name, os.getpid())


def test_an_owner_that_is_gone_is_a_pid():
    with subprocess.Popen(["true"]) as process:
        pass
    assert flow_list.read_process(process.pid) == pb.Process(pid=process.pid)


def test_a_command_line_is_masked():
    with subprocess.Popen(["sleep", "60"], executable="/bin/sleep") as process:
        wanted = "sleep 60"
        while flow_list.read_process(process.pid).cmdline != wanted:
            pass
        data = flow_list.response(
            [(1, flow())],
            {},
            lambda *_: process.pid,
            frozenset(),
            CLOCK,
            lambda line: line.replace("60", "***"),
        )
        process.kill()
    [found] = pb.ListFlowsResponse.FromString(data).flows
    assert found.process.cmdline == "sleep ***"
