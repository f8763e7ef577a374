"""spliffctl as system tests use it: wait until it watches, end it, read its JSON."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.lab import wait_for


def watchers(daemon: Daemon, count: int) -> None:
    """Until so many watch."""
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == count, 30, f"{count} watchers")


def printing(daemon: Daemon, file: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A client that prints into a file, where a test sees what it has got so far."""
    with file.open("wb") as out:
        return daemon.client(*arguments, stdout=out)


def interrupted(client: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Ctrl-C; what it printed."""
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=30)
    assert client.returncode == 130, err
    return (out or b"").decode(), err.decode()


def exchanges(text: str) -> list[dict]:
    return [item["exchange"] for item in map(json.loads, text.splitlines()) if "exchange" in item]
