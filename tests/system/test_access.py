"""Who may watch: root and the socket's group, nobody else; and what the others are told."""

from __future__ import annotations

import grp
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.client import exchanges
from tests.support.daemon import PYTHON, Daemon
from tests.support.lab import REPOSITORY, Lab
from tests.support.servers import Nginx

STRANGER = 65534


def group() -> int:
    return grp.getgrnam("spliff").gr_gid


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client where a stranger can read it: the checkout, or a copy when that lies in a closed folder."""
    probe = subprocess.run(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", PYTHON, "-c", "import spliffctl"],
        cwd=REPOSITORY, capture_output=True, check=False,
    )  # fmt: skip
    if probe.returncode == 0:
        return REPOSITORY
    copy = tmp_path_factory.mktemp("client")
    for part in ("spliffctl", "spliffd"):
        shutil.copytree(REPOSITORY / part, copy / part)
    for path in (copy, *copy.parents):
        if path != Path("/tmp") and path.owner() == "root":
            path.chmod(path.stat().st_mode | 0o055)
    return copy


def as_user(folder: Path, daemon_socket: Path, *arguments: str, groups: tuple[int, ...] = ()):
    """Starts spliffctl as a user without privileges."""
    member = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    return subprocess.Popen(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", *member, "--inh-caps=-all", "--bounding-set=-all",
         "--no-new-privs", PYTHON, "-m", "spliffctl", "--socket", str(daemon_socket), *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_socket_belongs_to_root_and_the_group(daemon: Daemon):
    status = os.stat(daemon.socket)
    assert stat.S_ISSOCK(status.st_mode)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, group(), 0o660)
    lock = os.stat(f"{daemon.socket}.lock")
    assert (lock.st_uid, stat.S_IMODE(lock.st_mode)) == (0, 0o600)


def test_a_member_of_the_group_watches(lab: Lab, daemon: Daemon, readable: Path):
    server = Nginx(lab)
    client = as_user(
        readable, daemon.socket, "watch", "--count", "1", "--comm", "curl", "-o", "json", groups=(group(),)
    )
    lab.processes.append(client)
    while not daemon.stats()["spliff_subscribers"]:
        assert client.poll() is None, client.communicate()
    assert lab.run("curl", "-sk", server.url("/hello?member")).returncode == 0
    out, err = client.communicate(timeout=15)
    assert (client.returncode, err) == (0, "")
    (exchange,) = exchanges(out)
    assert exchange["request"]["path"] == "/hello?member"
    assert exchange["process"]["comm"] == "curl"

    for command in ("status", "stats", "libraries"):
        asked = as_user(readable, daemon.socket, command, groups=(group(),))
        out, err = asked.communicate(timeout=15)
        assert (asked.returncode, err) == (0, ""), command
        assert out


@pytest.mark.parametrize(
    "command", [("watch",), ("status",), ("stats",), ("libraries",), ("watch", "--", "true")]
)
def test_everybody_else_is_refused_in_one_line(daemon: Daemon, readable: Path, command: tuple[str, ...]):
    client = as_user(readable, daemon.socket, *command)
    out, err = client.communicate(timeout=15)
    assert (client.returncode, out) == (77, "")
    (line,) = err.splitlines()
    assert line == "spliffctl: you are not in group spliff: sudo usermod -aG spliff $USER, then log in again"
    print(line)


def test_another_group_may_be_configured(lab: Lab, readable: Path):
    daemon = Daemon(lab, config='[access]\ngroup = "nogroup"\n')
    assert os.stat(daemon.socket).st_gid == grp.getgrnam("nogroup").gr_gid
    member = as_user(readable, daemon.socket, "status", groups=(grp.getgrnam("nogroup").gr_gid,))
    assert member.wait(15) == 0
    # The process with the plaintext keeps its own user and group.
    api = Path(f"/proc/{daemon.pids()['api']}/status").read_text()
    assert f"Gid:\t{group()}\t" in api
    for pipe in (member.stdout, member.stderr):
        pipe.close()
    daemon.stop()


def test_no_daemon(lab: Lab, readable: Path):
    client = as_user(readable, lab.folder / "none.sock", "watch", groups=(group(),))
    out, err = client.communicate(timeout=15)
    assert (client.returncode, out) == (69, "")
    (line,) = err.splitlines()
    assert "spliffd is not running" in line
    assert "sudo systemctl start spliffd" in line
    print(line)


def test_no_process_that_holds_plaintext_can_be_dumped_or_attached_to(daemon: Daemon):
    """The kernel gives the files of a process that is not dumpable to root (proc(5)): no core, no ptrace by its user."""
    children = {name: pid for name, pid in daemon.pids().items() if name != "supervisor"}
    assert len(children) == 2
    for name, pid in children.items():
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t0" not in status, name
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0, name
