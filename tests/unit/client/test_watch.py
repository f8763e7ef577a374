"""`spliffctl watch` as a process, against a fake daemon: what it prints, how it ends, with which code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time

import grpc
import pytest

from spliffctl.__main__ import main
from spliffd.pb import spliff_pb2 as pb


def test_exchanges_come_as_text_without_colours_into_a_pipe(daemon, client, build):
    daemon.batches = [build.items(build.exchange(1)), build.items(build.exchange(2), build.exchange(3))]
    done = client.run("watch", "--count", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("12:00:59.346 → GET https://api.example.com/users  h2 192.0.2.10:48372")
    assert "\x1b" not in done.stdout


def test_the_options_become_the_request(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    done = client.run(
        "watch", "--pid", "5", "--pid", "6", "--host", "*.example.com", "--status", "2xx", "--method", "get",
        "-H", "--body-limit", "4K", "--count", "1", "-C",
    )  # fmt: skip
    assert done.returncode == 0
    assert daemon.requests == [
        pb.WatchRequest(
            filter=pb.Filter(
                pids=[5, 6], hosts=["*.example.com"], methods=["GET"],
                statuses=[pb.StatusRange(first=200, last=299)],
            ),
            bodies=True, body_limit=4096, handshakes=True, messages=True, progress=True, queue_bytes=(1 << 64) - 1,
        )
    ]  # fmt: skip


def test_colours_when_asked_for_or_on_a_terminal(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    assert "\x1b[32m200" in client.run("watch", "--count", "1", "--color", "always").stdout

    def on_terminal(**env) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            client.command("watch", "--count", "1"), stdout=theirs, env=client.environment(**env)
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux says end of file on a terminal
            pass
        os.close(ours)
        assert process.wait(30) == 0
        return shown.decode()

    assert "\x1b[32m200" in on_terminal()
    assert "\x1b" not in on_terminal(NO_COLOR="1")


def test_json_lines_and_losses_in_band(daemon, client, build):
    loss = pb.Loss(stage="subscriber", reason="queue_full", count=12)
    daemon.batches = [build.items(build.exchange(1), loss, build.exchange(2))]
    lines = [
        json.loads(line) for line in client.run("watch", "-o", "json", "--count", "2").stdout.splitlines()
    ]
    assert [list(line) for line in lines] == [["exchange"], ["loss"], ["exchange"]]
    assert lines[1] == {"loss": {"stage": "subscriber", "reason": "queue_full", "count": "12"}}
    assert "!! lost 12 exchanges (subscriber: queue_full)" in client.run("watch", "--count", "2").stdout


def body_script(build) -> list[list[pb.Item]]:
    """A body of 24 bytes in two parts and a rest, one part lost; and another exchange's, discarded."""
    last = build.exchange(
        part_key=9, response__body=b"tail", response__body_offset=20, response__body_size=24
    )
    return [
        build.items(pb.BodyPart(part_key=9, response=True, offset=0, data=b"first part")),
        build.items(pb.BodyPart(part_key=8, response=True, offset=0, data=b"not ours")),
        build.items(pb.Discard(part_keys=[8])),
        build.items(pb.BodyPart(part_key=9, response=False, offset=0, data=b"asked"), last),
    ]


def test_body_parts_are_joined_and_a_hole_is_shown(daemon, client, build):
    daemon.batches = body_script(build)
    lines = client.run("watch", "-b", "--count", "1").stdout.splitlines()
    assert lines[1] == "    asked"
    assert lines[3:] == ["    first part", "    … 10 bytes missing from offset 10 …", "    tail"]


def test_body_parts_are_joined_in_json(daemon, client, build):
    daemon.batches = body_script(build)
    (line,) = client.run("watch", "-b", "-o", "json", "--count", "1").stdout.splitlines()
    exchange = json.loads(line)["exchange"]
    assert exchange["request"]["body"] == "YXNrZWQ="
    assert exchange["response"]["body"] == "Zmlyc3QgcGFydHRhaWw="
    assert "body_offset" not in exchange["response"]
    assert exchange["completeness"]["body_not_sent"] == "10"


def test_a_hexdump_implies_bodies(daemon, client, build):
    daemon.batches = [build.items(build.exchange(response__body=b"hello"))]
    assert "00000000  68 65 6c 6c 6f" in client.run("watch", "-x", "--count", "1").stdout
    assert daemon.requests[0].bodies


def test_escape_sequences_do_not_reach_the_terminal(daemon, client, build):
    nasty = "\x1b]0;owned\x07\x9b2J\u202e"
    daemon.batches = [
        build.items(
            build.exchange(
                request__path="/" + nasty, process__comm=nasty, response__content_type=nasty,
                response__body=b"\x1b[2Jbody\x7f", completeness__state=nasty, connection__interface=nasty,
            )
        )
    ]  # fmt: skip
    for options in (["-b"], ["-c"], ["-o", "json", "-b"]):
        shown = client.run("watch", "--count", "1", *options).stdout
        assert shown
        assert all(c == "\n" or c.isprintable() for c in shown)


def test_for_ends_the_watch(daemon, client):
    begin = time.monotonic()
    done = client.run("watch", "--for", "400ms")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 0.4 <= time.monotonic() - begin < 10


# ---- how it ends ---------------------------------------------------------------------------------


def test_ctrl_c_prints_a_summary_and_exits_with_130(daemon, client, build):
    daemon.batches = [build.items(build.exchange(), pb.Loss(stage="ring", reason="ring_full", count=3))]
    watch = client.start("watch")
    assert watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, error = watch.communicate(timeout=20)
    assert (watch.returncode, error) == (130, "spliffctl: 1 exchange, 3 lost\n")


def test_ctrl_c_works_while_the_reader_of_the_pipe_is_stalled(daemon, client, build):
    daemon.batches = [build.items(*[build.exchange(i) for i in range(200)]) for _ in range(20)]
    watch = client.start("watch")
    time.sleep(1.5)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    assert "lost\n" in watch.stderr.read()


def test_a_broken_pipe_ends_it_silently(daemon, client, build):
    daemon.batches = [build.items(build.exchange(i)) for i in range(500)]
    watch = client.start("watch")
    assert watch.stdout.readline()
    watch.stdout.close()
    assert watch.wait(20) == 0
    assert watch.stderr.read() == ""


def test_a_broken_pipe_ends_it_even_when_there_is_nothing_to_write(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    watch = client.start("watch")
    assert watch.stdout.readline()
    assert watch.stdout.readline()
    watch.stdout.close()
    assert watch.wait(20) == 0
    assert watch.stderr.read() == ""


def test_a_daemon_that_stops_is_told(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    watch = client.start("watch")
    assert watch.stdout.readline()
    daemon.stop()
    assert watch.wait(20) == 69
    error = watch.stderr.read()
    assert error.startswith("spliffctl: spliffd stopped or was restarted")
    assert error.count("\n") == 1


def test_a_daemon_that_never_answers_is_told(daemon, capsys, monkeypatch):
    monkeypatch.setattr("spliffctl.stream.START_TIMEOUT_S", 0.3)
    daemon.watch = lambda context: daemon.hold(context) or iter(())
    assert main(["--socket", daemon.path, "watch"]) == 69
    assert "accepts connections but did not answer within 0 s" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_told(daemon, client, build):
    daemon.batches = [build.items(build.exchange())]
    with open("/dev/full", "w") as full:
        watch = client.start("watch", stdout=full)
        assert watch.wait(20) == 1
    assert watch.stderr.read() == "spliffctl: cannot write to standard output: No space left on device\n"
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *client.command("watch")],
        env=client.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr) == (1, "spliffctl: standard output is closed\n")


def test_output_of_others_that_is_not_blocking_is_waited_for(daemon, client, build):
    daemon.batches = [build.items(*[build.exchange(i) for i in range(500)]) for _ in range(5)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watch = client.start("watch", "-c", "--count", "2500", stdout=writer)
    os.close(writer)
    time.sleep(1)
    with open(reader) as pipe:
        assert len(pipe.readlines()) == 2500
    assert watch.wait(20) == 0


def test_a_stream_that_ends_is_told(daemon, client):
    daemon.watch = lambda context: iter([pb.WatchResponse()])
    done = client.run("watch")
    assert done.returncode == 69
    assert "spliffd ended the stream" in done.stderr


@pytest.mark.parametrize(
    ("code", "exits", "says"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, 77, "spliffd refuses: because\\x1b[2J"),
        (grpc.StatusCode.INVALID_ARGUMENT, 2, "does not take these arguments: because"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 69, "no room for another watcher"),
        (grpc.StatusCode.INTERNAL, 69, "journalctl -u spliffd"),
    ],
)
def test_what_the_daemon_refuses(daemon, client, code, exits, says):
    def refuse(context):
        context.abort(code, "because\x1b[2J")
        yield

    daemon.watch = refuse
    done = client.run("watch")
    assert done.returncode == exits
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_wrong_in_an_expression_is_pointed_at(daemon, client):
    def refuse(context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "filter.expression, column 9: no such field")
        yield

    daemon.watch = refuse
    done = client.run("watch", "--filter", "request.hots == 'x'")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == ["  request.hots == 'x'", "          ^"]
    assert daemon.requests[0].filter.expression == "request.hots == 'x'"
