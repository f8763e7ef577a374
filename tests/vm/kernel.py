"""Unpacks a Debian kernel package into what QEMU boots and what the guest's file system needs of it.

Takes the .deb of a kernel and one of busybox-static; returns nothing; leaves in ``folder``:
``vmlinux`` (uncompressed: QEMU starts it by its PVH entry, 4 s sooner than a bzImage), ``initrd.img`` (Debian's
kernel has ext4 and virtio as modules, so something must load them) and ``tree/`` (modules, to be laid over the
root). Never installs a package: linux-image as one pulls in 400 MB of modules and an initramfs generator.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

MODULES = (
    # all of networking, crypto for WireGuard and TLS, and the devices that QEMU gives
    *(
        "net",
        "crypto",
        "lib",
        "arch",
        "fs/9p",
        "fs/netfs",
        "fs/fscache",
        "fs/ext4",
        "fs/jbd2",
        "fs/mbcache.ko",
    ),
    *("fs/overlayfs", "fs/fuse", "fs/autofs", "fs/configfs", "fs/binfmt_misc.ko", "drivers/virtio"),
    *("drivers/block/virtio_blk.ko", "drivers/char/virtio_console.ko", "drivers/char/hw_random"),
    *("drivers/net/wireguard", "drivers/net/ethernet/intel/e1000e", "drivers/net/net_failover.ko"),
    *("drivers/net/virtio_net.ko", "drivers/net/veth.ko", "drivers/net/dummy.ko", "drivers/net/tun.ko"),
    *("drivers/net/vxlan", "drivers/net/ifb.ko", "drivers/net/macvlan.ko"),
)
"""Below kernel/ of the modules; what a kernel has built in or does not know is passed over."""

EARLY = (
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "9pnet_virtio",
    "9p",
    "virtio_console",
    "virtio_rng",
)
"""Loaded by the initramfs: disk, root file system, shares, the port that output goes to."""

INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for m in $(/bin/busybox cat /modules.list); do /bin/busybox insmod /modules/$m || echo "insmod $m failed"; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox usleep 100000; n=$((n+1)); done
/bin/busybox mount -t ext4 /dev/vda /root || { echo "no root file system"; /bin/busybox poweroff -f; }
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /usr/lib/systemd/systemd
"""


def unpack(deb: Path, busybox: Path, folder: Path) -> None:
    """Fills ``folder``, which must not exist."""
    unpacked = folder / "unpacked"
    unpacked.mkdir(parents=True)
    for file in (deb, busybox):
        subprocess.run(["dpkg-deb", "-x", file, unpacked], check=True)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    (folder / "vmlinux").write_bytes(vmlinux(image.read_bytes()))
    tree = folder / "tree"
    _copy_modules(unpacked / "lib/modules" / release, tree / "usr/lib/modules" / release)
    (tree / "lib").symlink_to("usr/lib")  # as in the root: depmod and modprobe look in lib/modules
    subprocess.run(["depmod", "-b", tree, release], check=True, stderr=subprocess.DEVNULL)
    (tree / "boot").mkdir()
    shutil.copy(unpacked / f"boot/config-{release}", tree / "boot")
    _initramfs(folder, tree, release, unpacked / "bin/busybox")
    (tree / "lib").unlink()
    shutil.rmtree(unpacked)


def vmlinux(image: bytes) -> bytes:
    """The ELF file inside a bzImage, which Debian compresses with xz (6.1) or zstd (6.12)."""
    for magic, expand in ((b"\xfd7zXZ\x00", _unxz), (b"\x28\xb5\x2f\xfd", _unzstd)):
        start = image.find(magic)
        while start >= 0:
            found = expand(image[start:])
            if found.startswith(b"\x7fELF"):
                return found
            start = image.find(magic, start + 1)
    raise ValueError("no vmlinux in the kernel image: is it compressed with something other than xz or zstd?")


def _unxz(data: bytes) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""  # what looked like the beginning was not


def _unzstd(data: bytes) -> bytes:
    # Complains of what follows the compressed part, after having written it.
    return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False).stdout


def _copy_modules(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in (*source.glob("modules.builtin*"), source / "modules.order"):
        shutil.copy(name, target)
    for name in MODULES:
        for found in (source / "kernel").glob(f"{name}*" if name.endswith(".ko") else name):
            place = target / found.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if found.is_dir() else shutil.copy)(found, place)


def _initramfs(folder: Path, tree: Path, release: str, busybox: Path) -> None:
    top = folder / "initramfs"
    for name in ("bin", "dev", "proc", "sys", "root", "modules"):
        (top / name).mkdir(parents=True)
    shutil.copy(busybox, top / "bin/busybox")
    order: list[str] = []
    for module in EARLY:
        told = subprocess.run(
            ["modprobe", "-d", tree, "-S", release, "--show-depends", module],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for line in told.stdout.splitlines():
            action, _, path = line.partition(" ")
            file = Path(path.split()[0]) if action == "insmod" else None
            if file is None or file.stem.removesuffix(".ko") in order:
                continue
            name = file.stem.removesuffix(".ko")
            data = file.read_bytes()
            (top / "modules" / name).write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
            order.append(name)
    (top / "modules.list").write_text("\n".join(order) + "\n")
    (top / "init").write_text(INIT)
    os.chmod(top / "init", 0o755)
    names = "\n".join(["."] + [str(path.relative_to(top)) for path in sorted(top.rglob("*"))])
    with (folder / "initrd.img").open("wb") as out:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=top, input=names.encode(), stdout=out, check=True
        )
    shutil.rmtree(top)
