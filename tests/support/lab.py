"""A lab: a cgroup v2, private copies of the TLS libraries, a certificate, and the processes started in it.

Everything spliff's tests capture happens in here. The scope is twofold: the cgroup (in the kernel) and
the private copies (another inode than the system's libraries), so nothing else on the machine is ever
probed, let alone read. Leaving the lab ends its processes, by pid, and removes the cgroup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARIES = ("libssl.so.3", "libcrypto.so.3")
PYTHON = "/usr/bin/python3"


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted."""
    with open("/proc/self/mountinfo", encoding="ascii") as file:
        for line in file:
            fields, _, source = line.partition(" - ")
            if source.startswith("cgroup2 ") and fields.split()[3] == "/":
                return Path(fields.split()[4])
    raise RuntimeError("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


class Lab:
    """Use as a context manager; ``folder`` is gone afterwards, and so is every process started."""

    def __init__(self, name: str = "lab") -> None:
        if os.geteuid() != 0:
            raise RuntimeError("kernel and system tests need root: sudo make test")
        self.folder = Path(tempfile.mkdtemp(prefix=f"spliff-{name}-"))
        self.folder.chmod(0o755)
        self.cgroup = cgroup_root() / f"{self.folder.name}"
        self.cgroup.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.libraries = self.folder / "lib"
        self.libraries.mkdir()
        for name_ in LIBRARIES:
            source = next(Path("/usr/lib").glob(f"*/{name_}"))
            shutil.copy(source, self.libraries / name_)
        self.certificate, self.key = self.folder / "cert.pem", self.folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", self.key, "-out", self.certificate, "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"],
            check=True, capture_output=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment of processes in the lab: the private libraries first."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": str(self.libraries),
            "HOME": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def scope(self) -> list[str]:
        """Options that keep spliffd inside the lab."""
        return ["--scope-cgroup", str(self.cgroup), "--scope-path", f"{self.folder}/*"]

    def command(self, *arguments: str | Path, cgroup: Path | None = None) -> list[str]:
        """``arguments`` as a command that joins the cgroup before it becomes itself."""
        procs = (cgroup or self.cgroup) / "cgroup.procs"
        return ["/bin/sh", "-c", f'echo $$ > "{procs}" && exec "$@"', "sh", *map(str, arguments)]

    def start(self, *arguments: str | Path, cgroup: Path | None = None, **options) -> subprocess.Popen[bytes]:
        """Starts a process in the lab."""
        environment = {**self.environment, **options.pop("env", {})}
        process = subprocess.Popen(self.command(*arguments, cgroup=cgroup), env=environment, **options)
        self.processes.append(process)
        return process

    def run(self, *arguments: str | Path, **options) -> subprocess.CompletedProcess[bytes]:
        """Runs a process in the lab to its end."""
        options.setdefault("capture_output", True)
        options.setdefault("timeout", 120)
        environment = {**self.environment, **options.pop("env", {})}
        return subprocess.run(self.command(*arguments), env=environment, check=False, **options)

    def close(self) -> None:
        """Ends what was started and removes what was made."""
        for process in reversed(self.processes):
            stop(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        wait_for(self._emptied, 60, f"an end of {self._pids()}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _emptied(self) -> bool:
        """Whether the cgroup is gone; ends who is left in it."""
        for pid in self._pids():  # grandchildren of ours, such as nginx workers of a killed master
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            for directory, _, _ in os.walk(self.cgroup, topdown=False):
                os.rmdir(directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False  # whoever is about to end is listed no more, and still in it
        return True

    def _pids(self) -> list[int]:
        found: list[int] = []
        for directory, _, _ in os.walk(self.cgroup):
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                found += [int(line) for line in file]
        return found


def refuse_unscoped(lab: Lab) -> None:
    """Nothing is traced but what a lab started: without a cgroup of its own there is no test."""
    if not lab.cgroup.is_dir() or lab.cgroup == cgroup_root() or not lab.libraries.is_dir():
        raise RuntimeError("tests run scoped to a cgroup and library copies of their own, or not at all")


def stop(process: subprocess.Popen[bytes], seconds: float = 10.0) -> int:
    """Ends one process politely, then not so."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def wait_for(condition, seconds: float = 30.0, what: str = "condition") -> None:
    """Polls until ``condition()`` holds; asks once more when the time is over, which may have passed in one go."""
    deadline = time.monotonic() + seconds
    over = False
    while not condition():
        if over:
            raise TimeoutError(f"{what} not within {seconds} s")
        time.sleep(0.01)
        over = time.monotonic() > deadline


def say(text: str) -> None:
    """Progress of long work."""
    print(text, file=sys.stderr, flush=True)
