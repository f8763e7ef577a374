"""``spliffctl top`` in a real terminal of 80x24, with the real daemon and a real server."""

from __future__ import annotations

from tests.support.client import watchers
from tests.support.daemon import PYTHON, Daemon
from tests.support.lab import REPOSITORY, Lab, wait_for
from tests.support.servers import Nginx
from tests.support.terminal import Terminal


def test_list_detail_clipboard_statistics_and_the_way_out(lab: Lab, daemon: Daemon, server: Nginx, tmp_path):
    command = [str(PYTHON), "-m", "spliffctl", "--socket", str(daemon.socket), "top", "--comm", "curl"]
    with Terminal(str(tmp_path), command, cwd=str(REPOSITORY)) as terminal:
        terminal.until(lambda text: "following" in text, "the list")
        watchers(daemon, 1)
        for number in range(1, 4):
            lab.run("curl", "-sk", "-o", "/dev/null", server.url(f"/hello?n={number}"))
        terminal.until(lambda text: "3 exchanges | following" in text, "three exchanges")
        text = terminal.until(lambda text: "n=3" in text, "the third")
        lines = [line for line in text.splitlines() if "n=" in line]
        assert [line.split("?")[1] for line in lines] == ["n=1", "n=2", "n=3"]
        assert all("GET     200" in line and "curl" in line for line in lines)

        terminal.press("Up")
        terminal.until(lambda text: "paused" in text, "a pause")
        terminal.press("Enter")
        text = terminal.until(lambda text: "RESPONSE 200 OK" in text, "the detail")
        assert "n=2" in text.splitlines()[0]
        assert "hello world" in text
        terminal.press("c")
        wait_for(lambda: "n=2" in terminal.clipboard(), 30, "the clipboard")
        assert terminal.clipboard().startswith("curl \\\n")

        terminal.press("Escape")
        terminal.until(lambda text: "paused" in text, "the list again")
        terminal.press("s")
        text = terminal.until(lambda text: "tied to a connection" in text, "the statistics")
        assert "Application layer" in text
        terminal.press("q")
        terminal.until(lambda text: "paused" in text, "the list again")
        terminal.press("q")
        wait_for(lambda: terminal.ended() == "0", 30, "the end")
    watchers(daemon, 0)
