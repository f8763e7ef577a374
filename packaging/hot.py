"""Compiles the modules that every record passes through, with mypyc: half of the CPU time of an exchange.

Takes nothing but the checkout; writes ``*.so`` beside the sources, one library that they share beside the
packages, and ``spliffd/compiled.json`` with the digests of the sources they were made from. The sources stay
what they are, plain Python that runs the same without any of this; ``--remove`` takes it all away again.
Does nothing when what is there fits the sources. Needs gcc and Python's headers (apt: gcc, python3-dev).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spliffd import compiled  # noqa: E402 - found through the line above, wherever this is started from

HOT = (
    "spliffd/entries.py",
    "spliffd/kernel/ring.py",
    "spliffd/correlation/*.py",
    "spliffd/protocols/*.py",
    "spliffd/worker/bodies.py",
    "spliffd/worker/encode.py",
    "spliffd/worker/heads.py",
    "spliffd/worker/kernel_losses.py",
    "spliffd/worker/loop.py",
    "spliffd/worker/masked_bodies.py",
    "spliffd/worker/output.py",
    "spliffd/worker/receiver.py",
    "spliffd/worker/rests.py",
    "spliffd/worker/summaries.py",
    "spliffd/worker/tables.py",
    "spliffd/worker/waits.py",
    "spliffd/worker/wanted.py",
    "spliffd/worker/who.py",
    "spliffd/api/chosen.py",
    "spliffd/api/delivery.py",
    "spliffd/api/filter.py",
    "spliffd/api/history.py",
    "spliffd/api/hub.py",
    "spliffd/api/subscribers.py",
    "spliffd/api/wire.py",
)
"""What runs for each record, exchange or watcher. Leave out what runs at start only: it would cost memory."""

GROUP = "spliff_hot"


def sources() -> list[str]:
    """The modules to compile, as paths below the checkout."""
    found = {path for pattern in HOT for path in ROOT.glob(pattern) if path.name != "__init__.py"}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def remove() -> None:
    """Takes away what was compiled."""
    for path in (*ROOT.glob("spliffd/**/*.so"), *ROOT.glob(f"{GROUP}*.so"), ROOT / compiled.STAMP):
        path.unlink(missing_ok=True)


def build(names: list[str], folder: Path) -> Path:
    """Compiles in ``folder``, which holds a link to the package; returns where the libraries lie."""
    from mypyc.build import mypycify
    from setuptools import setup

    os.chdir(folder)  # setuptools reads the pyproject.toml of the working directory, mypyc writes there
    (folder / "spliffd").symlink_to(ROOT / "spliffd")
    libraries = folder / "lib"
    # Debian's Python adds -g; paths in debugging information would make each build differ.
    os.environ["CFLAGS"] = "-g0"
    # Types of libraries are `make check`'s business.
    modules = mypycify(["--ignore-missing-imports", *names], opt_level="3", debug_level="0", group_name=GROUP)
    arguments = ["-q", "build_ext", "--build-lib", str(libraries), "--build-temp", str(folder / "temp")]
    setup(name=GROUP, packages=[], ext_modules=modules, script_args=arguments)
    return libraries


def main() -> int:
    """Entry point; see the module's docstring."""
    if sys.argv[1:] == ["--remove"]:
        remove()
        return 0
    names = sources()
    if compiled.state(names) == compiled.COMPILED:
        return 0
    print(f"compiling {len(names)} modules (about a minute)", flush=True)
    remove()
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="spliff-hot-") as folder:
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                libraries = build(names, Path(folder))
        except BaseException as error:
            print(said.getvalue()[-4000:], file=sys.stderr)
            print(f"compiling failed: {error}; without it everything runs, but slower", file=sys.stderr)
            return 1
        for library in libraries.rglob("*.so"):
            shutil.copy2(library, ROOT / library.relative_to(libraries))
    compiled.write(names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
