"""The service is restarted, hung, killed and starved of memory: it comes back and captures."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.vm.inside.guest import (
    UNIT,
    fetch,
    figure,
    is_ready,
    journal,
    metric,
    now,
    pid_of,
    run,
    serve,
    sh,
    show,
    wait_for,
    watching,
)

START_SECONDS = 240
"""Of a start under emulation, on a busy host; 8 s on a quiet one."""
WATCHDOG_SECONDS = 10
GROUP = Path("/sys/fs/cgroup/system.slice") / UNIT


@pytest.fixture(scope="module", autouse=True)
def server():
    made = serve("recovery")
    yield "https://127.0.0.1"
    made.kill()
    made.wait()


class Load:
    """Requests in connections of their own, with pauses as long as they take; none may fail."""

    def __init__(self, server: str) -> None:
        self._url = f"{server}/load?[1-10]"
        self._stop = threading.Event()
        self.count = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                _, told = fetch(self._url, "-H", "Connection: close")
                assert {line.split()[0] for line in told.splitlines()} == {"200"}
                self.count += 10
                self._stop.wait(time.monotonic() - began)
        except BaseException as error:
            self.error = error

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(60)
        assert self.error is None, self.error
        return self.count


def captures(server: str, name: str) -> None:
    """A watcher that comes now sees what is said now."""
    with watching("--path", f"/{name}*") as watch:
        fetch(f"{server}/{name}?[1-7]")
        assert len(watch.wait(7)) == 7


def test_restarted_under_load(server):
    sh(f"mkdir -p /run/systemd/system/{UNIT}.d; "
       f"printf '[Service]\\nWatchdogSec={WATCHDOG_SECONDS}\\n' > /run/systemd/system/{UNIT}.d/test.conf; "
       "systemctl daemon-reload")  # fmt: skip
    load = Load(server)
    began = time.monotonic()
    run("systemctl", "restart", UNIT)
    taken = time.monotonic() - began
    assert is_ready()
    captures(server, "restarted")
    count = load.stop()
    assert count >= 20
    figure("restart under load", f"{taken:.1f} s, {count} requests meanwhile, none failed; captures at once")
    wait_for(lambda: "Deactivated successfully" in journal(), 60, "a clean end")


def test_a_daemon_that_hangs_is_killed_and_comes_back(server):
    restarts, main = int(show("NRestarts")), pid_of("supervisor")
    since, began = now(), time.monotonic()
    os.kill(main, signal.SIGSTOP)
    wait_for(lambda: int(show("NRestarts")) > restarts, 4 * WATCHDOG_SECONDS + 30, "the watchdog")
    killed = time.monotonic() - began
    wait_for(is_ready, START_SECONDS, "ready again")
    assert "Watchdog timeout" in journal("--since", since)
    assert pid_of("supervisor") != main
    captures(server, "watchdog")
    figure("watchdog", f"a stopped daemon is gone after {killed:.1f} s (WatchdogSec={WATCHDOG_SECONDS} here), "
           f"ready again after {time.monotonic() - began:.1f} s")  # fmt: skip
    sh(f"rm -r /run/systemd/system/{UNIT}.d; systemctl daemon-reload")


def test_the_supervisor_is_killed(server):
    main, restarts = pid_of("supervisor"), int(show("NRestarts"))
    children = [pid_of("worker"), pid_of("api")]
    began = time.monotonic()
    run("systemctl", "kill", "--signal=KILL", "--kill-who=main", UNIT)
    wait_for(lambda: int(show("NRestarts")) > restarts, 120, "a restart by systemd")
    for pid in children:
        assert not Path(f"/proc/{pid}").exists() or pid not in (pid_of("worker"), pid_of("api"))
    wait_for(is_ready, START_SECONDS, "ready again")
    assert pid_of("supervisor") != main
    captures(server, "supervisor-killed")
    figure("kill -9 of the supervisor", f"ready again after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("part", ["worker", "api"])
def test_a_child_is_killed(server, part):
    main, old = pid_of("supervisor"), pid_of(part)
    began = time.monotonic()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: pid_of(part) not in (0, old), 120, f"another {part}")
    with contextlib.suppress(OSError):  # nobody answers while the api is away
        metric("spliff_subscribers_total")
    wait_for(answers, 120, "an answer")
    captures(server, f"{part}-killed")
    assert (pid_of("supervisor"), is_ready()) == (main, True)
    figure(
        f"kill -9 of the {part}", f"captures again after {time.monotonic() - began:.1f} s, the daemon stays"
    )


@pytest.mark.parametrize("busy", [False, True], ids=["at-rest", "while-asked"])
def test_the_inspector_is_killed(server, tmp_path, busy):
    """It comes when a library has content that was not met before; the next such library has another one."""
    main, began = pid_of("supervisor"), time.monotonic()
    with contextlib.ExitStack() as holders:
        old = copied_library(tmp_path / "before", b"before" + busy * b"-busy")
        hold(holders, old)
        wait_for(lambda: is_attached(old), 120, f"{old} attached")
        inspector = pid_of("inspector")
        assert inspector
        os.kill(inspector, signal.SIGSTOP if busy else signal.SIGKILL)
        new = copied_library(tmp_path / "after", b"after" + busy * b"-busy")
        hold(holders, new)
        if busy:
            time.sleep(2)  # by now it was asked
            assert not is_attached(new)
            os.kill(inspector, signal.SIGKILL)
        wait_for(lambda: is_attached(new), 120, f"{new} attached")
        with watching("--comm", "curl") as watch, pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_LIBRARY_PATH", str(new.parent))
            fetch(f"{server}/inspected?[1-7]")
            assert len(watch.wait(7)) == 7
    assert (pid_of("supervisor"), is_ready()) == (main, True)
    assert pid_of("inspector") not in (0, inspector)
    figure(f"kill -9 of the inspector {'while asked' if busy else 'at rest'}",
           f"the next library is probed; {time.monotonic() - began:.1f} s with both")  # fmt: skip


def copied_library(folder: Path, mark: bytes) -> Path:
    """libssl with other content: what stands behind an ELF file's end is nobody's."""
    folder.mkdir()
    source = next(Path("/usr/lib").glob("*/libssl.so.3"))
    copy = folder / source.name
    copy.write_bytes(source.read_bytes() + mark)
    return copy


def hold(holders: contextlib.ExitStack, library: Path) -> None:
    """A process that has loaded it, until the end."""
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", "import ssl, time; time.sleep(600)"],
        env={"LD_LIBRARY_PATH": str(library.parent)},
    )
    holders.callback(process.wait)
    holders.callback(process.kill)


def is_attached(library: Path) -> bool:
    lines = run("spliffctl", "libraries", "-o", "json").splitlines()
    listed = [json.loads(line)["library"] for line in lines]
    return any(one["path"] == str(library) and one["state"] == "attached" for one in listed)


def answers() -> bool:
    with contextlib.suppress(OSError):
        return metric("spliff_subscribers_total") >= 0
    return False


def test_out_of_memory(server):
    """The cgroup's limit goes below what is used: the kernel kills, and what it killed comes back."""
    since = now()
    used = sum(
        int(line.split()[1])
        for line in (GROUP / "memory.stat").read_text().splitlines()
        if line.startswith("anon ")
    )
    began = time.monotonic()
    run("systemctl", "set-property", "--runtime", UNIT, f"MemoryMax={used * 3 // 4}", "MemorySwapMax=0")
    wait_for(lambda: killed(since), 60, "the kernel kills")
    run("systemctl", "set-property", "--runtime", UNIT, "MemoryMax=infinity")
    wait_for(
        lambda: is_ready() and pid_of("worker") and pid_of("api") and answers(),
        START_SECONDS,
        "all parts again",
    )
    captures(server, "out-of-memory")
    figure("out of memory", f"the kernel killed {', '.join(killed(since))}; captures again after "
           f"{time.monotonic() - began:.1f} s")  # fmt: skip


def killed(since: str) -> list[str]:
    """What the kernel killed for memory, by name."""
    told = run("journalctl", "--no-pager", "--output=cat", "--dmesg", "--since", since, code=None)
    return re.findall(r"Memory cgroup out of memory: Killed process \d+ \((.+?)\)", told)
