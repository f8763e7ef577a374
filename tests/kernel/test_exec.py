"""What the kernel tells at an exec, against what /proc says of the same process while it lives."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliffd.attribution.processes import CMDLINE_BYTES, parse_cgroup
from spliffd.kernel import records
from spliffd.kernel.maps import PROCESS_RING_BYTES
from spliffd.kernel.ring import Ring
from tests.support.lab import Lab, wait_for
from tests.support.tracer import Tracer

SLEEP = "/usr/bin/sleep"


class Execs:
    """The supervisor's ring: the last exec of each process."""

    def __init__(self, tracer: Tracer) -> None:
        self._ring = Ring(tracer.maps.fd["processes"], PROCESS_RING_BYTES)
        self.seen: dict[int, records.Exec] = {}

    def read(self) -> None:
        while positions := self._ring.drain(64):
            for at in positions:
                pid, _, _, _, _, *texts, _ = records.PROCESS_RECORD.unpack_from(self._ring.data, at)
                size = records.PROCESS_RECORD.size + sum(texts)
                self.seen[pid] = records.unpack_exec(self._ring.data[at : at + size])
            self._ring.release()

    def wait(self, process: subprocess.Popen[bytes], condition: Callable[[records.Exec], bool]) -> None:
        """Until the last exec of the process is the one that ``condition`` knows."""

        def told() -> bool:
            self.read()
            return process.pid in self.seen and condition(self.seen[process.pid])

        wait_for(told, 30, f"the kernel tells the exec of {process.pid}")


@pytest.fixture
def tracer(lab: Lab) -> Iterator[Tracer]:
    with Tracer(lab, nested=False) as tracer:
        yield tracer


@pytest.fixture
def execs(tracer: Tracer) -> Execs:
    return Execs(tracer)


def told_and_read(execs: Execs, process: subprocess.Popen[bytes], name: str = "sleep"):
    """The kernel's record of a process, and the same from /proc, once it has become ``name``.

    An exec gives the process its name first and passes the tracepoint later: so the record is waited for, until
    its command line is the process's own.
    """
    folder = Path(f"/proc/{process.pid}")
    wait_for(lambda: (folder / "comm").read_text().strip() == name, 30, f"the process is {name}")
    execs.wait(process, lambda told: told.cmdline == (folder / "cmdline").read_bytes()[: CMDLINE_BYTES - 1])
    proc = records.Exec(
        os.getpid(),
        folder.stat().st_uid,
        os.readlink(folder / "exe").removesuffix(" (deleted)"),
        parse_cgroup(f"0{(folder / 'cgroup').read_text().rpartition(chr(10) + '0')[2]}"),
        (folder / "cmdline").read_bytes(),
    )
    return execs.seen[process.pid], proc


def test_path_command_line_user_and_cgroup(lab: Lab, execs: Execs):
    told, read = told_and_read(execs, lab.start(SLEEP, "60"))
    assert told == read
    assert told.cmdline == b"/usr/bin/sleep\x0060\0"
    assert told.cgroup == f"/{lab.cgroup.name}"
    assert told.uid == 0


def test_a_deeper_cgroup(lab: Lab, execs: Execs):
    below = lab.cgroup / "system.slice" / "shop.service" / ("x" * 200)
    below.mkdir(parents=True)
    told, read = told_and_read(execs, lab.start(SLEEP, "60", cgroup=below))
    assert told == read
    assert told.cgroup == f"/{lab.cgroup.name}/system.slice/shop.service/{'x' * 200}"


def test_another_user(lab: Lab, execs: Execs):
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    told, read = told_and_read(execs, lab.start(*nobody, SLEEP, "60"))
    assert told == read
    assert told.uid == 65534


def test_a_symbolic_link_is_resolved_and_a_script_is_its_interpreter(lab: Lab, execs: Execs):
    (lab.folder / "nap").symlink_to(SLEEP)
    told, read = told_and_read(execs, lab.start(lab.folder / "nap", "60"), "nap")
    assert told == read
    assert told.exe.endswith(("/sleep", "/coreutils"))
    script = lab.folder / "script"
    script.write_text("#!/usr/bin/python3\nimport time\nprint(flush=True)\ntime.sleep(60)\n")
    script.chmod(0o755)
    told, read = told_and_read(execs, lab.start(script, stdout=subprocess.PIPE), "script")
    assert told == read
    assert told.exe.startswith("/usr/bin/python3")


def test_a_program_on_another_mount_and_in_another_root(lab: Lab, execs: Execs):
    """A private mount, and a root of its own inside it: the path is what the process itself would say."""
    root = lab.folder / "root"
    (root / "bin").mkdir(parents=True)
    busy = root / "bin" / "loop"
    source = lab.folder / "loop.c"
    source.write_text("int main(void) { for (;;) __builtin_ia32_pause(); }\n")
    subprocess.run(["gcc", "-static", "-O1", "-o", busy, source], check=True)
    mounted = f"mount --bind {root} /mnt && exec /mnt/bin/loop 60"
    told, read = told_and_read(execs, lab.start("unshare", "-m", "sh", "-c", mounted), "loop")
    assert told == read
    assert told.exe == "/mnt/bin/loop"
    told, read = told_and_read(execs, lab.start("chroot", root, "/bin/loop", "60"), "loop")
    assert told.cmdline == b"/bin/loop\x0060\0"
    assert told.exe == "/bin/loop"  # as in its own root; readlink from outside names the file from ours
    assert read.exe == str(busy)


def test_a_program_without_a_path(lab: Lab, execs: Execs):
    """An executable in memory (memfd_create), as loaders of malware and runc itself use it."""
    start = (
        "import os\n"
        "fd = os.memfd_create('ghost', 0)\n"
        f"os.write(fd, open('{SLEEP}', 'rb').read())\n"
        "os.execve(fd, ['sleep', '60'], os.environ)\n"
    )
    process = lab.start("/usr/bin/python3", "-c", start)
    execs.wait(process, lambda told: told.cmdline == b"sleep\x0060\0")
    assert execs.seen[process.pid].exe == "/memfd:ghost"
    assert os.readlink(f"/proc/{process.pid}/exe") == "/memfd:ghost (deleted)"


def test_long_command_lines_are_cut_and_deep_paths_say_so(lab: Lab, execs: Execs):
    told, read = told_and_read(execs, lab.start("sh", "-c", "exec sleep 60", "x" * 9000, "y"))
    assert told == read  # sleep has its own, short one
    long = lab.start("/usr/bin/python3", "-c", "import time; time.sleep(60)", "x" * 9000)
    told, read = told_and_read(execs, long, "python3")
    assert told.cmdline == read.cmdline[: CMDLINE_BYTES - 1]
    deep = lab.folder.joinpath(*(f"d{n}" for n in range(60)))
    deep.mkdir(parents=True)
    (deep / "sleep").write_bytes(Path(SLEEP).read_bytes())
    (deep / "sleep").chmod(0o755)
    told, read = told_and_read(execs, lab.start(deep / "sleep", "60"))
    assert told.exe.startswith("...")
    assert read.exe.endswith(told.exe.removeprefix("..."))
    assert told.exe.endswith("/d58/d59/sleep")


def test_a_burst_is_whole(lab: Lab, execs: Execs, tracer: Tracer):
    """More than the ring's usual backlog at once: every one of them is told, or counted."""
    lab.run("sh", "-c", "for i in $(seq 211); do /bin/true $i; done")
    execs.read()
    lines = {one.cmdline for one in execs.seen.values()}
    assert {b"/bin/true\0%d\0" % n for n in range(1, 212)} <= lines
    assert "process_ring_full" not in tracer.counters()
