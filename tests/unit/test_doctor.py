"""spliffd.doctor: planted hosts in, a report out."""

import os
import stat
import sys

import pytest

from spliffd import doctor
from spliffd.doctor import Check, Host, State
from spliffd.errors import HostError

INF = doctor.resource.RLIM_INFINITY

ALL_CAPS = "Name:\tpython\nCapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\n"

HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
)


@pytest.fixture
def python(tmp_path):
    """Plants an interpreter that answers what it is told; returns a function that writes it."""

    def plant(answer: str, code: int = 0) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return plant


@pytest.fixture
def host(tmp_path, python):
    """A host on which nothing is missing, in files."""
    for path, text in {
        "proc/self/status": ALL_CAPS,
        "proc/self/mountinfo": HYBRID,
        "proc/sys/kernel/osrelease": "6.1.0-35-amd64\n",
        "proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
        "proc/sys/kernel/perf_event_paranoid": "3\n",
        "sys/bus/event_source/devices/uprobe/type": "9\n",
        "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "btf").write_bytes(doctor.BTF_MAGIC + bytes(100))
    return Host(
        btf=str(tmp_path / "btf"),
        proc=str(tmp_path / "proc"),
        sysfs=str(tmp_path / "sys"),
        python=python('{"bcc": "0.26.0", "libbpf": true}'),
        user="root",
        group="root",
    )


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_a_host_that_runs_spliff(host, as_root, capsys):
    assert doctor.main(host) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok        root           running as root",
        "ok        capabilities   all that are needed",
        "ok        kernel         6.1.0-35-amd64",
        # These two name files of the test's own folder: their line may be wrapped.
        *doctor.report([Check("BTF", State.OK, f"{host.btf} (0.0 MiB)")]),
        *doctor.report([Check("BCC", State.OK, f"0.26.0, imported by {host.python}")]),
        "ok        libbpf         libbpf.so.1",
        "ok        uprobes        supported",
        "ok        cgroup v2      /sys/fs/cgroup/unified",
        "ok        lockdown       integrity",
        "ok        user           user root, group root",
        *doctor.report([doctor.memlock(*doctor.resource.getrlimit(doctor.resource.RLIMIT_MEMLOCK), "6.1")]),
        "ok        sysctl         unprivileged_bpf_disabled=2, perf_event_paranoid=3",
    ]
    doctor.require(host)


def test_a_missing_check_ends_with_1_and_its_remedy(host, as_root, capsys):
    os.unlink(host.btf)
    assert doctor.main(host) == 1
    out = capsys.readouterr().out
    assert "\nmissing   BTF " in out
    assert "-> boot a kernel built with CONFIG_DEBUG_INFO_BTF=y" in out
    with pytest.raises(HostError) as caught:
        doctor.require(host)
    assert caught.value.exit_code == 3
    assert caught.value.message == f"BTF: {host.btf}: No such file or directory"
    assert "CONFIG_DEBUG_INFO_BTF=y" in caught.value.remedy


def test_a_degraded_check_lets_the_daemon_run(host, as_root, capsys):
    os.unlink(f"{host.sysfs}/kernel/security/lockdown")
    assert doctor.main(host) == 0
    assert "\ndegraded  lockdown " in capsys.readouterr().out
    doctor.require(host)


def test_extra_checks_come_last_and_count(host, as_root):
    refused = Check("uprobe_multi", State.MISSING, "EINVAL", "boot 6.6")
    assert doctor.checks(host, [lambda: refused])[-1] == refused
    with pytest.raises(HostError, match="uprobe_multi: EINVAL – boot"):
        doctor.require(host, [lambda: refused])


def test_no_line_is_longer_than_79_columns(host, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for directory, _, files in os.walk(host.proc):
        for name in files:
            os.unlink(os.path.join(directory, name))
    broken = Host(btf="/" + "long/" * 30, proc=host.proc, sysfs="/nope", python="/nope", user="no-such-user")
    found = doctor.checks(broken)
    assert [check.name for check in found if check.state is State.MISSING] == [
        "root",
        "capabilities",
        "BTF",
        "BCC",
        "uprobes",
        "cgroup v2",
        "user",
    ]
    assert all(check.remedy for check in found if check.state is not State.OK)
    lines = doctor.report(found)
    assert max(map(len, lines)) <= 79


def test_btf_path_comes_from_the_environment():
    assert Host.here(environ={"SPLIFF_BTF": "/nope"}).btf == "/nope"
    assert Host.here(environ={"SPLIFF_BTF": ""}).btf == "/sys/kernel/btf/vmlinux"
    assert Host.here(environ={}).python == sys.executable


def test_a_file_that_is_not_btf(tmp_path):
    (tmp_path / "x").write_bytes(b"\x7fELF")
    assert doctor.btf(str(tmp_path / "x")).state is State.MISSING
    (tmp_path / "x").write_bytes(b"")
    assert doctor.btf(str(tmp_path / "x")).state is State.MISSING


@pytest.mark.parametrize(
    ("effective", "lacking"),
    [
        ("000001ffffffffff", ""),
        # CAP_SYS_ADMIN stands for the two younger ones.
        (f"{1 << 21 | 1 << 12 | 1 << 19 | 1 << 2 | 1 << 7 | 1 << 6:016x}", ""),
        (f"{1 << 39 | 1 << 12 | 1 << 19 | 1 << 2 | 1 << 7 | 1 << 6:016x}", "no CAP_PERFMON"),
        # The default set of a Docker container.
        ("00000000a80425fb", "no CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH"),
    ],
)
def test_capabilities(effective, lacking):
    check = doctor.capabilities(f"CapPrm:\t0\nCapEff:\t{effective}\n")
    assert (check.state, check.detail) == (
        (State.MISSING, lacking) if lacking else (State.OK, "all that are needed")
    )


def test_without_cap_sys_admin_old_kernels_refuse_uprobes():
    check = doctor.capabilities(
        f"CapEff:\t{1 << 39 | 1 << 38 | 1 << 12 | 1 << 19 | 1 << 2 | 1 << 7 | 1 << 6:016x}\n"
    )
    assert check.state is State.DEGRADED
    assert "CAP_SYS_ADMIN" in check.remedy


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.18.44-custom", State.OK),
        ("5.15.0", State.OK),
        ("5.14.0-503.el9", State.DEGRADED),
        ("4.19.0-27-amd64", State.DEGRADED),
        ("", State.DEGRADED),
    ],
)
def test_kernel(release, state):
    assert doctor.kernel(release).state is state


@pytest.mark.parametrize(
    ("answer", "code", "bcc", "libbpf"),
    [
        ('{"bcc": "0.26.0", "libbpf": true}', 0, State.OK, State.OK),
        ('{"bcc": false, "libbpf": true}', 0, State.MISSING, State.OK),
        (
            '{"bcc_error": "ModuleNotFoundError: No module named \'bcc\'", "libbpf": true}',
            0,
            State.MISSING,
            State.OK,
        ),
        ('{"bcc_error": "OSError: libbcc.so.0", "libbpf": false}', 0, State.MISSING, State.MISSING),
        ("Segmentation fault", 139, State.MISSING, None),
        ("not json", 0, State.MISSING, None),
    ],
)
def test_bcc_and_libbpf(python, answer, code, bcc, libbpf):
    found = doctor.python_facts(python(answer, code))
    assert found[0].state is bcc
    assert [check.state for check in found[1:]] == ([libbpf] if libbpf else [])
    if bcc is State.MISSING:
        assert "sudo apt install python3-bpfcc" in found[0].remedy


def test_bcc_is_not_imported_into_this_process():
    assert doctor.python_facts(sys.executable)[0].state in (State.OK, State.MISSING)
    assert "bcc" not in sys.modules
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "libLLVM" not in maps.read()


def test_the_wrong_bcc_is_told_from_the_right_one(tmp_path):
    """PyPI's package called bcc has no BPF; the script that asks must see that."""
    (tmp_path / "bcc.py").write_text("__version__ = '0.1.10'\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{doctor.ASK_PYTHON}"
    done = doctor.subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    assert doctor.json.loads(done.stdout)["bcc"] is False


@pytest.mark.parametrize(
    ("mountinfo", "path"),
    [
        (HYBRID, "/sys/fs/cgroup/unified"),
        ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"),
        ("30 23 0:26 / /mnt/a\\040b rw - cgroup2 none rw\n", "/mnt/a b"),
        # A container that sees its own part of the tree only.
        ("30 23 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n", None),
        ("31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup2 rw\n", None),
        ("", None),
    ],
)
def test_cgroup2(mountinfo, path):
    check = doctor.cgroup2(mountinfo)
    assert (check.state, check.detail) == (State.OK, path) if path else check.state is State.MISSING


SECURITYFS = "25 23 0:7 / /sys/kernel/security rw - securityfs securityfs rw\n"


@pytest.mark.parametrize(
    ("text", "mountinfo", "state"),
    [
        ("[none] integrity confidentiality\n", SECURITYFS, State.OK),
        ("none [integrity] confidentiality\n", SECURITYFS, State.OK),
        ("none integrity [confidentiality]\n", SECURITYFS, State.MISSING),
        ("", SECURITYFS, State.OK),
        ("", "", State.DEGRADED),
    ],
)
def test_lockdown(text, mountinfo, state):
    assert doctor.lockdown(text, mountinfo).state is state


@pytest.mark.parametrize(
    ("soft", "hard", "release", "state"),
    [
        (INF, INF, "5.4.0", State.OK),
        (64 << 10, INF, "5.4.0", State.OK),
        (8 << 20, 8 << 20, "6.1.0", State.OK),
        (8 << 20, 8 << 20, "5.10.0", State.DEGRADED),
    ],
)
def test_memlock(soft, hard, release, state):
    assert doctor.memlock(soft, hard, release).state is state
