"""Makes the disk of a virtual machine, and keeps it: Debian, one kernel, booted once and its state saved.

Takes the name of a kernel series; returns an ``Image``, whose files lie in a folder named after everything
that went into them. The folder may vanish at any time: it is made again in a minute. Nothing in an image tells
where its packages came from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import kernel, packages
from tests.vm.machine import DEVICES, KERNEL_LINE, save_state

HERE = Path(__file__).parent
DISK_MEGABYTES = 1400
"""Of the file system, sparse: Debian with LLVM is 500 MB, spliff 50, and tests write a few."""

SCRATCH = "/dev/shm"
"""Unpacking packages is four times as fast in memory."""
SCRATCH_BYTES = 4 << 30
"""Room it needs there, for two images at once; less, and the cache's own disk is used."""

UNWANTED = (
    # would start servers, or work in the background while tests measure
    *("nginx.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-timesyncd.service", "getty@tty1.service"),
    *("systemd-pstore.service", "man-db.timer"),
)


@dataclass(frozen=True)
class Image:
    """Files of a machine that was booted and parked."""

    kernel: str
    folder: Path

    @property
    def vmlinux(self) -> Path:
        """The kernel, uncompressed."""
        return self.folder / "vmlinux"

    @property
    def initrd(self) -> Path:
        """Its initramfs."""
        return self.folder / "initrd.img"

    @property
    def base(self) -> Path:
        """The root file system as built."""
        return self.folder / "root.ext4"

    @property
    def disk(self) -> Path:
        """What the parked machine had written on top of it."""
        return self.folder / "parked.qcow2"

    @property
    def state(self) -> Path:
        """Memory and devices of the parked machine."""
        return self.folder / "state"


Step = Callable[[str, str], None]
"""Told who does what."""

KEPT_SECONDS = 86400
"""Images of another key than today's go after a day."""


def cache_folder() -> Path:
    """SPLIFF_VM_CACHE, or a folder of the user's cache."""
    own = os.environ.get("SPLIFF_VM_CACHE")
    return (
        Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spliff-vm"
    )


def images(kernels: list[str]) -> list[Image]:
    """Where the images of these kernels are, or will be."""
    names = {name: packages.image_package(name) for name in kernels}
    return [Image(name, cache_folder() / f"{names[name]}-{_key(names[name])}") for name in kernels]


@contextmanager
def locked() -> Iterator[None]:
    """One at a time makes images: another run waits, and finds them made."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(wanted: list[Image], say: Step) -> None:
    """Disks and saved states of these images, side by side."""
    with _scratch() as scratch, ThreadPoolExecutor() as pool:
        say("vm", "Debian from its packages")
        root = pool.submit(_root, scratch / "root")
        list(pool.map(lambda image: _make(image, root, scratch, say), wanted))


def _make(image: Image, root: Future[Path], scratch: Path, say: Step) -> None:
    package = packages.image_package(image.kernel)
    work = scratch / image.kernel
    work.mkdir()
    kernel.unpack(*packages.download(work, package, "busybox-static"), work / "kernel")
    say(image.kernel, f"unpacked {package}")
    _disk(image, root.result(), work)
    say(image.kernel, "first boot")
    save_state(image.vmlinux, image.initrd, image.base, image.disk, image.state)
    say(image.kernel, "state saved")
    for old in cache_folder().glob(f"linux-image-{image.kernel}.*"):
        # Not one that another checkout may be running from.
        if old != image.folder and time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def _key(package: str) -> str:
    digest = hashlib.sha256(f"{package} {packages.ROOT_PACKAGES} {DISK_MEGABYTES}".encode())
    digest.update(subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout)
    digest.update(f"{DEVICES} {KERNEL_LINE}".encode())
    files = [HERE / name for name in ("image.py", "kernel.py")]
    for file in files + sorted(path for path in (HERE / "guest").rglob("*") if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def _scratch() -> Iterator[Path]:
    in_memory = os.path.isdir(SCRATCH) and shutil.disk_usage(SCRATCH).free > SCRATCH_BYTES
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=SCRATCH if in_memory else cache_folder(), prefix="spliff-vm-"
    ) as folder:
        yield Path(folder)


def _root(folder: Path) -> Path:
    """Debian without a kernel."""
    excluded = [
        f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc", "info", "lintian")
    ]
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", *excluded,
         f"--include={','.join(packages.ROOT_PACKAGES)}", packages.CODENAME, folder, packages.sources()],
        env={**os.environ, "TMPDIR": str(folder.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise packages.CannotBuildError(f"mmdebstrap: {done.stderr.strip()[-2000:]}")
    shutil.rmtree(folder / "etc/apt/sources.list.d")
    (folder / "etc/apt/sources.list.d").mkdir()
    (folder / "etc/apt/sources.list").unlink(missing_ok=True)
    return folder


def _disk(image: Image, root: Path, work: Path) -> None:
    """The disk of one kernel; the root is shared by hard links, and each file replaced, never written."""
    top = work / "root"
    subprocess.run(["cp", "-al", root, top], check=True)
    for tree in (work / "kernel/tree", HERE / "guest"):
        subprocess.run(
            ["cp", "-a", "--remove-destination", "--no-preserve=ownership", f"{tree}/.", top], check=True
        )
    for name, text in {
        "hostname": "vm\n",
        "fstab": "",
        "hosts": "127.0.0.1 localhost vm\n::1 localhost\n",
        # The same for all, so that two runs have the same journal folder.
        "machine-id": "0123456789abcdef0123456789abcdef\n",
    }.items():
        (top / "etc" / name).unlink(missing_ok=True)
        (top / "etc" / name).write_text(text)
    (top / "etc/resolv.conf").unlink(missing_ok=True)
    for unit in UNWANTED:
        for link in (top / "etc/systemd/system").glob(f"*.wants/{unit}"):
            link.unlink()
    image.folder.mkdir(parents=True, exist_ok=True)
    image.base.unlink(missing_ok=True)
    # Without a journal: what a test machine writes need not survive a crash.
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "root", "-d", top, image.base,
         f"{DISK_MEGABYTES}M"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    shutil.copy(work / "kernel/vmlinux", image.vmlinux)
    shutil.copy(work / "kernel/initrd.img", image.initrd)
    shutil.rmtree(work)
