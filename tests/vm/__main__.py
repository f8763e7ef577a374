"""``python -m tests.vm``: installs spliff's package in Debian on the kernels that people run, and tests it there.

Takes names of kernel series; prints each machine's transcript, and at the end one line of totals; exits 0 when all
passed, 1 when something failed, and that is also a machine that ends without a word, a table in docs/kernels.md that
is no longer true, or a second run (``--runs 2``) with another result than the first. Where no machine can be made (no
QEMU, no root, another system than Debian 12), it says why and exits 0: the tests are then not done, and the line says
so. JUnit, figures and consoles are in build/vm.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support import package, turns
from tests.support.lab import REPOSITORY
from tests.vm import host, image, machine, outcome, packages, sessions
from tests.vm.image import Image
from tests.vm.precompile import precompile

RESULTS = REPOSITORY / "build/vm"
SESSION_SECONDS = 2400
"""Ends a machine that hangs; a session takes three minutes on an idle host, and a host may be crowded."""

begun = time.monotonic()


def say(who: str, text: str) -> None:
    """A line of the transcript, with seconds since the beginning."""
    print(f"{time.monotonic() - begun:6.1f} {who:<12} {text}", flush=True)


def main() -> int:
    """Runs everything."""
    options = _options()
    try:
        subprocess.run([REPOSITORY / "packaging/setup-vm.sh"], check=True)
        packages.check_host()
        found = image.images(options.kernels)
    except (packages.CannotBuildError, subprocess.CalledProcessError) as error:
        print(f"vm: NOT TESTED, no virtual machine can be made here: {error}", flush=True)
        return 0
    shutil.rmtree(RESULTS, ignore_errors=True)
    # First, before anything else that looks at this machine's own eBPF can have begun beside us.
    status, here = (0, []) if options.files or options.command else host.ways(RESULTS / "host", say)
    with turns.noisy(), ThreadPoolExecutor(1) as packing, ThreadPoolExecutor(options.jobs) as pool:
        deb = packing.submit(_package, options.package)
        with image.locked():
            if wanted := [one for one in found if not one.state.exists()]:
                image.make(wanted, say)
        say("vm", f"package {deb.result().name}")
        with tempfile.TemporaryDirectory(prefix="spliff-vm-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            guests = list(pool.map(lambda one: Guest.prepare(one, deb.result(), folder / one.kernel), found))
            # The longest first: what is left then fits beside.
            lives = [(guest, disk) for disk in sessions.DISKS for guest in guests]
            statuses = list(pool.map(lambda life: _runs(*life, options), lives))
    if options.command:
        return max(statuses)
    wrong = [f"this machine's kernel: status {status}"] if status else []
    wrong += [
        f"kernel {guest.image.kernel}, {disk}: status {status}"
        for (guest, disk), status in zip(lives, statuses, strict=True)
        if status
    ]
    return outcome.conclude(RESULTS, wrong, here, say, write=options.write_docs)


@dataclass(frozen=True)
class Guest:
    """What the machines of one kernel are given."""

    image: Image
    folder: Path
    programs: Path
    """Compiled for this kernel."""
    debs: tuple[Path, ...]

    @classmethod
    def prepare(cls, one: Image, deb: Path, folder: Path) -> Guest:
        """Works in ``folder``, which must not exist."""
        folder.mkdir()
        os.utime(one.folder)  # in use: see KEPT_SECONDS
        this, newer = folder / "spliff_this.deb", folder / "newer.deb"
        repacked(deb, folder / "this", this, "")
        repacked(deb, folder / "newer", newer, "+newer")
        return cls(one, folder, precompile(one.vmlinux, deb, folder / "compiled"), (this, newer))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__.partition("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"default: {' '.join(packages.KERNELS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="machines at a time")
    parser.add_argument("--runs", type=int, default=1, help="do it so often, and compare what came out")
    parser.add_argument("--package", type=Path, help="a .deb to test instead of the checkout's")
    parser.add_argument("--all", action="store_true", help="on each kernel also what does not depend on it")
    parser.add_argument("--files", nargs="+", metavar="NAME", help="only these, such as 1_package")
    parser.add_argument(
        "--command", help="run this in a machine (restored from its state) instead of the tests"
    )
    parser.add_argument("--write-docs", action="store_true", help="write docs/kernels.md from what was found")
    options = parser.parse_args()
    options.kernels = options.kernels or list(packages.KERNELS)
    if unknown := set(options.kernels) - packages.KERNELS.keys():
        parser.error(f"no kernel {', '.join(sorted(unknown))}: there are {', '.join(packages.KERNELS)}")
    return options


def _package(given: Path | None) -> Path:
    return given or package.build()


def _runs(guest: Guest, disk: str, options: argparse.Namespace) -> int:
    """All runs of the sessions on one disk, each from the same saved state; 0 when all passed."""
    worst = 0
    for run in range(1, options.runs + 1):
        share = RESULTS / guest.image.kernel / f"run-{run}" / disk
        share.mkdir(parents=True)
        for file in guest.debs:
            shutil.copy(file, share)
        shutil.copytree(guest.programs, share / "programs")
        for session in sessions.SESSIONS:
            files = sessions.files(
                session,
                first=guest.image.kernel == options.kernels[0],
                everything=options.all,
                named=options.files,
            )
            if session.disk == disk and files and not options.command:
                line = sessions.command(session, guest.image.kernel, files)
                worst = max(worst, _session(guest, session, share, line))
                if worst:
                    break  # a machine on which something went wrong is not what the next is about
        if options.command and disk == sessions.DISKS[0]:
            worst = max(worst, _session(guest, sessions.SESSIONS[0], share, options.command))
    return worst


def _session(guest: Guest, session: sessions.Session, share: Path, line: str) -> int:
    """One machine's life, in which ``line`` is run."""
    one = guest.image
    disk = guest.folder / f"{session.disk}.qcow2"
    if session.restored:
        machine.overlay(one.disk, disk)
    who = f"{one.kernel} {session.name}"
    status = machine.run(
        line, vmlinux=one.vmlinux, initrd=one.initrd, disk=disk, share=share, source=REPOSITORY,
        state=one.state if session.restored else None, seconds=SESSION_SECONDS, tell=lambda text: say(who, text),
    )  # fmt: skip
    say(who, f"ended with status {status}")
    return status


def repacked(deb: Path, work: Path, target: Path, suffix: str) -> None:
    """The same package, not compressed: the guest would take half a minute for that. ``suffix`` makes it a newer one."""
    subprocess.run(["dpkg-deb", "-R", deb, work], check=True)
    control = work / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", rf"\1{suffix}", control.read_text()))
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "-b", work, target],
        check=True,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    sys.exit(main())
