"""`spliffctl watch` as a process, against a fake daemon: what it prints, how it ends, with which code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
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


# ---- a command -----------------------------------------------------------------------------------


def test_the_command_starts_after_the_stream_and_its_status_is_returned(daemon, client, build, folder):
    marker = f"{folder}/pid"
    seen = []

    def watch(context):
        time.sleep(0.5)
        seen.append(os.path.exists(marker))
        yield pb.WatchResponse(items=build.items(pb.Started(next_id=1)))
        while not os.path.exists(marker):
            time.sleep(0.01)
        # Comes when the command has ended, within the grace: this daemon does not know Flush.
        time.sleep(0.1)
        yield pb.WatchResponse(items=build.items(build.exchange()))
        daemon.hold(context)

    daemon.watch = watch
    done = client.run("watch", "--", "sh", "-c", f"echo $PPID $$ > {marker}; exit 7")
    assert done.returncode == 7
    assert "→ GET https://api.example.com/users" in done.stdout
    assert seen == [False]
    with open(marker) as file:
        parent_and_command = [int(pid) for pid in file.read().split()]
    (request,) = daemon.requests
    assert request.filter == pb.Filter(ppids=parent_and_command)


def flushing(daemon, build, before_mark) -> list[pb.FlushRequest]:
    """The daemon's stream goes on with ``before_mark`` once it is flushed, and then says so."""
    asked: list[pb.FlushRequest] = []
    flushed = threading.Event()

    def flush(request):
        asked.append(request)
        flushed.set()

    def watch(context):
        yield pb.WatchResponse(items=build.items(pb.Started(next_id=1)))
        if flushed.wait(30):
            yield from before_mark()
            yield pb.WatchResponse(items=build.items(pb.Flushed()))
        daemon.hold(context)

    daemon.flush, daemon.watch = flush, watch
    return asked


def test_what_the_daemon_still_has_of_the_command_is_waited_for(daemon, client, build):
    def slowly():
        for number in range(1, 4):
            time.sleep(1)  # longer than any silence of a daemon that has nothing more to say
            yield pb.WatchResponse(items=build.items(build.exchange(number)))

    asked = flushing(daemon, build, slowly)
    done = client.run("watch", "-o", "json", "--", "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["exchange"]["id"] for line in done.stdout.splitlines()] == ["1", "2", "3"]
    (flush,), (request,) = asked, daemon.requests
    assert flush.flush_key == request.flush_key != 0


def test_a_daemon_that_cannot_say_so_is_told_and_not_waited_for(daemon, client, build):
    def flush(request):
        raise grpc.RpcError("the workers did not catch up")

    daemon.flush = flush
    done = client.run("watch", "--", "true")
    assert done.returncode == 0
    assert done.stderr.startswith("spliffctl: what the command said last may be missing: ")


def test_a_daemon_that_falls_silent_is_not_waited_for_for_ever(daemon, client):
    daemon.flush = lambda request: None
    impatient = (
        "import sys, spliffctl.stream as s; s.FLUSH_TIMEOUT_S = 0.5; from spliffctl.__main__ import main; "
    )
    command = [sys.executable, "-c", impatient + "sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run(
        [*command, *client.command("watch", "--", "true")[3:]],
        env=client.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "may be missing: nothing came for 0 s" in done.stderr


def test_a_command_killed_by_a_signal_exits_like_in_a_shell(daemon, client):
    assert client.run("watch", "--", "sh", "-c", "kill -TERM $$").returncode == 143


def test_a_command_has_the_signals_of_a_fresh_process(daemon, client):
    done = client.run("watch", "--", "sh", "-c", "trap; grep SigIgn /proc/$$/status")
    assert int(done.stdout.split()[-1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_the_output_of_a_command_stays_out_of_json(daemon, client):
    done = client.run("watch", "-o", "json", "--", "echo", "noise")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "noise\n")


def test_a_command_that_is_not_there(daemon, client):
    done = client.run("watch", "--", "/nonexistent/command")
    assert done.returncode == 127
    assert "cannot execute the command: No such file or directory" in done.stderr
    assert client.run("watch", "--", "/etc/passwd").returncode == 126


def test_a_command_never_starts_when_the_watch_is_refused(daemon, client, folder):
    def refuse(context):
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        yield

    daemon.watch = refuse
    done = client.run("watch", "--", "touch", f"{folder}/started")
    assert done.returncode == 77
    assert not os.path.exists(f"{folder}/started")


def test_a_command_that_goes_on_is_not_left_behind_by_ctrl_c(daemon, client, folder):
    watch = client.start("watch", "--", "sh", "-c", f"echo $$ > {folder}/pid; exec sleep 61")
    while not (os.path.exists(f"{folder}/pid") and os.path.getsize(f"{folder}/pid")):
        time.sleep(0.02)
    with open(f"{folder}/pid") as file:
        pid = int(file.read())
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    assert not os.path.exists(f"/proc/{pid}")


def test_the_stream_breaking_does_not_end_the_command_but_the_code_says_it(daemon, client, folder):
    watch = client.start(
        "watch", "--", "sh", "-c", f"echo x > {folder}/begun; sleep 1; echo y > {folder}/done"
    )
    while not os.path.exists(f"{folder}/begun"):
        time.sleep(0.02)
    daemon.stop()
    assert watch.wait(20) == 69
    assert os.path.exists(f"{folder}/done")
    assert watch.stderr.read().count("spliffctl: spliffd stopped") == 1


def test_what_is_wrong_in_an_expression_is_pointed_at(daemon, client):
    def refuse(context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "filter.expression, column 9: no such field")
        yield

    daemon.watch = refuse
    done = client.run("watch", "--filter", "request.hots == 'x'")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == ["  request.hots == 'x'", "          ^"]
    assert daemon.requests[0].filter.expression == "request.hots == 'x'"
