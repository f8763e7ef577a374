"""Many processes that have a TLS library and say nothing: what a busy host looks like to the daemon's start."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.lab import PYTHON, Lab

FORKER = r"""
import ctypes, os, signal, sys
count, libraries = int(sys.argv[1]), sys.argv[2:]
held = [ctypes.CDLL(path) for path in libraries]
children = []
for _ in range(count - 1):
    child = os.fork()
    if not child:
        signal.pause()
    children.append(child)
print("idle", flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
for child in children:
    os.waitpid(child, 0)
"""


def idle(lab: Lab, count: int, *libraries: Path) -> subprocess.Popen[bytes]:
    """So many processes of the lab, counting the one that is returned; they end with its standard input."""
    process = lab.start(
        PYTHON, "-S", "-c", FORKER, str(count), *libraries, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    if process.stdout is None or process.stdout.readline() != b"idle\n":
        raise RuntimeError(f"{count} processes did not come up")
    return process
