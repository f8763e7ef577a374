"""The package's first day: installed by apt, started by systemd, used by those who may."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.inside.guest import (
    BY_KERNEL,
    SHARE,
    UNIT,
    doctor_figures,
    fetch,
    figure,
    in_use_figures,
    is_ready,
    journal,
    now,
    on_wire,
    pid_of,
    run,
    serve,
    sh,
    show,
    wait_for,
    watching,
)

SCORE_LIMIT = 4.0


@pytest.fixture(scope="module")
def server():
    made = serve("lo")
    yield "https://127.0.0.1"
    made.kill()
    made.wait()


def test_the_machine_was_restored_not_booted():
    seconds = (SHARE / "started").read_text()
    figure("restored", f"{seconds} s from QEMU's start to the first command")
    assert "vm.park" in Path("/proc/cmdline").read_text()
    assert run("systemctl", "is-system-running", code=None).strip() == "running"


def test_what_the_machine_is_like():
    with open("/proc/self/mountinfo", encoding="ascii") as file:
        mounts = [line.partition(" - ")[2].split()[0] for line in file]
    assert "cgroup2" in mounts
    assert "cgroup" not in mounts, "a pure hierarchy"
    lockdown = Path("/sys/kernel/security/lockdown").read_text()
    assert "[none]" in lockdown
    figure("the machine", f"cgroup v2 alone, lockdown {lockdown.strip()}")


def test_apt_installs_it_and_systemd_starts_it():
    kept = Path("/var/cache/spliff")
    if (
        not kept.exists()
    ):  # LLVM under emulation: what the host has compiled for this kernel, see precompile.py
        sh(f"mkdir -m 700 {kept}; cp {SHARE}/programs/* {kept}; chown -R root:root {kept}")
    began = time.monotonic()
    run("apt-get", "install", "--yes", "--quiet", str(next(SHARE.glob("spliff_*.deb"))))
    assert is_ready(), journal()
    assert show("Type") == "notify"
    assert show("UnitFileState") == "enabled"
    usec = int(show("ActiveEnterTimestampMonotonic")) - int(show("InactiveExitTimestampMonotonic"))
    figure(
        "start", f"READY {usec / 1e6:.1f} s after systemctl start ({time.monotonic() - began:.0f} s with apt)"
    )


def test_systemctl_status_shows_the_health_line():
    status = run("systemctl", "status", "--no-pager", UNIT)
    assert re.search(r'Status: "\d+ libraries probed, \d+ exchanges', status), status


def test_the_doctor_says_which_path_each_feature_takes():
    report = run("spliffd", "doctor")
    assert "missing" not in report, report
    doctor_figures(report, *BY_KERNEL, "lockdown", "cgroup v2")
    # Filters first, links when there is time for them.
    way = "tcx" if "TCX links" in report else "clsact"
    wait_for(lambda: f"on TC {way}" in run("spliffctl", "status"), 120, f"packets by {way}", every=1)
    told = run("spliffctl", "status").partition("FEATURE")[2].splitlines()[1:]
    rows = [re.split(r"  +", line.strip().replace(" ok ", "  ok  "), maxsplit=2) for line in told]
    in_use_figures({name: detail for name, _, detail in rows})


def test_a_member_of_the_group_watches_a_process(server):
    sh("useradd --no-create-home --groups spliff member")
    gate = Path("/tmp/gate")
    os.mkfifo(gate)
    command = f"read _ < {gate}; exec curl -sk -o /dev/null {server}/watched?[1-7]"
    client = subprocess.Popen(["sh", "-c", command])
    try:
        with watching("--pid", str(client.pid), user="member") as watch:
            gate.write_text("\n")
            seen = watch.wait(7)
            fetch(f"{server}/another")
            time.sleep(0.5)
            assert len(watch.exchanges()) == 7
    finally:
        client.kill()
        client.wait()
    assert sorted(one["request"]["path"] for one in seen) == [f"/watched?{n}" for n in range(1, 8)]
    for one in seen:
        assert one["process"]["pid"] == client.pid
        assert one["response"]["status"] == 200
        assert on_wire(one) == ("TC", "lo"), one
    methods = {one["correlation"]["method"] for one in seen}
    assert methods <= {"SOCKET_NESTED", "SOCKET_FD"}, methods
    figure("socket named by", ", ".join(sorted(methods)))


def test_others_are_told_why_not():
    sh("useradd --no-create-home stranger")
    done = subprocess.run(
        ["setpriv", "--reuid=stranger", "--regid=stranger", "--init-groups", "spliffctl", "watch", "--pid", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (77, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "sudo usermod -aG spliff" in done.stderr
    figure("outside the group", f"exit 77: {done.stderr.strip()}")


def test_the_journal_has_fields():
    entries = [
        json.loads(line)
        for line in run("journalctl", "--no-pager", "--output=json", f"--unit={UNIT}").splitlines()
    ]
    ours = [
        entry for entry in entries if entry.get("SYSLOG_IDENTIFIER") == "spliffd" and "SPLIFF_STAGE" in entry
    ]
    assert "ready" in {entry["MESSAGE"] for entry in ours}, entries
    for entry in ours:
        assert entry["_SYSTEMD_UNIT"] == UNIT
        assert int(entry["PRIORITY"]) > 3, entry["MESSAGE"]
    found = run("journalctl", "--no-pager", "--output=cat", "SPLIFF_STAGE=supervisor")
    assert "ready" in found
    fields = sorted({name for entry in ours for name in entry if name.startswith("SPLIFF_")})
    figure("journal fields", ", ".join(fields))


def test_the_unit_is_hardened():
    told = run("systemd-analyze", "security", "--no-pager", UNIT)
    score = re.search(r"Overall exposure level for spliffd\.service: ([0-9.]+)", told)
    assert score, told
    assert float(score[1]) <= SCORE_LIMIT
    figure("systemd-analyze security", score[1])


def test_a_reload_is_no_restart(server):
    main, worker = show("MainPID"), pid_of("worker")
    with watching() as watch:
        sh(
            """sed -i 's/^#exclude = .*/exclude = ["lo"]/' /etc/spliff/spliffd.toml; systemctl reload spliffd"""
        )
        wait_for(is_ready, 60, "reloaded")
        assert (show("MainPID"), pid_of("worker"), show("NRestarts")) == (main, worker, "0")
        fetch(f"{server}/reloaded")
        (one,) = watch.wait(1)
        assert (one["request"]["path"], on_wire(one)) == ("/reloaded", ("NONE", ""))
        sh("sed -i 's/^exclude = .*/#exclude = []/' /etc/spliff/spliffd.toml; systemctl reload spliffd")
        fetch(f"{server}/reloaded")
        assert on_wire(watch.wait(2)[-1]) == ("TC", "lo")


def test_a_wrong_configuration_is_refused_and_the_old_one_kept(server):
    main = show("MainPID")
    since = now()
    sh("cp /etc/spliff/spliffd.toml /tmp/good.toml; echo 'nonsense = 1' >> /etc/spliff/spliffd.toml")
    run("systemctl", "reload", "spliffd", code=None)
    wait_for(
        lambda: "nonsense" in journal("--since", since, "--output=verbose"), 60, "the reason in the journal"
    )
    assert (show("MainPID"), show("ActiveState")) == (main, "active")
    sh("cp /tmp/good.toml /etc/spliff/spliffd.toml; systemctl reload spliffd")
