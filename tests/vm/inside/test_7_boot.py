"""After a cold boot: the unit starts by itself, before the network is there, and takes what comes."""

import subprocess

from tests.vm.inside.guest import (
    fetch,
    figure,
    is_ready,
    journal,
    on_wire,
    run,
    serve,
    show,
    trouble,
    wait_for,
    watching,
)

LATE = "late-network.service"
"""Of the image (see guest/): starts after spliffd and takes its time, as DHCP or a VPN does."""


def test_it_was_started_by_the_boot_before_the_network():
    wait_for(is_ready, 300, "the boot's own start")
    assert show("NRestarts") == "0"
    ready = int(show("ActiveEnterTimestampMonotonic"))
    started = int(show("InactiveExitTimestampMonotonic"))
    subprocess.run(["systemctl", "start", LATE], check=True)
    network = int(
        run("systemctl", "show", LATE, "--property=ExecMainExitTimestampMonotonic", "--value").strip()
        or run("systemctl", "show", LATE, "--property=ActiveEnterTimestampMonotonic", "--value")
    )
    assert started < network
    figure("boot", f"started {started / 1e6:.1f} s and READY {ready / 1e6:.1f} s after the kernel; "
           f"the network came at {network / 1e6:.1f} s")  # fmt: skip


def test_interfaces_that_came_later_are_hooked():
    enter = ["nsenter", "--net=/run/netns/boot"]
    server = serve("boot", *enter)
    with watching() as watch:
        fetch("https://10.83.0.2/boot?[1-7]", "-H", "Connection: close")
        seen = watch.wait(7)
    server.kill()
    server.wait()
    assert {on_wire(one) for one in seen} == {("TC", "late0")}
    listed = run("spliffctl", "interfaces")
    assert "late0" in listed
    figure("interfaces after boot", f"{len(seen)} of 7 exchanges on TC late0")


def test_nothing_went_wrong_on_the_way():
    # It has a TLS library of its own that cannot be watched, and says so.
    found = [line for line in trouble("@0") if "SPLIFF_PATH=/opt/spliff/" not in line]
    assert not found, "\n".join(found)
    assert "failed" not in journal("--boot").lower()
