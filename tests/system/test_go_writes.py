"""A Go program's Write that returns while a Read on another processor reports it: nothing twice, nothing mixed up.

The window is a microsecond wide, or as long as a hypervisor likes. Here the sources are changed to make it 60.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support import golang
from tests.support.daemon import Daemon
from tests.support.lab import REPOSITORY, Lab
from tests.support.shared import lab_of_the_file
from tests.system.test_go import TOOLCHAINS, Program, every_request_of_many_goroutines

pytestmark = pytest.mark.skipif(not TOOLCHAINS, reason=golang.WITHOUT)

CLAIMED = "  account(state, ACCOUNTED_BYTES);\n  u64 skipped = 0;\n"
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
def program(lab: Lab, daemon: Daemon) -> Program:
    return Program(lab, daemon, min(TOOLCHAINS))


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_every_request_is_seen_once_and_whole(lab: Lab, daemon: Daemon, program: Program, protocol: str):
    every_request_of_many_goroutines(lab, daemon, program, protocol, "keep")
