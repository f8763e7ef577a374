"""The ways that this machine's own kernel takes, as a column beside the virtual machines'.

Runs on the host what the machines' first session runs of it: the doctor, and a daemon in a lab that serves real
traffic on each way that the kernel would choose. Returns figures as ``report`` takes them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.lab import REPOSITORY
from tests.vm import report

FILES = ("tests/vm/ways/test_daemon.py",)


def ways(folder: Path, say: Callable[[str, str], None]) -> tuple[int, list[report.Figure]]:
    """Runs the tests, returns pytest's status and the figures; they and the JUnit file go into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "figures.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={folder}/junit-ways.xml",
         "-o", "junit_suite_name=vm-host-ways", "-o", "junit_family=xunit1", *FILES],
        cwd=REPOSITORY, env={**os.environ, "SPLIFF_FIGURES": str(figures)}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        say("host", line)
    return done.returncode, report.read(figures)
