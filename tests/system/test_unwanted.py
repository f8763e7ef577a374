"""HTTP/2 bodies that nobody wants, between real programs: not copied, and nothing of the exchanges is missing."""

from __future__ import annotations

import time
from hashlib import sha256
from random import Random

import pytest

from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab, say, wait_for
from tests.support.servers import Nginx
from tests.support.shared import daemon_of_the_file, lab_of_the_file

MIB = 1 << 20
LARGE = 64 * MIB + 7
SEVERAL = 12 * MIB + 1
RUN_MOST = MIB
"""As much is left out before it is told (bpf/frames.bpf.c)."""

lab = lab_of_the_file("unwanted")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def server(lab: Lab, daemon: Daemon) -> Nginx:
    server = Nginx(lab, http2=True)
    daemon.wait_attached()
    server.file("large.bin", Random(1).randbytes(LARGE))
    server.file("several.bin", bytes(SEVERAL))
    return server


def unwanted(daemon: Daemon) -> float:
    return daemon.stats()["spliff_unwanted_bytes_total"]


def ask(lab: Lab, *urls: str, more: tuple[str, ...] = ()) -> None:
    done = lab.run(
        "curl", "-sSk", "--http2", *more, *[part for url in urls for part in ("-o", "/dev/null", url)]
    )
    assert done.returncode == 0, done.stderr


def whole(watch: Watch, size: int, count: int) -> None:
    """So many exchanges came, nothing is missing of any."""
    watch.wait_for(count)
    watch.settle()
    assert watch.losses == []
    assert [one.response.body_size for one in watch.exchanges] == [size] * count
    assert {one.completeness.state for one in watch.exchanges} == {"complete"}
    assert {one.protocol for one in watch.exchanges} == {"http2"}


def test_a_large_download_is_hardly_copied(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch()
    before = unwanted(daemon)
    ask(lab, server.url("/large.bin"))
    whole(watch, LARGE, 2)
    watch.stop()
    spared = unwanted(daemon) - before

    say(f"{spared / 2 / LARGE:.1%} of {LARGE:,} bytes were not copied")
    assert spared > 2 * LARGE * 0.7
    assert daemon.stats()['spliff_lost_total{stage="worker",reason="gap"}'] == 0


def test_streams_that_take_turns_keep_their_sizes(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch()
    before = unwanted(daemon)
    ask(lab, *[server.url(f"/several.bin?n={n}") for n in range(6)], more=("--parallel",))
    whole(watch, SEVERAL, 12)
    watch.stop()

    share = (unwanted(daemon) - before) / 12 / SEVERAL
    say(f"{share:.1%} of six downloads at once were not copied")
    assert share > 0.5


def test_with_bodies_all_of_it_is_there(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch(bodies=True, body_limit=0)
    before = unwanted(daemon)
    ask(lab, server.url("/large.bin"), more=("--limit-rate", "40M"))
    whole(watch, LARGE, 2)
    expected = sha256((server.root / "large.bin").read_bytes()).digest()
    for one in watch.exchanges:
        assert sha256(watch.body(one, response=True)).digest() == expected
    watch.stop()

    assert unwanted(daemon) == before


def test_who_comes_for_bodies_in_the_middle_gets_the_next_one_whole(lab: Lab, daemon: Daemon, server: Nginx):
    heads = daemon.watch()
    before = unwanted(daemon)
    urls = [server.url("/large.bin"), server.url("/several.bin")]
    options = [part for url in urls for part in ("-o", "/dev/null", url)]
    curl = lab.start("curl", "-sSk", "--http2", "--limit-rate", "20M", *options)
    wait_for(lambda: unwanted(daemon) > before + MIB, 30, "bytes that nobody wants")
    watch = daemon.watch(bodies=True, body_limit=0)
    time.sleep(0.2)  # what was under way has come
    since = unwanted(daemon)
    assert curl.wait(60) == 0
    heads.wait_for(4)
    watch.wait_for(4)
    heads.settle()

    assert unwanted(daemon) == since
    assert heads.losses == []
    for one in watch.exchanges:
        large = one.request.path == "/large.bin"
        assert one.response.body_size == (LARGE if large else SEVERAL)
        if large:  # what came before anybody wanted it is not missing; what nobody had told of yet is
            assert one.completeness.missing_bytes <= RUN_MOST + 16384
            assert (one.completeness.state == "gap") == (one.completeness.missing_bytes > 0)
        else:
            assert one.completeness.state == "complete"
            assert watch.body(one, response=True) == bytes(SEVERAL)
    heads.stop()
    watch.stop()
