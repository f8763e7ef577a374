"""``watch -o FORMAT -w FILE`` as a process: formats, names, ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time

import jsonschema
import pytest

from spliffd.pb import spliff_pb2 as pb
from tests.support.har_schema import HAR


def har(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        log = json.load(file)
    jsonschema.Draft202012Validator(HAR).validate(log)
    return log["log"]


def wait_for_part(folder: str, *, size: int) -> None:
    """Until the temporary file has that many bytes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        parts = [name for name in os.listdir(folder) if name.endswith(".part")]
        if parts and os.stat(f"{folder}/{parts[0]}").st_size >= size:
            return
        time.sleep(0.02)
    pytest.fail("no temporary file of that size")


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        (("-o", "har"), b'{"log": '),
        (("-o", "pcapng"), b"\x0a\x0d\x0d\x0a"),
        (("-o", "mitmproxy"), b""),
        (("-o", "json"), b'{"exchange": '),
        (("-o", "text"), b"12:00:59.346 "),
    ],
)
def test_every_format_goes_to_a_file(daemon, client, build, folder, options, begin):
    daemon.batches = [build.items(build.exchange(1), build.exchange(2))]
    done = client.run("watch", *options, "--count", "2", "-w", f"{folder}/out", "--utc")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == "spliffctl: 2 exchanges, 0 lost in out\n"
    with open(f"{folder}/out", "rb") as file:
        data = file.read()
    assert data.startswith(begin)
    assert data.count(b"api.example.com") >= 2
    assert daemon.requests[0].bodies == (options[1] in ("har", "pcapng", "mitmproxy"))


def test_the_name_says_the_format(daemon, client, build, folder):
    daemon.batches = [build.items(build.exchange())]
    assert client.run("watch", "--count", "1", "-w", f"{folder}/out.har").returncode == 0
    assert len(har(f"{folder}/out.har")["entries"]) == 1
    assert client.run("watch", "--count", "1", "-o", "json", "-w", f"{folder}/out.har").returncode == 0
    with open(f"{folder}/out.har", encoding="utf-8") as file:
        assert file.read().startswith('{"exchange"')


def test_a_format_goes_into_a_pipe_too(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    done = client.run("watch", "-o", "har", "--count", "1")
    assert len(json.loads(done.stdout)["log"]["entries"]) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_whole_file(daemon, client, build, folder, number, code):
    daemon.batches = [build.items(build.exchange(1)), build.items(build.exchange(2), pb.Loss(count=3))]
    watching = client.start("watch", "-w", f"{folder}/out.har")
    wait_for_part(folder, size=2000)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (part,) = [name for name in os.listdir(folder) if name.endswith(".part")]
        if len(har(f"{folder}/{part}")["entries"]) == 2:
            break
        time.sleep(0.02)
    watching.send_signal(number)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == code
    assert "2 exchanges, 3 lost in out.har" in err
    log = har(f"{folder}/out.har")
    assert [entry["_id"] for entry in log["entries"]] == ["1", "2"]
    assert log["_losses"] == [{"count": "3"}]
    assert [name for name in os.listdir(folder) if name.endswith(".part")] == []


def test_a_daemon_that_goes_away_leaves_a_whole_file(daemon, client, build, folder):
    def watch(context):
        yield pb.WatchResponse(items=[pb.Item(started=pb.Started())])
        yield pb.WatchResponse(items=build.items(build.exchange()))

    daemon.watch = watch
    done = client.run("watch", "-w", f"{folder}/out.har")
    assert done.returncode == 69
    assert len(har(f"{folder}/out.har")["entries"]) == 1


def test_rotation(daemon, client, build, folder):
    daemon.batches = [build.items(build.exchange(n, request__path="/" + "x" * 5000)) for n in range(1, 6)]
    done = client.run("watch", "-o", "har", "-w", f"{folder}/out.har", "--rotate", "4K", "--count", "5")
    assert done.returncode == 0, done.stderr
    names = sorted(name for name in os.listdir(folder) if name.endswith(".har"))
    assert [har(f"{folder}/{name}")["entries"][0]["_id"] for name in names] == ["1", "2", "3", "4", "5"]
    assert f"5 exchanges, 0 lost in 5 files, the last is {names[-1]}" in done.stderr


def test_what_the_format_has_no_place_for_is_told(daemon, client, build, folder):
    daemon.batches = [build.items(pb.Chunk(data=b"x"), pb.Chunk(data=b"y"), build.exchange())]
    done = client.run("watch", "-w", f"{folder}/out.mitm", "--count", "1")
    assert "2 raw chunks left out: this format has no place for them" in done.stderr


def test_the_output_of_a_command_is_not_in_the_way_of_a_file(daemon, client, folder):
    done = client.run("watch", "-w", f"{folder}/out.har", "--", "sh", "-c", "echo hello; exit 3")
    assert (done.stdout, done.returncode) == ("hello\n", 3)
    assert har(f"{folder}/out.har")["entries"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("-w", "/nowhere/out.har"), 74, "cannot write /nowhere/out.har: No such file or directory"),
        (("-w", ""), 2, "-w needs the name of a file"),
        (("--rotate", "10M"), 2, "--rotate is about files"),
        (("-w", "x", "--rotate", "10"), 2, "has no unit"),
        (("-o", "har", "-x"), 2, "-x shapes text, so it has no meaning with -o har"),
    ],
)
def test_what_cannot_be(daemon, client, arguments, code, why):
    done = client.run("watch", *arguments)
    assert done.returncode == code
    assert why in done.stderr


def test_a_terminal_gets_no_binary_format(daemon, client):
    leader, follower = os.openpty()
    try:
        done = client.start("watch", "-o", "pcapng", stdout=follower)
        assert done.wait(30) == 2
        assert "pcapng is not for a terminal" in done.stderr.read()
    finally:
        os.close(leader)
        os.close(follower)
