"""`list`, `show`, history in `watch`, and `--reconnect`, as processes against a fake daemon."""

from __future__ import annotations

import datetime as dt
import json
import signal
import time

import grpc
import pytest

from spliffd.pb import spliff_pb2 as pb

EPOCH = 1_795_000_000_000_000_000


def started(next_id: int, epoch: int = EPOCH) -> pb.WatchResponse:
    return pb.WatchResponse(items=[pb.Item(started=pb.Started(next_id=next_id, epoch=epoch))])


def wait_for(condition, what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_list_prints_ids_and_losses_and_ends(daemon, client, build):
    def answer(context):
        yield started(7)
        yield pb.WatchResponse(
            items=build.items(
                build.exchange(7), pb.Loss(stage="history", reason="evicted", count=3), build.exchange(8)
            )
        )

    daemon.watch = answer
    done = client.run("list", "-n", "2", "--status", "2xx", "--filter", "true", "--utc")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["7", "!!", "8"]
    assert "GET https://api.example.com/users 200" in lines[0]
    request = daemon.requests[0]
    assert (request.last, request.follow, request.HasField("follow")) == (2, False, True)
    assert (request.filter.expression, len(request.filter.statuses)) == ("true", 1)
    lines = client.run("list", "-o", "json").stdout.splitlines()
    assert [list(json.loads(line)) for line in lines] == [["exchange"], ["loss"], ["exchange"]]


@pytest.mark.parametrize(
    ("arguments", "last", "ago"),
    [([], 50, 0), (["--since", "10m"], 0, 600), (["--since", "1h30m", "-n", "5"], 5, 5400)],
)
def test_how_much_of_history(daemon, client, arguments, last, ago):
    daemon.watch = lambda context: iter([started(1)])
    assert client.run("list", *arguments).returncode == 0
    request = daemon.requests[0]
    assert request.last == last
    assert (request.since_time_ns != 0) is bool(ago)
    if ago:
        assert 0 <= time.time() - ago - request.since_time_ns / 1e9 < 60


def test_a_time_of_day_is_local(daemon, client):
    daemon.watch = lambda context: iter([started(1)])
    done = client.run("watch", "--since", "2026-11-22T12:00", "--no-follow", env={"TZ": "Etc/GMT-2"})
    assert done.returncode == 0
    at = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
    assert daemon.requests[0].since_time_ns == int(at.timestamp()) * 10**9


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["watch", "--no-follow"], "--since or --last"),
        (["watch", "--since", "yesterday"], "is no time"),
        (["watch", "--last", "0"], "not a number from 1"),
        (["watch", "--field", "request.path"], "-o json"),
        (["show", "x"], "not a number"),
    ],
)
def test_what_cannot_be_meant(client, daemon, arguments, why):
    done = client.run(*arguments)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


def test_show_prints_everything_and_quotes_it(daemon, client, build):
    exchange = build.exchange(9)
    exchange.request.headers.add(name="User-Agent", value="curl\x1b[31m")
    exchange.request.headers.add(name="Cookie", masked=pb.Masked(length=9, hash="ab12"))
    exchange.response.body, exchange.response.body_size = b"kept", 1234
    daemon.get_exchange = lambda request, context: pb.GetExchangeResponse(
        exchange=exchange, epoch=request.epoch
    )
    done = client.run("show", "9", "--utc")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for text in (
        "User-Agent: curl\\x1b[31m", "Cookie: ***(9:ab12)", "    kept", "1,230 body bytes not kept",
        "timing", "SOCKET_NESTED, xdp:eth0", "openssl, TLSv1.3", "exe /usr/bin/curl", "cookie 0x8000000000000005",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert client.run("show", "9", "--body", "response").stdout == "kept"
    assert json.loads(client.run("show", "9", "-o", "json").stdout)["exchange"]["id"] == "9"


def test_an_exchange_that_is_gone_is_told(daemon, client):
    def gone(request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "history has no exchange 9")

    daemon.get_exchange = gone
    done = client.run("show", "9")
    assert (done.returncode, "history has no exchange 9" in done.stderr) == (2, True)


def test_a_broken_stream_is_resumed_behind_the_last_exchange(daemon, client, build, tmp_path):
    """Two breaks: within the epoch, then with another one. Parts of the first stream are forgotten."""
    part = pb.BodyPart(part_key=5, response=True, offset=0, data=b"old")
    last = build.exchange(1, part_key=5)
    last.response.body, last.response.body_size = b"new", 3
    streams = [
        [started(4), pb.WatchResponse(items=build.items(build.exchange(4), build.exchange(5), part))],
        [started(6), pb.WatchResponse(items=build.items(build.exchange(6)))],
        [
            started(7),
            pb.WatchResponse(items=build.items(pb.Loss(stage="api", reason="restart", count=1))),
            started(1, EPOCH + 1),
            pb.WatchResponse(items=build.items(last)),
        ],
    ]

    def answer(context):
        number = len(daemon.requests)
        yield from streams[number - 1]
        if number < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
        daemon.hold(context)

    daemon.watch = answer
    out = tmp_path / "out"
    with out.open("w") as file:
        process = client.start("watch", "--reconnect", "-b", "--last", "2", "-o", "json", stdout=file)
    wait_for(lambda: out.read_text().count('"new"') or out.read_text().count('"bmV3"'), "the last exchange")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    told = process.stderr.read()

    items = [json.loads(line) for line in out.read_text().splitlines()]
    shown = [one["exchange"]["id"] if "exchange" in one else one["loss"]["reason"] for one in items]
    gap = "disconnected_but_for_exchanges"
    assert shown == ["4", "5", gap, "6", gap, "restart", "1"]
    assert items[-1]["exchange"]["response"]["body"] == "bmV3"
    assert int(items[2]["loss"]["last_time_ns"]) >= int(items[2]["loss"]["first_time_ns"])
    assert told.count("connected again") == 2
    first, second, third = daemon.requests
    assert (first.last, first.HasField("after_id")) == (2, False)
    assert (second.last, second.after_id, second.after_epoch) == (0, 5, EPOCH)
    assert (third.after_id, third.after_epoch) == (6, EPOCH)


def test_a_daemon_without_history_is_watched_live_again(daemon, client, build, tmp_path):
    def answer(context):
        number, request = len(daemon.requests), daemon.requests[-1]
        if request.HasField("after_id"):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "keeps no history")
        yield started(4)
        yield pb.WatchResponse(items=build.items(build.exchange(3 + number)))
        if number == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
        daemon.hold(context)

    daemon.watch = answer
    done = client.run("watch", "--reconnect", "-o", "json", "--count", "2")
    assert done.returncode == 0
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(one) for one in shown] == [["exchange"], ["loss"], ["exchange"]]
    assert shown[1]["loss"]["reason"] == "disconnected"


def test_a_daemon_that_was_never_there_is_not_waited_for(client):
    done = client.run("watch", "--reconnect")
    assert (done.returncode, "not running" in done.stderr) == (69, True)


def test_the_debug_log_is_switched_with_a_proof(daemon, client):
    done = client.run("debug", "on")
    # The fake daemon has no auth.sock: without a proof nothing is asked.
    assert (done.returncode, "auth.sock" in done.stderr) == (69, True)
