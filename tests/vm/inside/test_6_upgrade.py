"""A newer build is installed over the running one, while somebody watches."""

import time
from pathlib import Path

from tests.vm.inside.guest import (
    SHARE,
    fetch,
    figure,
    is_ready,
    pid_of,
    run,
    serve,
    sh,
    show,
    wait_for,
    watching,
)


def test_upgrade_under_a_watcher():
    server = serve("upgrade")
    old = pid_of("supervisor")
    newer = (
        SHARE / "newer.deb"
    )  # the same files as a newer version: upgrading is dpkg's and the scripts' doing
    sh("echo '# mine' >> /etc/spliff/spliffd.toml")
    with watching() as watch:
        began = time.monotonic()
        run("apt-get", "install", "--yes", "--quiet", str(newer))
        taken = time.monotonic() - began
        watch.process.wait(60)
        told = watch.errors.strip().splitlines()
    assert watch.process.returncode == 69, told
    assert "run the command again" in told[-1], told
    wait_for(is_ready, 240, "the new one")
    assert pid_of("supervisor") != old
    assert run("dpkg-query", "-W", "-f", "${Version}", "spliff").endswith("+newer")
    assert Path("/etc/spliff/spliffd.toml").read_text().endswith("# mine\n")
    assert (show("ActiveState"), show("UnitFileState")) == ("active", "enabled")
    with watching() as watch:
        fetch("https://127.0.0.1/upgraded")
        assert [one["request"]["path"] for one in watch.wait(1)] == ["/upgraded"]
    server.kill()
    server.wait()
    figure("upgrade", f"{taken:.0f} s; the watcher is told: {told[-1]!r}, exit 69; the configuration is kept")
