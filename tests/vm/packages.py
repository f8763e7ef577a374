"""Which Debian packages a virtual machine is made of, and whether this machine can make one.

Takes the names below; asks apt for versions and files. Raises ``CannotBuildError`` with the reason when
the host lacks something that a test cannot give it: another distribution, no root, packages out of reach.
Never names a package host: everything comes from where this machine's own apt takes it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

CODENAME = "bookworm"
"""The guests' Debian, which is the host's as well: apt-get download takes the host's lists."""

ROOT_PACKAGES = (
    # an init system, and what an administrator has at hand
    *(
        "systemd",
        "systemd-sysv",
        "libpam-systemd",
        "udev",
        "dbus",
        "kmod",
        "procps",
        "iproute2",
        "iputils-ping",
    ),
    *("ethtool", "bpftool", "util-linux", "passwd", "ca-certificates"),
    # what spliff's package depends on: apt in the guest has no network
    *("python3", "python3-bpfcc", "libbpf1", "libstdc++6", "init-system-helpers"),
    # peers of the tests
    *("openssl", "curl", "nginx-light", "wireguard-tools"),
)

KERNELS = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
"""Kernels people run, by the package that always names the newest build of theirs."""

SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")


class CannotBuildError(Exception):
    """This machine cannot make a virtual machine; the text says why."""


def sources() -> str:
    """The file that tells apt, and mmdebstrap, where Debian is."""
    for name in SOURCES:
        if os.path.exists(name) and re.search(r"\bmain\b", Path(name).read_text()):
            return name
    raise CannotBuildError(f"apt has no sources: neither {' nor '.join(SOURCES)} names Debian")


def check_host() -> None:
    """Root, Debian of the right release, and the programs of packaging/setup-vm.sh."""
    if os.geteuid() != 0:
        raise CannotBuildError("building a root file system needs root: sudo make test-vm")
    release = Path("/etc/os-release").read_text()
    if f"VERSION_CODENAME={CODENAME}" not in release:
        raise CannotBuildError(
            f"the guests are made from this machine's packages, and it is not Debian {CODENAME}"
        )
    sources()


def image_package(kernel: str) -> str:
    """The package that holds ``kernel``'s newest build, such as linux-image-6.1.0-56-amd64."""
    told = _apt("apt-cache", "depends", "--important", KERNELS[kernel])
    found = re.search(r"Depends: (linux-image-\S+)", told)
    if not found:
        raise CannotBuildError(f"apt has no package for kernel {kernel}: {KERNELS[kernel]}")
    return found[1]


def download(folder: Path, *names: str) -> list[Path]:
    """Fetches packages into ``folder``; returns their files in order."""
    _apt("apt-get", "-q", "download", *names, cwd=folder)
    return [next(folder.glob(f"{name}_*.deb")) for name in names]


def _apt(*command: str, cwd: Path | None = None) -> str:
    """Lists that are missing or older than what the archive has are fetched anew, once."""
    for update in (False, True):
        if update:
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
    raise CannotBuildError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
