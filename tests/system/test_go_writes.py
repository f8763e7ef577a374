"""A Go program's Write that returns while a Read on another processor reports it: nothing twice, nothing mixed up.

The window is a microsecond wide, or as long as a hypervisor likes. Here the sources are changed to make it 60.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import golang
from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab
from tests.support.shared import lab_of_the_file
from tests.system.test_go import by_role, lost, wait_attached

REQUESTS = 211
SIZE = 9001
TOOLCHAINS = golang.toolchains()

pytestmark = pytest.mark.skipif(not TOOLCHAINS, reason=golang.WITHOUT)

CLAIMED = "  account(state);\n  u64 skipped = 0;\n"
"""Of go_writes.bpf.c: the Read has claimed the Write, and copied nothing yet."""
SLOWLY = """
  u64 until = bpf_ktime_get_ns() + 60000;
  for (u32 i = 0; i < 2000; i++)
    if (bpf_ktime_get_ns() > until)
      break;
"""

lab = lab_of_the_file("go-writes")


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    tree = lab.folder / "tree"
    for folder in ("spliffd", "bpf"):
        shutil.copytree(REPOSITORY / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = tree / "bpf" / "go_writes.bpf.c"
    text = source.read_text()
    assert text.count(CLAIMED) == 1
    source.write_text(text.replace(CLAIMED, SLOWLY + CLAIMED))
    made = Daemon(lab, tree=tree)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def program(lab: Lab) -> Path:
    version = min(TOOLCHAINS)
    return golang.build(TOOLCHAINS[version], lab.folder, f"go{version}", "-ldflags=-s -w")


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_every_request_is_seen_once_and_whole(lab: Lab, daemon: Daemon, program: Path, protocol: str):
    server = lab.start(program, "server", lab.certificate, lab.key, stdout=subprocess.PIPE)
    assert server.stdout is not None
    url = f"https://127.0.0.1:{int(server.stdout.readline())}"
    wait_attached(daemon, program)
    watch = daemon.watch(bodies=True)
    done = lab.run(program, "client", url, str(REQUESTS), str(SIZE), protocol, "keep")
    assert done.returncode == 0, done.stderr.decode()
    watch.wait_for(2 * REQUESTS)
    watch.settle()

    assert watch.losses == []
    assert lost(daemon) == {}
    wanted = sorted(f"/n/{number}?size={SIZE}" for number in range(REQUESTS))
    for role in ("client", "server"):
        seen = by_role(watch, role)
        assert sorted(one.request.path for one in seen) == wanted
        for one in seen:
            number = one.request.path.split("/")[2].split("?")[0]
            assert (one.response.status, one.completeness.state) == (200, "complete")
            assert watch.body(one, response=False) == f"{number},".encode() * (SIZE // 4)
            assert watch.body(one, response=True).endswith(b" " + b"s" * SIZE)
    watch.stop()
    server.terminate()
    server.wait()
