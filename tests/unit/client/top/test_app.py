"""The full-screen view, driven by textual's pilot against a daemon made of the contract."""

from __future__ import annotations

import asyncio
import base64
import os
import stat

import grpc
import pytest

from spliffctl.top.app import TopApp
from spliffctl.top.listing import ExchangeList
from spliffctl.top.pages import DetailPage, StatisticsPage
from spliffd.pb import spliff_pb2 as pb


async def until(pilot, condition, what: str) -> None:
    """Waits, generously, for what the stream or a key brings about."""
    deadline = asyncio.get_running_loop().time() + 30
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what}: {screen(pilot.app)}"
        await pilot.pause(0.02)


def screen(app: TopApp) -> str:
    """What is on the screen, as text."""
    return "\n".join(
        "".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()
    )


def words(app: TopApp) -> str:
    """The same as one line, as if nothing had been wrapped."""
    return " ".join(screen(app).split())


@pytest.fixture
def open_top(daemon):
    """Opens the view on a terminal of 80x24."""

    def run(line: str = ""):
        return TopApp(daemon.path, line, utc=True).run_test(size=(80, 24))

    return run


def many(build, first: int, last: int, **changes):
    return build.items(
        *(build.exchange(n, request__path=f"/item/{n}", **changes) for n in range(first, last + 1))
    )


async def test_exchanges_are_listed_and_followed(daemon, build, open_top):
    daemon.batches = [many(build, 1, 50), build.items(pb.Loss(count=7))]
    async with open_top() as pilot:
        await until(pilot, lambda: "50 exchanges | following | 7 lost" in screen(pilot.app), "status")
        shown = screen(pilot.app)
        assert "12:00:59 GET     200    294.3 ms  curl        api.example.com/item/50" in shown
        assert "item/31" in shown
        assert "item/20" not in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
        assert daemon.requests[0].bodies
        assert daemon.requests[0].body_limit == 16384


async def test_moving_stands_still_and_follow_goes_on(daemon, build, open_top):
    more = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch(context):
        yield pb.WatchResponse(items=many(build, 1, 100))
        asyncio.run_coroutine_threadsafe(more.wait(), loop).result(60)
        yield pb.WatchResponse(items=many(build, 101, 130))
        daemon.hold(context)

    daemon.watch = watch
    async with open_top() as pilot:
        await until(pilot, lambda: "item/100" in screen(pilot.app), "the first hundred")
        await pilot.press("up", "up")
        listing = pilot.app.query_one(ExchangeList)
        assert listing.row().exchange.id == 98
        more.set()
        await until(pilot, lambda: "paused, 30 newer" in screen(pilot.app), "thirty more")
        assert "item/130" not in screen(pilot.app)
        await pilot.press("home")
        assert listing.row().exchange.id == 1
        assert "item/1 " in screen(pilot.app)
        await pilot.press("pagedown")
        assert listing.row().exchange.id == 21
        await pilot.press("f")
        await until(pilot, lambda: "item/130" in screen(pilot.app), "the newest")
        await pilot.press("p")
        await until(pilot, lambda: "paused, 0 newer" in screen(pilot.app), "a pause")
        await pilot.press("p")
        await until(pilot, lambda: "following" in screen(pilot.app), "the pause's end")


async def test_detail_says_everything(daemon, build, open_top):
    exchange = build.exchange(
        request__method="POST",
        process__cmdline="curl -v",
        request__content_type="text/plain",
        request__body_size=6,
    )
    exchange.request.headers.add(name="accept", value="*/*\x1b[31m")
    exchange.request.headers.add(name="authorization").masked.CopyFrom(pb.Masked(length=9, hash="ab12"))
    exchange.request.body = b"hello!"
    daemon.batches = [build.items(exchange)]
    async with open_top() as pilot:
        await until(pilot, lambda: "1 exchange |" in screen(pilot.app), "the exchange")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, DetailPage), "the page")
        await pilot.pause()
        page = pilot.app.screen.query_one("#detail").content.plain
        for line in (
            "POST https://api.example.com/users",
            "  accept: */*\\x1b[31m",
            "  authorization: ***(9:ab12)",
            "    hello!",
            "RESPONSE 200",
            "  first byte   280.0 ms",
            "  total        294.3 ms",
            "  addresses    192.0.2.10:48372 → 198.51.100.25:443",
            "  protocol     http2, stream 1",
            "  path         xdp:eth0",
            "  command      curl (403410)",
            "  arguments    curl -v",
            "  method       SOCKET_NESTED",
            "  version      TLSv1.3",
        ):
            assert line in page.splitlines(), line
        assert "POST https://api.example.com/users" in screen(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, DetailPage), "the list")


async def test_the_filter_line_watches_anew(daemon, build, open_top):
    daemon.batches = [many(build, 1, 3)]
    async with open_top("--comm curl") as pilot:
        await until(pilot, lambda: "3 exchanges" in screen(pilot.app), "the exchanges")
        assert "filter: --comm curl" in screen(pilot.app)
        daemon.batches = [many(build, 7, 7)]
        await pilot.press("slash")
        pilot.app.query_one("#filter").value = "--status 5xx --host 'api.*'"
        await pilot.press("enter")
        await until(pilot, lambda: "1 exchange |" in screen(pilot.app), "the new watch")
        assert daemon.requests[0].filter == pb.Filter(comms=["curl"])
        assert daemon.requests[1].filter == pb.Filter(
            hosts=["api.*"], statuses=[pb.StatusRange(first=500, last=599)]
        )
        await pilot.press("slash")
        pilot.app.query_one("#filter").value = "duration_ns > 1s"
        await pilot.press("enter")
        await until(pilot, lambda: len(daemon.requests) == 3, "the third watch")
        assert daemon.requests[2].filter == pb.Filter(expression="duration_ns > 1s")


async def test_a_filter_that_cannot_be_is_told_where_it_is_typed(daemon, build, open_top):
    async with open_top() as pilot:
        await pilot.press("slash")
        pilot.app.query_one("#filter").value = "--status nine"
        await pilot.press("enter")
        await until(pilot, lambda: "is not a status" in screen(pilot.app), "the reason")
        await pilot.press("escape")
        await until(pilot, lambda: "is not a status" not in screen(pilot.app), "silence")
        assert len(daemon.requests) <= 1


async def test_a_filter_that_the_daemon_refuses(daemon, build, open_top):
    def watch(context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "filter.expression, column 3: no such field")
        yield

    daemon.watch = watch
    async with open_top("nonsense > 1") as pilot:
        await until(pilot, lambda: "column 3: no such field" in words(pilot.app), "the reason")


async def test_a_daemon_that_comes_back_is_watched_again(daemon, build, open_top):
    def watch(context):
        yield pb.WatchResponse(items=many(build, 1, 2))
        if len(daemon.requests) == 2:
            daemon.hold(context)

    daemon.watch = watch
    async with open_top() as pilot:
        await until(pilot, lambda: "4 exchanges | following" in words(pilot.app), "the second watch")


async def test_a_daemon_that_is_gone(daemon, build, open_top):
    daemon.batches = [many(build, 1, 2)]
    async with open_top() as pilot:
        await until(pilot, lambda: "2 exchanges" in words(pilot.app), "the exchanges")
        daemon.stop()
        await until(pilot, lambda: "is not running" in words(pilot.app), "the reason")
        assert "item/2" in screen(pilot.app)


async def test_copy_as_curl(daemon, build, open_top, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    daemon.batches = [build.items(build.exchange(17))]
    async with open_top() as pilot:
        await until(pilot, lambda: "1 exchange |" in screen(pilot.app), "the exchange")
        written = []
        monkeypatch.setattr(pilot.app._driver, "write", written.append)
        await pilot.press("c")
        await until(pilot, lambda: any("\x1b]52;c;" in text for text in written), "OSC 52")
        code = next(text for text in written if "\x1b]52;c;" in text).partition("\x1b]52;c;")[2].rstrip("\a")
        assert base64.b64decode(code).decode() == "curl \\\n  https://api.example.com/users\n"
        await pilot.press("w")
        path = tmp_path / "exchange-17.sh"
        await until(pilot, path.exists, "the file")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        await pilot.press("w")
        await until(
            pilot, lambda: "cannot write exchange-17.sh: File exists" in screen(pilot.app), "the reason"
        )
        assert path.read_text() == "curl \\\n  https://api.example.com/users\n"


async def test_the_statistics_page_asks_while_it_is_open(daemon, build, open_top):
    def answer(tied: int, untied: int) -> pb.GetStatsResponse:
        return pb.GetStatsResponse(
            text="Correlation\n  rate 99.9 %\x1b[2J",
            values={
                'spliff_exchanges_total{method="SOCKET_NESTED",wire="TC"}': tied,
                'spliff_exchanges_total{method="SOCKET_FD",wire="NONE"}': untied,
            },
        )

    daemon.stats = answer(300, 100)
    async with open_top() as pilot:
        await pilot.press("s")
        await until(pilot, lambda: "tied to a connection - " in words(pilot.app), "the first numbers")
        daemon.stats = answer(600, 200)
        await until(pilot, lambda: "tied to a connection 100.00 % █" in words(pilot.app), "a rate")
        assert "seen on the wire 75.00 % ▆" in words(pilot.app)
        assert isinstance(pilot.app.screen, StatisticsPage)
        assert "rate 99.9 %\\x1b[2J" in screen(pilot.app)
        await pilot.press("q")
        await until(pilot, lambda: not isinstance(pilot.app.screen, StatisticsPage), "the list")


async def test_the_statistics_page_says_who_may_not_see_them(daemon, open_top):
    daemon.stats = None
    async with open_top() as pilot:
        await pilot.press("s")
        await until(pilot, lambda: "refuses: GetStats tells of every user" in words(pilot.app), "the reason")


async def test_a_flood_is_bounded_and_keys_are_answered_meanwhile(daemon, build, open_top):
    total = 30_011
    paused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch(context):
        batch = many(build, 1, 1000, request__body=b"x" * 200)
        for first in range(0, total, 1000):
            for number, item in enumerate(batch, first + 1):
                item.exchange.id = number
            yield pb.WatchResponse(items=batch[: total - first])
            if first == 15_000:
                asyncio.run_coroutine_threadsafe(paused.wait(), loop).result(60)
        daemon.hold(context)

    daemon.watch = watch
    async with open_top() as pilot:
        history = pilot.app.history
        await until(pilot, lambda: history.total >= 16_000, "half of it")
        await pilot.press("p")
        await until(pilot, lambda: "paused" in screen(pilot.app), "a pause")
        paused.set()
        await until(pilot, lambda: f"paused, {total - 16_000:,} newer" in screen(pilot.app), "the rest")
        assert 10_000 <= len(history.live().rows) <= 11_000
        await pilot.press("f")
        await until(pilot, lambda: f"{total:,} exchanges | following" in screen(pilot.app), "all of it")
        assert history.live().rows[-1].exchange.id == total
