"""spliffctl flows: the table, its filters, JSON, completion."""

from __future__ import annotations

import json

import pytest

from spliffd.pb import spliff_pb2 as pb


def flow(
    pid: int,
    comm: str,
    local: tuple[str, int],
    remote: tuple[str, int],
    *hops: tuple[str, str, int],
    role: str = "client",
    hello: bool = True,
) -> pb.Flow:
    return pb.Flow(
        process=pb.Process(pid=pid, comm=comm),
        connection=pb.Connection(
            local=pb.Endpoint(address=local[0], port=local[1]),
            remote=pb.Endpoint(address=remote[0], port=remote[1]),
            role=role, family="ipv4", netns_cookie=4223, socket_cookie=0x1009,
            interface=hops[0][0] if hops else "", packets_sent=7 if hops else 0,
            packets_received=5 if hops else 0, bytes_sent=1234 if hops else 0, bytes_received=5_678_901 if hops else 0,
            path=[pb.PathHop(interface=name, hook=hook, packets=packets) for name, hook, packets in hops],
        ),
        wire=hops[0][1] if hops else "NONE",
        first_time_ns=1_795_348_800_000_000_000, last_time_ns=1_795_348_801_009_000_000, client_hello=hello,
    )  # fmt: skip


@pytest.fixture
def flows(daemon) -> list[pb.Flow]:
    daemon.flows = [
        flow(812, "nginx", ("192.0.2.10", 443), ("192.0.2.77", 40000), ("eth0", "XDP", 12), role="server"),
        flow(
            403410, "curl", ("10.92.0.1", 48372), ("10.92.0.2", 8443), ("wg0", "TC", 11), ("eth0", "XDP", 13)
        ),
        flow(0, "", ("2001:db8::1", 5000), ("2001:db8::2", 22), hello=False),
    ]
    return daemon.flows


def test_flows_are_a_table_below_80_columns(daemon, client, flows):
    done = client.run("flows")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "WIRE             SENT  RCVD  PROCESS        CONNECTION",
        "-                0     0     ? (?)          [2001:db8::1]:5000 → [2001:db8::2]:22",
        "tc:wg0,xdp:eth0  1.2K  5.4M  curl (403410)  10.92.0.1:48372 → 10.92.0.2:8443",
        "xdp:eth0         1.2K  5.4M  nginx (812)    192.0.2.10:443 ← 192.0.2.77:40000",
    ]


def test_a_usual_line_fits_a_terminal(daemon, client):
    daemon.flows = [
        flow(403410, "curl", ("192.168.100.10", 48372), ("198.51.100.25", 443), ("eth0", "XDP", 12)),
        flow(812, "nginx", ("10.0.0.1", 443), ("10.0.0.2", 48372), ("veth0", "TC", 3), role="server"),
    ]
    assert max(map(len, client.run("flows").stdout.splitlines())) <= 80


def test_verbose_shows_each_interface(daemon, client, flows):
    lines = client.run("flows", "-v", "--interface", "wg0").stdout.splitlines()
    assert lines[2:] == [
        "    cookie 0x1009, namespace 4223, ipv4 client, ClientHello seen",
        "    seen from 12:00:00.000 to 12:00:01.009, packets 7 sent, 5 received",
        "    tc:wg0  11 packets",
        "    xdp:eth0  13 packets",
    ]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], {0, 812, 403410}),
        (["--port", "443"], {812}),
        (["--port", "40000", "--port", "5000"], {812, 0}),
        (["--interface", "eth0"], {812, 403410}),
        (["--interface", "wg0", "--port", "443"], set()),
        (["--tls"], {812, 403410}),
    ],
)
def test_filters_narrow_what_is_shown(client, flows, options, shown):
    lines = client.run("flows", "-o", "json", *options).stdout.splitlines()
    assert {json.loads(line)["flow"]["process"].get("pid", 0) for line in lines} == shown


def test_pids_are_asked_of_the_daemon(daemon, client, flows):
    client.run("flows", "--pid", "7", "--pid", "11")
    assert list(daemon.flow_requests[0].pids) == [7, 11]


def test_json_has_the_names_of_the_contract(client, flows):
    line = json.loads(client.run("flows", "-o", "json", "--interface", "wg0").stdout)
    assert line["flow"]["wire"] == "TC"
    assert line["flow"]["connection"]["path"] == [
        {"interface": "wg0", "hook": "TC", "packets": "11"},
        {"interface": "eth0", "hook": "XDP", "packets": "13"},
    ]
    assert line["flow"]["connection"]["bytes_received"] == "5678901"


def test_nothing_to_show_is_explained(daemon, client):
    assert client.run("flows").stdout == "No TCP flow is open inside the scope (spliffctl status).\n"
    assert client.run("flows", "--port", "443").stdout == "No open flow matches.\n"


def test_names_from_outside_reach_no_terminal(daemon, client):
    daemon.flows = [flow(1, "a\x1b[2Jb", ("1.2.3.4", 1), ("5.6.7.8", 2), ("e\x07th", "TC", 1))]
    for options in ([], ["-v"]):
        assert not set(client.run("flows", *options).stdout) & {"\x1b", "\x07"}


def test_a_wrong_port_is_a_usage_error(client):
    done = client.run("flows", "--port", "0")
    assert done.returncode == 2
    assert "'0' is not a number from 1 to 65535" in done.stderr


def test_completion_knows_this_hosts_interfaces(client):
    env = {
        "_SPLIFFCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "spliffctl flows --interface l",
        "COMP_CWORD": "3",
    }
    assert "plain,lo" in client.run(env=env).stdout.splitlines()
