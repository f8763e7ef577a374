"""Compiles spliff's eBPF programs for a guest's kernel on the host: LLVM under emulation takes minutes.

Takes the guest's vmlinux and the unpacked package; returns a folder for the guest's ``/var/cache/spliff``, where
the daemon looks for the result of an earlier compile. The daemon itself decides whether it fits (sources, BTF and
compiler are in its key), and compiles when it does not: nothing here can make it load something else.
"""

from __future__ import annotations

import pwd
import struct
import subprocess
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from spliffd.kernel import cache
uid, gid, btf, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
cache.programs(uid, gid, btf, folder)
assert list(folder.glob("*.programs")), "nothing was kept"
"""


def precompile(vmlinux: Path, package: Path, folder: Path) -> Path:
    """Works in ``folder``, from the ``.deb`` in ``package``; returns the folder of programs; takes some seconds."""
    user = pwd.getpwnam("spliff")
    unpacked = folder / "package"
    kept = folder / "programs"
    kept.mkdir(parents=True, mode=0o700)
    subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    (site,) = (unpacked / "opt/spliff/lib").glob("python3.*/site-packages")
    for path in (folder, unpacked):
        path.chmod(0o755)  # the compiler is another user
    btf = folder / "btf"
    btf.write_bytes(section(vmlinux.read_bytes(), b".BTF"))
    subprocess.run(
        ["/usr/bin/python3", "-B", "-c", PROGRAM, str(user.pw_uid), str(user.pw_gid), str(btf), str(kept)],
        cwd="/", env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}, check=True, timeout=300,
    )  # fmt: skip
    return kept


def section(elf: bytes, name: bytes) -> bytes:
    """A section of a 64-bit little-endian ELF file; KeyError when it has none of that name."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", elf, 0x28)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + number * size) for number in range(count)]
    strings = headers[names][4]
    for label, _, _, _, offset, length in headers:
        begin = strings + label
        if elf[begin : elf.index(b"\0", begin)] == name:
            return elf[offset : offset + length]
    raise KeyError(name.decode())
