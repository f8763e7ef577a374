"""The .deb of this checkout, built only when something in it has changed, by one at a time.

``python -m tests.support.package`` builds it before anybody needs it.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from pathlib import Path

from spliffd import __version__
from tests.support.lab import REPOSITORY

INPUTS = (
    "spliffd",
    "spliffctl",
    "bpf",
    "packaging",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)


def inputs_digest() -> str:
    """Names and contents of everything that goes into the package."""
    digest = hashlib.sha256()
    for name in INPUTS:
        top = REPOSITORY / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def build() -> Path:
    """The package's file; takes 20 s when it must be built."""
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    target = REPOSITORY / f"dist/spliff_{__version__}_{architecture}.deb"
    target.parent.mkdir(exist_ok=True)
    with target.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _build(target)
    return target


def _build(target: Path) -> None:
    stamp = target.with_suffix(".inputs")
    digest = inputs_digest()
    if not (target.exists() and stamp.exists() and stamp.read_text() == digest):
        done = subprocess.run(
            [REPOSITORY / "packaging/deb/build.sh", REPOSITORY / ".venv/bin"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        stamp.write_text(inputs_digest())  # building compiles modules, which are inputs


if __name__ == "__main__":
    print(build())
