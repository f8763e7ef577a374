"""Removed and purged: nothing of it is left on the machine."""

import json
import subprocess
from pathlib import Path

from tests.vm.inside.guest import UNIT, figure, pid_of, run, sh, wait_for

PLACES = ("/etc", "/lib/systemd", "/opt", "/run", "/usr", "/var")
NOT_THE_PACKAGES = ("/var/log/", "/usr/lib/vm", "/var/lib/dpkg/info/format", "/run/log/", "/var/cache/apt/")


def held() -> tuple[int, int]:
    """eBPF programs of spliff, and links of any kind, on the whole machine."""
    programs = json.loads(run("bpftool", "-j", "prog", "list"))
    links = json.loads(run("bpftool", "-j", "link", "list"))
    return sum(
        1
        for one in programs
        if (one["type"] != "cgroup_device" and "spliff" in json.dumps(one))
        or one["type"] in ("xdp", "sched_cls", "sock_ops", "tracing")
    ), len(links)


def test_removed_it_runs_no_more():
    programs, links = held()
    assert programs
    pids = [pid_of(part) for part in ("supervisor", "worker", "api")]
    sh("touch /var/lib/spliff/history")
    run("apt-get", "remove", "--yes", "--quiet", "spliff")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not Path("/run/spliff").exists()
    assert run("systemctl", "is-active", UNIT, code=None).strip() == "inactive"
    assert Path("/etc/spliff/spliffd.toml").exists()
    wait_for(lambda: held() == (0, 0), 60, f"no program and no link (were {programs}, {links}; are {held()})")
    assert "clsact" not in run("tc", "qdisc", "show")
    figure("removal", f"{programs} programs and {links} links before, none after; no qdisc of ours")


def test_purged_nothing_is_left():
    run("apt-get", "purge", "--yes", "--quiet", "spliff")
    for kind in ("passwd", "group"):
        assert subprocess.run(["getent", kind, "spliff"], capture_output=True, check=False).returncode == 2
    found = sh(f"find {' '.join(PLACES)} -xdev -iname '*spliff*' 2>/dev/null || true").splitlines()
    left = [path for path in found if not path.startswith(NOT_THE_PACKAGES)]
    assert left == []
    assert run("systemctl", "list-unit-files", "--no-legend", "spliff*", code=None).strip() == ""
    assert "spliff" not in run("ss", "-xa")
    assert run("dpkg-query", "-W", "-f", "${Status}", "spliff", code=1) == ""
    figure("purge", "no user, group, socket, file, unit or program is left")
