"""spliffctl processes and why: the table, what it says of one process, JSON, exit codes."""

from __future__ import annotations

import json

import pytest

from spliffd.pb import spliff_pb2 as pb


def coverage(pid: int, comm: str, covered: str, reason: str = "", seen: int = 0, flows: int = 0, **more):
    return pb.ProcessCoverage(
        process=pb.Process(pid=pid, comm=comm), covered=covered, reason=reason,
        captured_connections=seen, tls_flows=flows, **more,
    )  # fmt: skip


@pytest.fixture
def processes(daemon) -> list[pb.ProcessCoverage]:
    daemon.processes = [
        coverage(812, "nginx", "covered", seen=7, flows=7, libraries=["openssl"]),
        coverage(
            99, "app", "not", "static", flows=3,
            detail="/opt/app/app: holds BoringSSL, but no symbols of its functions",
            files=[pb.Library(path="/opt/app/app", library="boringssl", state="refused", reason="no symbols")],
            missed=[
                pb.Connection(
                    local=pb.Endpoint(address="192.0.2.1", port=5000),
                    remote=pb.Endpoint(address="192.0.2.2", port=443), role="client",
                )
            ],
        ),
        coverage(100, "worker", "partly", "attached_late", seen=1, flows=2, libraries=["openssl"]),
        coverage(101, "gone", "not", "not_inspected", flows=1, ended=True),
    ]  # fmt: skip
    return daemon.processes


def test_what_is_not_covered_comes_first(client, processes):
    done = client.run("processes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "COVERED  REASON         SEEN  LIBRARY  PROCESS",
        "not      static         0/3   -        app (99)",
        "not      not_inspected  0/1   -        gone (101) ended",
        "partly   attached_late  1/2   openssl  worker (100)",
        "covered  -              7/7   openssl  nginx (812)",
    ]


def test_verbose_gives_the_reason_files_and_connections(client, processes):
    lines = client.run("processes", "-v", "--not-covered").stdout.splitlines()
    assert lines[1:5] == [
        "not      static         0/3   -        app (99)",
        "    /opt/app/app: holds BoringSSL, but no symbols of its functions",
        "    refused: /opt/app/app (boringssl): no symbols",
        "    not seen: 192.0.2.1:5000 → 192.0.2.2:443",
    ]
    assert not any("nginx" in line for line in lines)


def test_pids_are_asked_of_the_daemon(daemon, client, processes):
    client.run("processes", "--pid", "7", "--pid", "11")
    assert list(daemon.process_requests[0].pids) == [7, 11]


def test_json_has_the_names_of_the_contract(client, processes):
    lines = [
        json.loads(line)["process"] for line in client.run("processes", "-o", "json").stdout.splitlines()
    ]
    assert (lines[0]["covered"], lines[0]["reason"], lines[0]["tls_flows"]) == ("not", "static", "3")
    assert lines[0]["process"] == {"pid": 99, "comm": "app"}


def test_why_says_what_to_do(client, daemon, processes):
    daemon.processes = processes[1:2]
    done = client.run("why", "--pid", "99")
    assert (done.returncode, done.stderr) == (0, "")
    first, why, remedy, *details = done.stdout.splitlines()
    assert first == "app (99): its TLS is not seen decrypted."
    assert why == "Why: /opt/app/app: holds BoringSSL, but no symbols of its functions [static]."
    assert remedy.startswith("What to do: Run a build of the program that keeps its symbols")
    assert details == [
        "  refused: /opt/app/app (boringssl): no symbols",
        "  not seen: 192.0.2.1:5000 → 192.0.2.2:443",
    ]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (coverage(5, "a", "covered", seen=3, flows=3), "its TLS is seen decrypted, 3 of 3 connections."),
        (coverage(5, "a", "partly", "ktls", seen=1, flows=1), "in part, 1 of 1 connections."),
        (coverage(5, "a", ""), "it has not spoken TLS yet."),
        (coverage(5, "a", "", "out_of_scope"), "it is not looked at."),
        (coverage(5, "a", "", files=[pb.Library(state="attached")]), "its library is probed, so it will be seen."),
    ],
)  # fmt: skip
def test_why_in_other_cases(client, daemon, one, said):
    daemon.processes = [one]
    assert client.run("why", "--pid", "5").stdout.splitlines()[0].endswith(said)


def test_why_of_a_process_that_is_not_there(client, daemon):
    done = client.run("why", "--pid", "5")
    assert done.returncode == 1
    assert done.stderr == "spliffctl: there is no process 5: spliffctl processes lists those that speak TLS\n"
    assert client.run("why").returncode == 2


def test_nothing_to_show_is_explained(client, daemon):
    said = client.run("processes").stdout
    assert said == "No process inside the scope has spoken TLS yet (spliffctl status).\n"
    assert client.run("processes", "--not-covered").stdout == "No such process speaks TLS inside the scope.\n"


def test_names_from_outside_reach_no_terminal(client, daemon):
    daemon.processes = [
        coverage(
            1, "a\x1b[2J", "not", "static", detail="/\x1b[2J", files=[pb.Library(path="/\x07", state="x")]
        )
    ]
    for command in (["processes", "-v"], ["why", "--pid", "1"]):
        assert not set(client.run(*command).stdout) & {"\x1b", "\x07"}
