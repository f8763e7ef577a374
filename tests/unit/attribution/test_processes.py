"""Processes from /proc: cgroup paths in, units and containers out; and never the facts of another process."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.attribution import processes
from spliffd.attribution.processes import Processes, owners, parse_cgroup, user_name
from spliffd.kernel.records import PROCESS_RECORD

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/nginx.service\n", "/system.slice/nginx.service"),  # v2
        ("0::/\n", "/"),
        ("4:memory:/a\n1:name=systemd:/system.slice/cron.service\n", "/system.slice/cron.service"),  # v1
        ("4:memory:/docker/x\n3:cpu,cpuacct:/docker/y\n", "/docker/x"),  # v1 without systemd
        (
            "1:name=systemd:/init.scope\n0::/user.slice/a.scope\n",
            "/user.slice/a.scope",
        ),  # hybrid: v2 says more
        (
            "9:cpu:/\n1:name=systemd:/system.slice/x.service\n0::/\n",
            "/system.slice/x.service",
        ),  # hybrid: v1 does
        ("0::/a:b/c\n", "/a:b/c"),
        ("", ""),
        ("nonsense\n", ""),
    ],
)
def test_the_path_that_says_most(text, path):
    assert parse_cgroup(text) == path


@pytest.mark.parametrize(
    ("path", "unit", "container"),
    [
        ("/system.slice/nginx.service", "nginx.service", ""),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-17.scope",
            "app-firefox-17.scope",
            "",
        ),
        ("/system.slice/dbus.socket", "dbus.socket", ""),
        ("/system.slice", "", ""),
        ("/", "", ""),
        ("", "", ""),
        (f"/docker/{ID}", "", ID),  # docker, cgroupfs driver
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID),  # docker, systemd driver
        (f"/system.slice/docker-{ID}.scope/init", f"docker-{ID}.scope", ID),  # nested
        (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID),  # podman
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
            f"libpod-{ID}.scope",
            ID,
        ),
        (f"/kubepods/besteffort/pod8e/{ID}", "", ID),  # cgroupfs driver
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-pod8e.slice/cri-containerd-{ID}.scope", f"cri-containerd-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-pod8e.slice/crio-{ID}.scope", f"crio-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-pod8e.slice:cri-containerd:{ID}", "", ID),  # containerd's own form
        (f"/system.slice/x.service/{ID[:63]}", "x.service", ""),  # not an id: 63 digits
        (f"/system.slice/{ID}0", "", ""),  # 65
        (f"/docker/{ID.upper()}", "", ""),  # ids are small letters
    ],
)  # fmt: skip
def test_units_and_containers(path, unit, container):
    assert owners(path) == (unit, container)


@given(st.text())
def test_any_text_is_read(text):
    owners(parse_cgroup(text))


def start_ns(pid: int | str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return int(fields[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_a_live_process():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            found, known = Processes().facts(process.pid, start_ns(process.pid))
            while found.cmdline != "sleep 60":  # between fork and exec it is still this test
                found, known = Processes().facts(process.pid, start_ns(process.pid))
        finally:
            process.kill()
    assert known
    assert found.exe.endswith(("sleep", "coreutils"))
    assert found.user == user_name(os.geteuid())
    assert found.cgroup.startswith("/")


def told(
    pid: int, start: int, *, exe: bytes = b"sleep\0bin\0usr\0", cgroup: bytes = b"", cmdline: bytes = b"",
    uid: int = 0, cut: bool = False,
) -> bytes:  # fmt: skip
    """An exec as the kernel tells it: names of paths from the last to the first."""
    head = PROCESS_RECORD.pack(pid, 1, start, 0, uid, len(exe), len(cgroup), len(cmdline), cut)
    return head + exe + cgroup + cmdline


def test_a_process_that_ended_is_known_by_its_exec(tmp_path):
    known = Processes(str(tmp_path))
    cgroup = f"docker-{ID}.scope\0system.slice\0".encode()
    known.remember(7, 500, told(7, 500, cgroup=cgroup, cmdline=b"sleep\0a b\0"))
    found, there = known.facts(7, 500)
    assert there
    assert (found.exe, found.cmdline, found.user) == ("/usr/bin/sleep", "sleep 'a b'", "root")
    assert found.cgroup == f"/system.slice/docker-{ID}.scope"
    assert (found.unit, found.container) == (f"docker-{ID}.scope", ID)
    found, there = known.facts(7, 501)  # another process with the same pid
    assert not there
    assert (found.pid, found.exe, found.cmdline) == (7, "", "")


def test_the_last_exec_of_a_process_counts(tmp_path):
    known = Processes(str(tmp_path))
    known.remember(7, 500, told(7, 500, exe=b"sh\0bin\0"))
    known.remember(7, 500, told(7, 500))
    assert known.facts(7, 500)[0].exe == "/usr/bin/sleep"


def test_a_path_that_was_cut_says_so(tmp_path):
    known = Processes(str(tmp_path))
    known.remember(7, 500, told(7, 500, exe=b"x\0deep\0", cut=True))
    assert known.facts(7, 500)[0].exe == ".../deep/x"


def test_a_process_that_ended_and_was_not_waited_for():
    known = Processes()
    with subprocess.Popen(["sleep", "60"]) as process:
        start = start_ns(process.pid)
        known.remember(process.pid, start, told(process.pid, start, cmdline=b"sleep\x0060\0"))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        found, there = known.facts(process.pid, start)
        assert there
        assert found.cmdline == "sleep 60"
        assert found.exe.endswith("sleep")
        unknown, there = Processes().facts(process.pid, start)
        assert there
        assert (unknown.exe, unknown.cmdline) == ("", "")


def plant(
    folder, pid: int, *, start: int, name: str = "x", cmdline: bytes = b"", cgroup: str = "0::/\n"
) -> None:
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "stat").write_text(f"{pid} ({name}) S 1 " + "0 " * 17 + f"{start} 0 0\n")
    (folder / str(pid) / "cmdline").write_bytes(cmdline)
    (folder / str(pid) / "cgroup").write_text(cgroup)


TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_another_process_with_the_same_pid_is_not_it(tmp_path):
    plant(tmp_path, 7, start=1000)
    known = Processes(str(tmp_path))
    assert known.facts(7, 1000 * TICK)[1]
    assert known.facts(7, 1000 * TICK + TICK // 2)[1]  # /proc counts in ticks, the kernel in ns
    assert not known.facts(7, 1002 * TICK)[1]
    assert not known.facts(8, 1000 * TICK)[1]


def test_hostile_names_and_long_command_lines(tmp_path):
    plant(
        tmp_path, 7, start=5, name=") S 1 0 (x", cmdline=b"a\0b c\0$(rm)\0\xff" + b"x" * 10_000,
        cgroup=f"0::/system.slice/docker-{ID}.scope\n",
    )  # fmt: skip
    found, known = Processes(str(tmp_path)).facts(7, 5 * TICK)
    assert known
    assert found.cmdline.startswith("a 'b c' '$(rm)' ")
    assert len(found.cmdline) <= processes.CMDLINE_BYTES + 20
    assert found.container == ID
    assert found.exe == ""  # a kernel thread has none


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    size = len(told(1, 5))
    monkeypatch.setattr(processes, "REMEMBERED_BYTES", 3 * (size + processes.RECORD_OVERHEAD))
    known = Processes(str(tmp_path))
    for pid in (1, 2, 3, 3, 4, 5):
        known.remember(pid, 5 * TICK, told(pid, 5 * TICK))
    assert [known.facts(pid, 5 * TICK)[1] for pid in range(1, 6)] == [False, False, True, True, True]


def test_users():
    assert user_name(0) == "root"
    assert user_name(4_000_000_000) == ""


def test_ancestors_from_proc_and_from_records(tmp_path):
    """7 lives, its parent 6 has ended and was recorded, 5 lives; 4 took its pid later than its child began."""
    known = Processes(str(tmp_path))
    for pid, ppid, start in ((7, 6, 300), (5, 4, 100), (4, 1, 900)):
        plant(tmp_path, pid, start=start)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) S {ppid} " + "0 " * 17 + f"{start} 0 0\n")
    known.remember(6, 200 * TICK, PROCESS_RECORD.pack(6, 5, 200 * TICK, 0, 0, 0, 0, 0, 0))
    found, there = known.facts(7, 300 * TICK)
    assert there
    assert found.ppid == 6
    assert found.ancestors == [6, 5, 4]


def test_who_had_a_pid_at_a_time(tmp_path):
    known = Processes(str(tmp_path))
    plant(tmp_path, 7, start=1000)
    assert known.holder(7, 5000 * TICK) == 1000 * TICK
    assert known.holder(7, 500 * TICK) == 0  # another process had it
    known.remember(7, 400 * TICK + 3, PROCESS_RECORD.pack(7, 1, 400 * TICK + 3, 0, 0, 0, 0, 0, 0))
    assert known.holder(7, 500 * TICK) == 400 * TICK + 3
    assert known.holder(8, 500 * TICK) == 0
    known.remember(7, 1000 * TICK + 3, PROCESS_RECORD.pack(7, 1, 1000 * TICK + 3, 0, 0, 0, 0, 0, 0))
    assert known.holder(7, 5000 * TICK) == 1000 * TICK + 3  # exactly, as the kernel said


def test_a_chain_of_ancestors_ends(tmp_path):
    known = Processes(str(tmp_path))
    for pid in range(1, 101):
        plant(tmp_path, pid, start=pid)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) S {pid - 1} " + "0 " * 17 + f"{pid} 0 0\n")
    assert known.facts(100, 100 * TICK)[0].ancestors == list(range(99, 99 - processes.GENERATIONS, -1))
    assert known.facts(3, 3 * TICK)[0].ancestors == [2, 1]
