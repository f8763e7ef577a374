"""Keeps compiled eBPF programs from one start to the next: LLVM need not run again for the same result.

Takes the folder and everything that a compile depends on: our sources, the kernel's type information, the
compiler. Any difference is another key, so that nothing has to be invalidated. What is read back is loaded
by root, so it is believed only from files that nobody but root could write; everything else (no folder, a
damaged file, a full disk) means one more compile and is never an error.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import stat
from pathlib import Path

import msgspec

from spliffd import __version__
from spliffd.journal import logger
from spliffd.kernel.compile import HEADERS, SOURCES, Compiled, compile_programs, source_folder

log = logger("cache")

FOLDER = Path("/var/cache/spliff")
"""CacheDirectory= of the unit."""

MAX_FILES = 8
"""Kernels and versions kept, newest first: a host has two or three; 150 KiB each."""

MAX_BYTES = 4 << 20
"""Of a file; ten times what there is today."""

COMPILERS = "/usr/lib/*/libbcc.so.0"


def programs(uid: int, gid: int, btf: str, folder: Path = FOLDER) -> tuple[Compiled, bool]:
    """The compiled programs, and whether they were kept from before; raises as ``compile_programs`` does."""
    try:
        key = key_of(btf)
    except OSError:
        key = None  # compiling says what is missing
    kept = load(key, folder) if key else None
    if kept is not None:
        return kept, True
    compiled = compile_programs(uid, gid, btf)
    if key:
        store(key, compiled, folder)
    return compiled, False


def key_of(btf: str) -> str | None:
    """Digest of all that the result depends on; None when the compiler cannot be identified."""
    bcc = importlib.util.find_spec("bcc")
    if bcc is None or bcc.origin is None:
        return None
    digest = hashlib.sha256(f"{__version__} {os.uname().machine}".encode())
    for path in (bcc.origin, *sorted(glob.glob(COMPILERS))):
        facts = os.stat(path)
        digest.update(f"{os.path.realpath(path)} {facts.st_size} {facts.st_mtime_ns}".encode())
    folder = source_folder()
    files = [folder / name for name in (*HEADERS, *SOURCES)]
    for file in (*files, *sorted(path for path in (folder / "include").rglob("*") if path.is_file())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    # How the compiler is called is part of the result, too.
    digest.update((Path(__file__).parent / "compile.py").read_bytes())
    digest.update((Path(__file__).parent / "btf.py").read_bytes())
    digest.update(Path(btf).read_bytes())
    return digest.hexdigest()[:32]


def load(key: str, folder: Path = FOLDER) -> Compiled | None:
    """The result of an earlier compile; None when there is none that can be trusted."""
    path = folder / f"{key}.programs"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            for facts in (os.fstat(fd), os.stat(folder, follow_symlinks=False)):
                if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    log.warning("compiled programs are not believed: others may write there", path=str(path))
                    return None
            return msgspec.msgpack.decode(file.read(MAX_BYTES), type=Compiled)
    except (OSError, msgspec.DecodeError):
        return None


def store(key: str, compiled: Compiled, folder: Path = FOLDER) -> None:
    """Keeps a result; the oldest beyond ``MAX_FILES`` go."""
    new = folder / f".{key}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.msgpack.encode(compiled))
        new.rename(folder / f"{key}.programs")
        kept = sorted(folder.glob("*.programs"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-MAX_FILES]:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("compiled programs not kept", folder=str(folder), error=error.strerror)
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
