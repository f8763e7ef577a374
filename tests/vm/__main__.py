"""``python -m tests.vm``: installs spliff's package in Debian on the kernels that people run, and tests it there.

Takes names of kernel series; prints each machine's transcript, and at the end one line of totals; exits 0 when all
passed, 1 when something failed, and that is also a machine that ends without a word, a table in docs/kernels.md that
is no longer true, or a second run (``--runs 2``) with another result than the first. Where no machine can be made (no
QEMU, no root, another system than Debian 12), it says why and exits 0: the tests are then not done, and the line says
so. The same for what there is no time for (``--within``), unless a test of it had failed by then. JUnit, figures and
consoles are in build/vm.
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

LEAST_SECONDS = 45
"""With less left of ``--within`` no session begins: a machine needs 20 s until its first test."""

begun = time.monotonic()
unfinished: list[str] = []
"""What there was no time for (``--within``)."""


def say(who: str, text: str) -> None:
    """A line of the transcript, with seconds since the beginning."""
    print(f"{time.monotonic() - begun:6.1f} {who:<12} {text}", flush=True)


def main() -> int:
    """Runs everything."""
    options = _options()
    try:
        if subprocess.run([REPOSITORY / "packaging/setup-vm.sh"], check=False).returncode:
            raise packages.CannotBuildError("what builds and runs it cannot be installed, see above")
        packages.check_host()
        return _tests(options, image.images(options.kernels))
    except packages.CannotBuildError as error:
        print(f"vm: NOT TESTED, no virtual machine can be made here: {error}", flush=True)
        return 0


def _tests(options: argparse.Namespace, found: list[Image]) -> int:
    """Makes what images are missing, and runs all sessions; returns the exit status."""
    if not options.prepare:
        shutil.rmtree(RESULTS, ignore_errors=True)
    part = options.files or options.command
    with turns.noisy(), ThreadPoolExecutor(2) as beside, ThreadPoolExecutor(options.jobs) as pool:
        if not options.prepare:
            deb = beside.submit(_package, options.package)
            # Before machines are there, which would take the processors from it.
            here = beside.submit(lambda: (0, []) if part else host.ways(RESULTS / "host", say))
        with image.locked():
            if wanted := [one for one in found if not one.state.exists()]:
                image.make(wanted, say)
        if options.prepare:
            return 0
        say("vm", f"package {deb.result().name}")
        with tempfile.TemporaryDirectory(prefix="spliff-vm-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            debs = (folder / "spliff_this.deb", folder / "newer.deb")
            repacked(deb.result(), folder, *debs)
            guests = list(
                pool.map(lambda one: Guest.prepare(one, deb.result(), debs, folder / one.kernel), found)
            )
            status, ways = here.result()
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
    status = outcome.conclude(RESULTS, wrong, ways, say, write=options.write_docs and not unfinished)
    if unfinished:
        print(f"vm: NOT TESTED within {options.within} s: {', '.join(unfinished)}", flush=True)
    return status


@dataclass(frozen=True)
class Guest:
    """What the machines of one kernel are given."""

    image: Image
    folder: Path
    programs: Path
    """Compiled for this kernel."""
    debs: tuple[Path, ...]

    @classmethod
    def prepare(cls, one: Image, deb: Path, debs: tuple[Path, ...], folder: Path) -> Guest:
        """Works in ``folder``, which must not exist; ``debs`` are for apt there, ``deb`` has the programs."""
        folder.mkdir()
        os.utime(one.folder)  # in use: see KEPT_SECONDS
        return cls(one, folder, precompile(one.vmlinux, deb, folder / "compiled"), debs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__.partition("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"default: {' '.join(packages.KERNELS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="machines at a time")
    parser.add_argument("--runs", type=int, default=1, help="do it so often, and compare what came out")
    parser.add_argument("--prepare", action="store_true", help="only make the images, which are kept")
    parser.add_argument("--package", type=Path, help="a .deb to test instead of the checkout's")
    parser.add_argument(
        "--all", action="store_true", help="everything on each kernel: see sessions.py for what is left out"
    )
    parser.add_argument("--files", nargs="+", metavar="NAME", help="only these, such as 1_package")
    parser.add_argument(
        "--command", help="run this in a machine (restored from its state) instead of the tests"
    )
    parser.add_argument(
        "--within",
        type=int,
        default=0,
        metavar="SECONDS",
        help="what is not done by then is not tested, and said so",
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
        part = sessions.Part.of(guest.image.kernel, options.kernels, everything=options.all)
        for session in sessions.SESSIONS:
            files = sessions.files(session, part, options.files)
            if session.disk == disk and files and not options.command:
                line = sessions.command(session, guest.image.kernel, files, part)
                worst = max(worst, _session(guest, session, share, line, options))
                if worst:
                    break  # a machine on which something went wrong is not what the next is about
        if options.command and disk == sessions.DISKS[0]:
            worst = max(worst, _session(guest, sessions.SESSIONS[0], share, options.command, options))
    return worst


def _session(
    guest: Guest, session: sessions.Session, share: Path, line: str, options: argparse.Namespace
) -> int:
    """One machine's life, in which ``line`` is run."""
    one = guest.image
    disk = guest.folder / f"{session.disk}.qcow2"
    if session.restored:
        machine.overlay(one.disk, disk)
    who = f"{one.kernel} {session.name}"
    left = options.within - (time.monotonic() - begun) if options.within else SESSION_SECONDS
    if left < LEAST_SECONDS:
        unfinished.append(who)
        return 0
    failed = False

    def tell(text: str) -> None:
        nonlocal failed
        failed = failed or " FAILED " in text or " ERROR " in text
        say(who, text)

    status = machine.run(
        line, vmlinux=one.vmlinux, initrd=one.initrd, disk=disk, share=share, source=REPOSITORY,
        state=one.state if session.restored else None, seconds=min(SESSION_SECONDS, left), tell=tell,
    )  # fmt: skip
    say(who, f"ended with status {status}")
    if status == machine.TIMED_OUT and options.within and not failed:
        unfinished.append(f"the rest of {who}")
        return 0
    return status


def repacked(deb: Path, folder: Path, this: Path, newer: Path) -> None:
    """The same package as ``this``, and as a newer version of it; works in ``folder``.

    Compressed so that the guest is quickest: apt there takes 20 s for the digests of one that is not, and dpkg 30 s to
    unpack one that is so as well as can be.
    """
    work = folder / "package"
    subprocess.run(["dpkg-deb", "-R", deb, work], check=True)
    control = work / "DEBIAN/control"
    for target, suffix in ((this, ""), (newer, "+newer")):
        control.write_text(re.sub(r"(?m)^(Version: .*)$", rf"\1{suffix}", control.read_text()))
        subprocess.run(
            ["dpkg-deb", "-Zzstd", "-z1", "--root-owner-group", "-b", work, target],
            check=True,
            stdout=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    sys.exit(main())
