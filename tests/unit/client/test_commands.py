"""status, stats, libraries, completion, and what every command says when the daemon is out of reach."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from google.protobuf import json_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from spliffctl.__main__ import COMMANDS, cli, main
from spliffd.pb import spliff_pb2 as pb


def test_status_shows_what_runs(daemon, client, build):
    daemon.info = pb.GetInfoResponse(
        version="0.10.0", kernel="6.18.0", hostname="alpha", start_time_ns=build.noon, health="ok, 3 watchers",
        scope=["whole host"], processes={"supervisor": 10, "api": 12}, epoch=3,
        features=[pb.Feature(name="attach", state="degraded", detail="perf\x1b[2J links")],
    )  # fmt: skip
    done = client.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "spliffd    0.10.0",
        "host       alpha",
        "kernel     6.18.0",
        "started    2026-11-22 12:00:00",
        "health     ok, 3 watchers",
        "scope      whole host",
        "processes  api (12), supervisor (10)",
        "",
        "FEATURE  STATE     DETAIL",
        "attach   degraded  perf\\x1b[2J links",
    ]
    as_json = json.loads(client.run("status", "-o", "json").stdout)
    assert as_json == json_format.MessageToDict(daemon.info, preserving_proto_field_name=True)


def test_stats_again_and_again(daemon, client):
    daemon.stats = pb.GetStatsResponse(text="Application layer\n", values={"spliff_flows": 1})
    watching = client.start("stats", "--interval", "100ms", "--utc")
    lines = [watching.stdout.readline() for _ in range(6)]
    assert [line for line in lines if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", line)] == lines[::3]
    assert lines[1] == lines[4] == "Application layer\n"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 130
    watching = client.start("stats", "--watch", "-o", "json", "--interval", "100ms")
    assert [json.loads(watching.stdout.readline())["values"] for _ in range(2)] == [{"spliff_flows": 1}] * 2
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 130


def test_times_are_local_or_utc(daemon, client, build):
    daemon.info = pb.GetInfoResponse(start_time_ns=build.noon)
    berlin = {"TZ": "CET-1"}
    assert "2026-11-22 13:00:00" in client.run("status", env=berlin).stdout
    assert "2026-11-22 12:00:00" in client.run("status", "--utc", env=berlin).stdout


def test_stats_prints_the_block_as_it_is(daemon, client):
    daemon.stats = pb.GetStatsResponse(
        text="Correlation\n  rate  100.0 %\n\nLosses\n  none\n",
        values={"spliff_connections": 5, 'spliff_lost_total{stage="ring"}': 0.5},
        since_time_ns=17,
    )
    assert client.run("stats").stdout == daemon.stats.text
    assert json.loads(client.run("stats", "-o", "json").stdout) == {
        "values": {"spliff_connections": 5, 'spliff_lost_total{stage="ring"}': 0.5},
        "since_time_ns": "17",
    }


def test_libraries_are_a_table_with_placement_and_reason(daemon, client):
    sites = [
        pb.Site(symbol="SSL_read", offset=0x1234, placement="internal", proof="push rbp"),
        pb.Site(symbol="SSL_read", offset=0x1300, placement="return"),
    ]
    daemon.libraries = [
        pb.Library(path="/usr/lib/libssl.so.3", library="openssl", state="attached", sites=sites, inode=42),
        pb.Library(path="/opt/\x1b[31mapp", library="go", state="refused", reason="stripped, and too old"),
    ]
    assert client.run("libraries").stdout.splitlines() == [
        "LIBRARY  STATE     PLACEMENT             PATH                  REASON",
        "go       refused   -                     /opt/\\x1b[31mapp      stripped, and too old",
        "openssl  attached  1 internal, 1 return  /usr/lib/libssl.so.3  -",
    ]
    assert "    internal  0x1234  SSL_read  (push rbp)" in client.run("libraries", "-v").stdout.splitlines()
    lines = [json.loads(line) for line in client.run("libraries", "-o", "json").stdout.splitlines()]
    assert [line["library"]["library"] for line in lines] == ["go", "openssl"]


def test_no_libraries_is_explained(daemon, client):
    assert "No TLS library found yet" in client.run("libraries").stdout


def test_interfaces_are_a_table_below_80_columns_in_order_of_appearance(daemon, client):
    daemon.interfaces = [
        pb.Interface(name="veth0123456789a", index=17, hook="TC", mode="clsact", reason="veth", packets=3),
        pb.Interface(
            name="enp0s31f6", index=2, hook="XDP", mode="native", reason="hardware", packets=123456789,
            bytes=98765432101,
        ),
        pb.Interface(name="can0", index=5, hook="NONE", reason="link type 280 carries no IP"),
        pb.Interface(name="x\x1b[2J", index=4, hook="NONE", reason="Too many open files"),
    ]  # fmt: skip
    lines = client.run("interfaces").stdout.splitlines()
    assert lines == [
        "NAME             HOOK  MODE    PACKETS    BYTES     REASON",
        "enp0s31f6        XDP   native  123456789  92.0 GiB  hardware",
        "x\\x1b[2J         NONE  -       -          -         Too many open files",
        "can0             NONE  -       -          -         link type 280 carries no IP",
        "veth0123456789a  TC    clsact  3          0 B       veth",
    ]
    assert max(map(len, lines)) <= 80
    lines = [json.loads(line) for line in client.run("interfaces", "-o", "json").stdout.splitlines()]
    assert [line["interface"]["index"] for line in lines] == [2, 4, 5, 17]
    assert lines[0]["interface"]["packets"] == "123456789"


def test_no_interfaces_is_explained(daemon, client):
    assert "No network interface is known" in client.run("interfaces").stdout


# ---- waiting -------------------------------------------------------------------------------------


def test_wait_ends_when_the_daemon_serves(daemon, client):
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, daemon.server)
    done = client.run("status", "--wait", "300ms")
    assert done.returncode == 69
    assert "not ready after 0.3 s: spliffd runs but does not serve yet" in done.stderr

    serve = threading.Timer(1.0, servicer.set, ("", health_pb2.HealthCheckResponse.SERVING))
    serve.start()
    begin = time.monotonic()
    done = client.run("status", "--wait", "20")
    serve.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert 0.5 < time.monotonic() - begin < 15


def test_wait_for_a_daemon_that_never_comes(client):
    done = client.run("status", "--wait", "0.3")
    assert done.returncode == 69
    assert "not ready after 0.3 s: spliffd is not running" in done.stderr


# ---- out of reach --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["watch", "stats", "status", "libraries", "flows", "interfaces"])
def test_no_socket_is_one_line_that_says_what_to_do(client, command):
    done = client.run(command)
    assert done.returncode == 69
    assert done.stderr == (
        f"spliffctl: spliffd is not running (no socket {client.path}): "
        "start it with: sudo systemctl start spliffd, or name its socket with --socket\n"
    )


def test_a_socket_that_nobody_listens_on(client):
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(client.path)
    done = client.run("status")
    assert done.returncode == 69
    assert f"nobody answers at {client.path}" in done.stderr


def test_a_socket_name_that_cannot_be(client):
    client.path = "/tmp/" + "x" * 200
    done = client.run("status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "too long" in done.stderr


def as_stranger(client, path: str) -> subprocess.CompletedProcess:
    """Runs `status` as a user that the socket is closed to: nobody, or its owner without any right."""
    more = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    client.path = path
    return client.run("status", **more)


def test_not_being_in_the_group_says_which(daemon, client):
    import grp

    group = 1 if os.geteuid() == 0 else os.getgid()
    os.chown(daemon.path, -1, group)
    os.chmod(daemon.path, 0o060)
    done = as_stranger(client, daemon.path)
    assert done.returncode == 77
    name = grp.getgrgid(group).gr_name
    assert f"group {name}" in done.stderr
    if os.geteuid() == 0:
        assert done.stderr == (
            f"spliffctl: you are not in group {name}: sudo usermod -aG {name} $USER, then log in again\n"
        )


def test_a_socket_of_root_alone(daemon, client):
    os.chmod(daemon.path, 0)
    done = as_stranger(client, daemon.path)
    assert done.returncode == 77
    assert "run spliffctl with sudo" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder closed to its owner needs a second user")
def test_a_folder_of_the_group(daemon, client, folder):
    os.chown(folder, 0, 1)
    os.chmod(folder, 0o750)
    done = as_stranger(client, daemon.path)
    assert done.returncode == 77
    assert "sudo usermod -aG daemon $USER" in done.stderr


# ---- the program ---------------------------------------------------------------------------------


def test_version_and_environment(client, daemon):
    assert client.run("--version").stdout.startswith("spliffctl 0.")
    command = [sys.executable, "-m", "spliffctl", "status"]
    done = subprocess.run(
        command,
        env=client.environment(SPLIFF_SOCKET=f"unix://{daemon.path}"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_the_summaries_of_help_are_those_of_the_commands():
    for name, summary in COMMANDS.items():
        command = cli.get_command(None, name)
        assert command.name == name
        assert command.get_short_help_str(200).rstrip(".") in command.help
        assert command.help.split(";")[0].rstrip(".") == summary.rstrip(".")
        assert "Examples:" in command.epilog


@pytest.mark.parametrize(
    "arguments", [["--help"], ["watch", "--help"], ["status", "-h"], ["completion", "bash"]]
)
def test_help_and_completion_do_not_import_what_is_slow(client, arguments):
    slow = "import sys; code = __import__('spliffctl.__main__', fromlist=['main']).main(sys.argv[1:]);"
    slow += "sys.exit(code or sorted({'grpc', 'google.protobuf', 'rich', 'asyncio'} & set(sys.modules)) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", slow, *arguments],
        env=client.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_the_shell(client, shell):
    done = client.run("completion", shell)
    assert done.returncode == 0
    assert "_SPLIFFCTL_COMPLETE" in done.stdout
    assert client.run("completion", env={"SHELL": f"/usr/bin/{shell}"}).stdout == done.stdout


def test_completion_completes(client):
    def complete(words: str, at: int) -> set[str]:
        env = {"_SPLIFFCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return {line.partition(",")[2] for line in client.run(env=env).stdout.splitlines()}

    client.command = lambda *arguments: [sys.executable, "-m", "spliffctl"]
    assert complete("spliffctl st", 1) == {"stats", "status"}
    assert complete("spliffctl watch --library o", 3) == {"openssl"}
    assert "--latency" in complete("spliffctl watch --l", 2)


def test_completion_without_a_known_shell(client):
    done = client.run("completion", env={"SHELL": "/bin/false"})
    assert done.returncode == 2
    assert "say which shell" in done.stderr


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal_and_ends_with_examples(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    last = text.strip().split("\n\n")
    assert any(part.lstrip().startswith("Examples:") for part in last[-2:])
