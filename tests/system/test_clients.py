"""docs/clients.md is true: a stranger's clients, with the contract and the page alone, see what curl says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab, wait_for
from tests.support.servers import Nginx

PAGE = (REPOSITORY / "docs/clients.md").read_text()
SOCKET = "/run/spliff/spliffd.sock"
NODE_MODULES = REPOSITORY / ".venv/node/node_modules"
GRPCURL = REPOSITORY / ".venv/bin/grpcurl"


def blocks(language: str, daemon: Daemon) -> list[str]:
    """The page's blocks of a language, with the lab's socket instead of the host's."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return [block.replace(SOCKET, str(daemon.socket)) for block in found]


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder that holds the contract and nothing of this project's code."""
    (tmp_path / "proto").mkdir()
    shutil.copy(REPOSITORY / "proto/spliff.proto", tmp_path / "proto")
    return tmp_path


class Client:
    """A program under test, whose lines are read as they come."""

    def __init__(self, lab: Lab, folder: Path, *command: str | Path) -> None:
        self.out = folder / "out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=folder, stdout=out, stderr=subprocess.STDOUT,
                env={"PATH": f"{GRPCURL.parent}:/usr/bin:/bin", "HOME": str(folder)},
            )  # fmt: skip
        lab.processes.append(self.process)

    def text(self) -> str:
        return self.out.read_text()

    def wait_for(self, text: str) -> None:
        def there() -> bool:
            assert self.process.poll() in (None, 0), self.text()
            return text in self.text()

        wait_for(there, 60, f"{text!r} from the client")


def curls(lab: Lab, server: Nginx) -> list[int]:
    """Three requests by three processes."""
    pids = []
    for n in range(3):
        process = lab.start("curl", "-sk", "-o", "/dev/null", server.url(f"/hello?{n}"))
        assert process.wait(60) == 0
        pids.append(process.pid)
    return pids


def test_twenty_lines_of_python(lab: Lab, daemon: Daemon, server: Nginx, stranger: Path):
    (program,) = blocks("python", daemon)
    assert len(program.splitlines()) <= 20
    (stranger / "client.py").write_text(program)
    made = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", "--python_out=.", "--grpc_python_out=."]
    subprocess.run([*made, "proto/spliff.proto"], cwd=stranger, check=True)
    client = Client(lab, stranger, sys.executable, "client.py")
    client.wait_for("watching\n")
    pids = curls(lab, server)
    for n, pid in enumerate(pids):
        client.wait_for(f"{pid} GET /hello?{n} 200 SOCKET_NESTED\n")
    assert len(client.text().splitlines()) == 4  # nginx's own exchanges are filtered out, nothing was lost


def test_node(lab: Lab, daemon: Daemon, server: Nginx, stranger: Path):
    (program,) = blocks("js", daemon)
    (stranger / "client.js").write_text(program)
    (stranger / "node_modules").symlink_to(NODE_MODULES)
    client = Client(lab, stranger, "node", "client.js")
    client.wait_for("watching\n")
    for n, pid in enumerate(curls(lab, server)):
        client.wait_for(f"{pid} GET /hello?{n} 200\n")


def test_grpcurl(lab: Lab, daemon: Daemon, server: Nginx, stranger: Path):
    info, interfaces, watch = blocks("sh", daemon)
    for block, wanted in ((info, "kernel"), (interfaces, "interfaces")):
        done = subprocess.run(
            ["sh", "-c", block],
            capture_output=True,
            check=False,
            env={"PATH": f"{GRPCURL.parent}:/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr.decode()
        assert wanted in json.loads(done.stdout)
    client = Client(lab, stranger, "sh", "-c", f"exec {watch}")
    client.wait_for('"started"')
    for n, pid in enumerate(curls(lab, server)):
        client.wait_for(f'"path": "/hello?{n}"')
        client.wait_for(f'"pid": {pid}')
