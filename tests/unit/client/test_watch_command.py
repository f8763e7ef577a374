"""`spliffctl watch -- COMMAND` as a process, against a fake daemon: when it starts, what it waits for, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import grpc

from spliffd.pb import spliff_pb2 as pb


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
