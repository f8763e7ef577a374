"""Starting, reloading and stopping: what the daemon says, to whom, and with which exit code.

Every daemon here is scoped to its lab even where it is not meant to come up, so that a check that fails
attaches to nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from tests.support.daemon import PYTHON, Daemon
from tests.support.lab import REPOSITORY, Lab
from tests.support.servers import Nginx


def spliffd(lab: Lab, *arguments: str, prefix: tuple[str, ...] = (), cwd: Path = REPOSITORY, **env: str):
    """Runs spliffd to its end, in the lab's scope."""
    scope = [] if {"doctor", "config", "--version", "--help"} & set(arguments) else lab.scope
    return subprocess.run(
        [*prefix, PYTHON, "-m", "spliffd", "--socket", str(lab.folder / "other.sock"), *scope, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        env={**os.environ, **env},
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """The one line of an error, with its exit code."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("spliffd: ")
    for word in words:
        assert word in lines[0]
    print(f"exit {code}: {lines[0]}")
    return lines[0]


def config(lab: Lab, text: str) -> str:
    file = lab.folder / "test.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = true", ("colour", "spliffd config show")),
        ("[capture]\nrings = 3", ("rings", "$.capture", "spliffd config show")),
        ('[capture]\nworkers = "two"', ("$.capture.workers", "int")),
        ("[capture]\nring_mib = 3", ("capture.ring_mib is 3", "power of two")),
        ("[capture]\nworkers = 0", ("capture.workers is 0", "1 to 16")),
        ('[capture]\nunwatched = "never"', ("capture.unwatched", '"off"')),
        ('[metrics]\nlisten = "9469"', ("metrics.listen", "127.0.0.1:9469")),
        ("debug = yes", ("not valid TOML", "line 1")),
    ],
)
def test_a_configuration_that_is_wrong_names_the_key(lab: Lab, text: str, words: tuple[str, ...]):
    line = refused(spliffd(lab, "--config", config(lab, text)), 2, *words)
    assert "test.toml" in line


def test_a_configuration_that_cannot_be_read(lab: Lab):
    refused(spliffd(lab, "--config", str(lab.folder / "none.toml")), 2, "none.toml: no such file", "--config")
    refused(spliffd(lab, "--config", str(lab.folder)), 2, str(lab.folder), "Is a directory")
    (lab.folder / "latin.toml").write_bytes(b"# caf\xe9\n")
    refused(spliffd(lab, "--config", str(lab.folder / "latin.toml")), 2, "latin.toml", "byte 5", "UTF-8")


@pytest.mark.parametrize("address", ["9469", "127.0.0.1:", "127.0.0.1:99999", ":80", "on"])
def test_a_metrics_address_that_is_none(lab: Lab, address: str):
    refused(spliffd(lab, "--metrics", address), 2, "metrics.listen", address, "127.0.0.1:9469")


def test_a_metrics_address_of_another_host_or_taken(lab: Lab):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            spliffd(lab, "--metrics", f"127.0.0.1:{port}"),
            1,
            f"127.0.0.1:{port}: Address already in use – free",
        )
    refused(spliffd(lab, "--metrics", "192.0.2.1:9469"), 1, "192.0.2.1:9469", "metrics.listen")
    refused(
        spliffd(lab, "--metrics", "no.such.host.invalid:9469"), 1, "no.such.host.invalid", "metrics.listen"
    )


def test_a_second_daemon_on_the_same_socket(lab: Lab):
    first = Daemon(lab)
    second = spliffd(lab, "--socket", str(first.socket), "--metrics", "off")
    refused(second, 4, str(first.socket), "spliffctl status", "--socket")
    assert first.pids().keys() == {"supervisor", "worker 0", "api"}  # and the first one did not notice
    first.stop()


def test_a_socket_where_none_can_be(lab: Lab):
    refused(spliffd(lab, "--socket", "/proc/nowhere/spliffd.sock", "--metrics", "off"), 1, "/proc/nowhere")


def test_without_root(lab: Lab):
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    refused(spliffd(lab, "--metrics", "off", prefix=prefix), 3, "root", "65534", "sudo")


def test_a_host_without_type_information(lab: Lab):
    done = spliffd(lab, "--metrics", "off", SPLIFF_BTF=str(lab.folder / "none"))
    refused(done, 3, "BTF", str(lab.folder / "none"), "CONFIG_DEBUG_INFO_BTF")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise ImportError('no bcc here')\n", ("BCC for Python is not installed", "python3-bpfcc")),
        ("SYMPTOM = 1\n", ("not the eBPF compiler", "pip uninstall bcc", "python3-bpfcc")),
    ],
    ids=["missing", "of another name"],
)
def test_a_host_without_bcc(lab: Lab, module: str, words: tuple[str, ...]):
    copy = lab.folder / "copy"
    for part in ("spliffd", "bpf"):
        shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (copy / "bcc.py").write_text(module)
    refused(spliffd(lab, "--metrics", "off", cwd=copy), 3, *words)


def test_a_scope_that_is_none(lab: Lab):
    def run(option: str, value: str) -> subprocess.CompletedProcess[str]:
        return spliffd(lab, "--metrics", "off", option, value)

    refused(run("--scope-cgroup", f"{lab.cgroup}/none"), 2, f"{lab.cgroup}/none", "No such file", "cgroup v2")
    refused(run("--scope-cgroup", str(lab.folder)), 2, str(lab.folder), "not a cgroup v2", "findmnt")
    refused(run("--scope-cgroup", f"{lab.cgroup}/cgroup.procs"), 2, "cgroup.procs", "Not a directory")
    refused(run("--scope-exclude-cgroup", "/nowhere"), 2, "/nowhere")
    refused(run("--scope-user", "nobody-of-that-name"), 2, "no user nobody-of-that-name", "id")
    version_1 = Path("/sys/fs/cgroup/cpu")
    if version_1.is_dir() and not (version_1 / "cgroup.controllers").exists():
        refused(run("--scope-cgroup", str(version_1)), 2, "not a cgroup v2 directory")


@pytest.mark.parametrize("key", ["user", "group"])
def test_an_account_that_is_none(lab: Lab, key: str):
    file = config(lab, f'[access]\n{key} = "nobody-of-that-name"')
    refused(spliffd(lab, "--metrics", "off", "--config", file), 3, "nobody-of-that-name")


def test_arguments_that_are_none(lab: Lab):
    done = spliffd(lab, "--colour")
    assert done.returncode == 2
    assert "unrecognized arguments: --colour" in done.stderr


def test_config_check_and_show(lab: Lab):
    text = '[capture]\nring_mib = 8\n[scope]\npaths = ["/opt/*", "/srv/a\\"b"]\n'
    assert spliffd(lab, "--config", config(lab, text), "config", "check").stdout == "configuration is valid\n"
    refused(spliffd(lab, "--config", config(lab, "x = 1"), "config", "check"), 2, "x")

    shown = spliffd(lab, "--config", config(lab, text), "config", "show")
    assert shown.returncode == 0
    values = tomllib.loads(shown.stdout)
    assert values["capture"]["ring_mib"] == 8
    assert values["scope"]["paths"] == ["/opt/*", '/srv/a"b']
    assert values["metrics"]["listen"] == "127.0.0.1:9469"  # defaults are shown too
    # What is shown is a configuration again.
    again = spliffd(lab, "--config", config(lab, shown.stdout), "config", "show")
    assert again.stdout == shown.stdout


def test_version_help_and_doctor(lab: Lab):
    from spliffd import __version__

    assert spliffd(lab, "--version").stdout == f"spliffd {__version__}\n"
    told = spliffd(lab, "--help")
    assert told.returncode == 0
    *_, heading, last = told.stdout.rstrip().split("\n\n")[-1].split("\n", 1)
    assert heading == "examples:"
    assert "sudo spliffd doctor" in last
    assert [line for line in told.stdout.splitlines() if len(line) >= 80] == []

    report = spliffd(lab, "doctor")
    assert report.returncode == 0, report.stdout
    assert "missing" not in {line.split()[0] for line in report.stdout.splitlines()}
    assert spliffd(lab, "doctor", SPLIFF_BTF="/nonexistent").returncode == 1


# ---- what systemd is told -----------------------------------------------------------------------


class ServiceManager:
    """The receiving end of sd_notify(3): every datagram with its time."""

    def __init__(self, lab: Lab) -> None:
        self.path = str(lab.folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.told: list[tuple[float, dict[str, str]]] = []

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.path, **more}

    def read(self, seconds: float) -> dict[str, str] | None:
        self._socket.settimeout(max(0.001, seconds))
        try:
            text = self._socket.recv(65536).decode()
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in text.splitlines())
        self.told.append((time.monotonic(), message))
        return message

    def wait(self, key: str, seconds: float = 30.0) -> dict[str, str]:
        """The next datagram that says ``key``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self.read(left)
            if message is not None and key in message:
                return message
        raise TimeoutError(f"no {key} within {seconds} s; heard {self.told}")

    def silence(self, key: str, seconds: float) -> bool:
        """Whether nothing says ``key`` for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self.read(left)
            if message is not None and key in message:
                return False
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(lab: Lab):
    manager = ServiceManager(lab)
    yield manager
    manager.close()


def test_ready_is_said_when_probes_are_attached(lab: Lab, manager: ServiceManager):
    Nginx(lab)  # its libssl is there before the daemon

    def started() -> tuple[Daemon, dict[str, str], float]:
        manager.told.clear()
        began = time.monotonic()
        daemon = Daemon(lab, wait=False, env=manager.environment())
        message = manager.wait("READY", 60)
        return daemon, message, time.monotonic() - began

    daemon, message, took = started()
    if took >= 10:  # it compiled its programs beside others that want the processors: now it has them
        daemon.stop()
        manager.wait("STOPPING")
        daemon, message, took = started()
    attached = [line for line in daemon.text().splitlines() if "attached path=" in line]
    kinds = {
        line.partition("\t")[2]
        for fd in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir()
        for line in fd.read_text().splitlines()
        if line.startswith("link_type:")
    }
    print(f"ready after {took:.2f} s; links: {sorted(kinds)}; STATUS={message['STATUS']}")

    assert took < 10
    assert any(f"{lab.libraries}/libssl.so.3" in line for line in attached), daemon.text()
    assert "cgroup" in kinds
    assert kinds & {"uprobe_multi", "perf_event"}
    assert message["READY"] == "1"
    assert re.match(r"[12] libraries probed, 0 exchanges", message["STATUS"])  # libcrypto is probed, too
    assert [told for _, told in manager.told if "READY" in told] == [message]
    daemon.stop()
    assert manager.wait("STOPPING")["STOPPING"] == "1"


@pytest.mark.parametrize("name", ["worker 0", "api"])
def test_the_watchdog_hears_of_a_child_that_hangs(lab: Lab, manager: ServiceManager, name: str):
    daemon = Daemon(lab, wait=False, env=manager.environment(WATCHDOG_USEC="2000000"))
    manager.wait("READY")

    def three_signs_in_time() -> bool:
        before = time.monotonic()
        try:
            for _ in range(3):
                assert manager.wait("WATCHDOG", 2.0)["WATCHDOG"] == "1"  # never later than systemd allows
        except TimeoutError:
            return False
        print(f"{name}: 3 signs of life in {time.monotonic() - before:.1f} s")
        return True

    # The machine may stand still for a second once, hardly three times.
    assert any(three_signs_in_time() for _ in range(3))

    child = daemon.pids()[name]
    os.kill(child, signal.SIGSTOP)
    # Signs sent before the stop may still wait here; one a second would never leave 2.5 s of silence.
    assert any(manager.silence("WATCHDOG", 2.5) for _ in range(5))
    os.kill(child, signal.SIGCONT)
    manager.wait("WATCHDOG")
    assert daemon.pids()[name] == child
    daemon.stop()


def test_a_watchdog_meant_for_another_process_is_not_fed(lab: Lab, manager: ServiceManager):
    env = manager.environment(WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    daemon = Daemon(lab, wait=False, env=env)
    manager.wait("READY")
    assert manager.silence("WATCHDOG", 1.0)
    daemon.stop()


def test_reload(lab: Lab, manager: ServiceManager):
    daemon = Daemon(lab, config="debug = false\n", wait=False, env=manager.environment())
    manager.wait("READY")
    file = lab.folder / "spliffd.toml"

    def reload(text: str) -> str:
        file.write_text(text)
        known = len(daemon.text())
        os.kill(daemon.process.pid, signal.SIGHUP)
        begun = manager.wait("RELOADING")
        assert begun["RELOADING"] == "1"
        assert int(begun["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert manager.wait("READY")["READY"] == "1"
        return daemon.text()[known:]

    log = reload("colour = 1\n")
    assert "reload refused, the old configuration stays" in log
    assert "colour" in log
    assert "error" in log
    log = reload("debug = true\n[capture]\nring_mib = 8\n")
    assert "reloaded" in log
    assert "take effect with a restart" in log
    assert "capture" in log
    file.unlink()
    assert "no such file" in reload_without(daemon, manager)
    assert daemon.process.poll() is None
    daemon.stop()


def reload_without(daemon: Daemon, manager: ServiceManager) -> str:
    known = len(daemon.text())
    os.kill(daemon.process.pid, signal.SIGHUP)
    manager.wait("RELOADING")
    manager.wait("READY")
    return daemon.text()[known:]
