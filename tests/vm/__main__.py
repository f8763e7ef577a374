"""``python -m tests.vm``: installs spliff's package in Debian on the kernels that people run, and tests it there.

Takes names of kernel series; prints each machine's transcript, and at the end one line of totals; exits 0 when all
passed, 1 when something failed. Where no machine can be made (no QEMU, no root, no packages), it says why and exits
0: the tests are then not done, and the line says so. Each kernel is two sessions on one disk: from the saved
state (install, use, break, upgrade) and, after a cold boot, the rest (boot, remove, purge).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support import package
from tests.support.lab import REPOSITORY
from tests.vm import machine, packages, report
from tests.vm.image import Image, images
from tests.vm.precompile import precompile

RESULTS = REPOSITORY / "build/vm"
INSIDE = "tests/vm/inside"
SESSION_SECONDS = 1500
"""Ends a machine that hangs; a session takes three minutes on an idle host."""

SESSIONS = (
    ("state", ("test_1_package", "test_2_hardening", "test_3_wireguard", "test_4_cards", "test_5_recovery",
               "test_6_upgrade")),
    ("boot", ("test_7_boot", "test_8_removal")),
)  # fmt: skip
"""How each session's machine begins, and what runs in it, in this order."""

PYTEST = (
    "cd /src && PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "
    "/src/.venv/bin/python -m pytest --config-file=/src/{inside}/pytest.ini --rootdir=/src/{inside} "
    "--junitxml=/vm/junit-{name}.xml --tb=short --durations=5 -v {files}"
)

begun = time.monotonic()


def say(who: str, text: str) -> None:
    """A line of the transcript, with seconds since the beginning."""
    print(f"{time.monotonic() - begun:6.1f} {who:<5} {text}", flush=True)


def main() -> int:
    """Runs everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__.partition("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"default: {' '.join(packages.KERNELS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="machines at a time")
    parser.add_argument("--package", type=Path, help="a .deb to test instead of the checkout's")
    parser.add_argument("--files", nargs="+", metavar="NAME", help="only these, such as test_1_package")
    parser.add_argument(
        "--command", help="run this in a machine (restored from its state) instead of the tests"
    )
    parser.add_argument("--write-docs", action="store_true", help="write docs/kernels.md from what was found")
    options = parser.parse_args()
    kernels = options.kernels or list(packages.KERNELS)
    if unknown := set(kernels) - packages.KERNELS.keys():
        parser.error(f"no kernel {', '.join(sorted(unknown))}: there are {', '.join(packages.KERNELS)}")
    try:
        subprocess.run([REPOSITORY / "packaging/setup-vm.sh"], check=True)
        found = images(kernels, lambda text: say("vm", text))
    except (packages.CannotBuildError, subprocess.CalledProcessError) as error:
        print(f"vm: NOT TESTED, no virtual machine can be made here: {error}", flush=True)
        return 0
    deb = options.package or package.build()
    say("vm", f"package {deb.name}")
    with ThreadPoolExecutor(options.jobs) as pool:
        statuses = list(pool.map(lambda image: _test(image, deb, options), found))
    if options.command:
        return max(statuses)
    return _conclude(found, statuses, write=options.write_docs)


def _test(image: Image, deb: Path, options: argparse.Namespace) -> int:
    """All sessions of one kernel; 0 when all passed."""
    share = RESULTS / image.kernel
    shutil.rmtree(share, ignore_errors=True)
    share.mkdir(parents=True)
    shutil.copy(deb, share)
    with tempfile.TemporaryDirectory(prefix="spliff-vm-") as folder:
        os.chmod(folder, 0o755)
        precompile(image.vmlinux, deb, Path(folder) / "compiled")
        shutil.copytree(Path(folder) / "compiled/programs", share / "programs")
        newer_build(deb, Path(folder) / "newer", share / "newer.deb")
        disk = machine.overlay(image.disk, Path(folder) / "disk.qcow2")
        worst = 0
        for name, every in SESSIONS:
            files = [file for file in every if not options.files or file in options.files]
            if not files:
                continue
            paths = " ".join(f"/src/{INSIDE}/{file}.py" for file in files)
            worst |= machine.run(
                options.command or PYTEST.format(inside=INSIDE, name=name, files=paths),
                vmlinux=image.vmlinux, initrd=image.initrd, disk=disk, share=share, source=REPOSITORY,
                state=image.state if name == "state" else None, seconds=SESSION_SECONDS,
                tell=lambda line: say(image.kernel, line),
            )  # fmt: skip
            if options.command or worst:
                break  # a machine on which something went wrong is not what the next session is about
    return worst


def newer_build(deb: Path, work: Path, target: Path) -> None:
    """The same package as a newer version; not compressed, because the guest would take half a minute for that."""
    subprocess.run(["dpkg-deb", "-R", deb, work], check=True)
    control = work / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+newer", control.read_text()))
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "-b", work, target],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _conclude(found: list[Image], statuses: list[int], *, write: bool) -> int:
    """Totals of all JUnit files in one line, and the table of figures."""
    totals: Counter[str] = Counter()
    for image, status in zip(found, statuses, strict=True):
        files = sorted((RESULTS / image.kernel).glob("junit-*.xml"))
        for file in files:
            for case in ET.parse(file).getroot().iter("testcase"):
                outcome = {child.tag for child in case} & {"failure", "error", "skipped"}
                totals[
                    {"skipped": "skipped"}.get(next(iter(outcome), ""), "failed") if outcome else "passed"
                ] += 1
        if status >= machine.TIMED_OUT:
            totals["failed"] += 1  # the machine ended without a word: whatever was running did not pass
        say(image.kernel, f"status {status}, {len(files)} of {len(SESSIONS)} sessions")
    lines = [
        json.loads(line)
        for image in found
        for line in (RESULTS / image.kernel / "figures.jsonl").read_text().splitlines()
        if (RESULTS / image.kernel / "figures.jsonl").exists()
    ]
    text = report.table(lines)
    (RESULTS / "kernels.md").write_text(text)
    if write:
        (REPOSITORY / "docs/kernels.md").write_text(text)
    say("vm", f"figures in {(RESULTS / 'kernels.md').relative_to(REPOSITORY)}")
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped", flush=True)
    return int(bool(totals["failed"]) or any(statuses))


if __name__ == "__main__":
    sys.exit(main())
