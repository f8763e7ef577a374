"""The Debian package, built by `make deb`, installed and purged in an overlay of this machine's own root.

The overlay lives in memory in a mount namespace: dpkg, systemd-sysusers and the maintainer scripts run for
real and this machine keeps no trace. systemd is not PID 1 there, so starting the service is tested elsewhere.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from spliffd import __version__
from spliffd.config import Config, parse

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging/systemd/spliffd.service"

pytestmark = pytest.mark.timeout(600)


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def inputs_digest() -> str:
    """Names and contents of everything that goes into the package."""
    digest = hashlib.sha256()
    for name in (
        "spliffd",
        "spliffctl",
        "bpf",
        "packaging",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    ):
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@pytest.fixture(scope="session")
def package():
    """The .deb of this checkout; built (20 s) only when something in it has changed."""
    target = ROOT / f"dist/spliff_{__version__}_{run('dpkg', '--print-architecture').strip()}.deb"
    stamp = target.with_suffix(".inputs")
    digest = inputs_digest()
    if not (target.exists() and stamp.exists() and stamp.read_text() == digest):
        run(ROOT / "packaging/deb/build.sh", ROOT / ".venv/bin")
        stamp.write_text(digest)
    return target


@pytest.fixture(scope="session")
def unpacked(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deb")
    run("dpkg-deb", "-x", package, folder)
    return folder


class Machine:
    """This machine's root under an overlay; ``upper`` holds what was changed."""

    def __init__(self, holder, merged, upper):
        self.merged = merged
        self.upper = Path(f"/proc/{holder.pid}/root{upper}")
        self._enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "chroot", str(merged)]

    def run(self, script: str, code: int = 0) -> str:
        """Runs a shell script inside and returns its output."""
        done = subprocess.run(
            [*self._enter, "sh", "-euc", script],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
        )
        assert done.returncode == code, f"{script}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def changed(self, word: str) -> list[str]:
        """Paths that name ``word`` and were written (an overlay's whiteouts are deletions)."""
        return sorted(
            "/" + str(path.relative_to(self.upper))
            for path in self.upper.rglob(f"*{word}*")
            if not stat.S_ISCHR(path.lstat().st_mode)
        )


@contextlib.contextmanager
def machine(folder, package):
    """A Machine that has the package's file and neither user nor group spliff."""
    script = f"""
        mount -t tmpfs none {folder}
        mkdir {folder}/upper {folder}/work {folder}/merged
        mount -t overlay overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {folder}/merged
        mount -t proc none {folder}/merged/proc
        mount --rbind /sys {folder}/merged/sys
        mount --rbind /dev {folder}/merged/dev
        cp {package} {folder}/merged/spliff.deb
        echo ready
        exec sleep 600
    """
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout.readline() == "ready\n"
            inside = Machine(holder, folder / "merged", folder / "upper")
            inside.run(
                "! getent passwd spliff >/dev/null || userdel spliff; ! getent group spliff >/dev/null || groupdel spliff"
            )
            yield inside
        finally:
            holder.kill()


@pytest.fixture(scope="session")
def installed(package, tmp_path_factory):
    with machine(tmp_path_factory.mktemp("machine"), package) as inside:
        inside.run("dpkg -i /spliff.deb")
        yield inside


def test_control_fields(package):
    def field(name):
        return run("dpkg-deb", "-f", package, name).strip()

    assert field("Package") == "spliff"
    assert field("Version") == __version__
    depends = field("Depends").split(", ")
    assert {"python3 (>= 3.11)", "python3 (<< 3.12)", "python3-bpfcc", "libbpf1", "systemd"} <= set(depends)
    assert package.stat().st_size < 25 << 20


def test_contents(package):
    listed = [line.split(None, 5) for line in run("dpkg-deb", "-c", package).splitlines()]
    assert {line[1] for line in listed} == {"root/root"}
    paths = {line[5].split(" -> ")[0].removeprefix(".") for line in listed}
    assert {
        "/etc/spliff/spliffd.toml",
        "/lib/systemd/system/spliffd.service",
        "/opt/spliff/bin/spliffctl",
        "/opt/spliff/bin/spliffd",
        "/opt/spliff/lib/python3.11/site-packages/spliffd/bpf/tls.bpf.c",
        "/opt/spliff/lib/python3.11/site-packages/spliffd/bpf/include/linux/types.h",
        "/opt/spliff/lib/python3.11/site-packages/spliffd/pb/spliff_pb2.py",
        "/usr/bin/spliffctl",
        "/usr/bin/spliffd",
        "/usr/lib/sysusers.d/spliff.conf",
        "/usr/lib/tmpfiles.d/spliff.conf",
        "/usr/share/bash-completion/completions/spliffctl",
        "/usr/share/doc/spliff/LICENSE",
        "/usr/share/doc/spliff/README.md",
        "/usr/share/doc/spliff/changelog.gz",
        "/usr/share/doc/spliff/copyright",
        "/usr/share/fish/vendor_completions.d/spliffctl.fish",
        "/usr/share/man/man1/spliffctl.1.gz",
        "/usr/share/man/man1/spliffctl-watch.1.gz",
        "/usr/share/man/man8/spliffd.8.gz",
        "/usr/share/spliff/grafana/spliff.json",
        "/usr/share/spliff/prometheus/spliff.rules.yml",
        "/usr/share/zsh/vendor-completions/_spliffctl",
    } <= paths
    for line in listed:
        if not line[0].startswith("l"):
            assert line[0][8] == "-", f"writable by everybody: {line[5]}"
            assert "s" not in line[0][1:], f"set-id: {line[5]}"
    assert not [path for path in paths if path.endswith(("/pip", "/tests", "/RECORD"))]


def test_nothing_names_the_building_machine(unpacked):
    found = subprocess.run(["grep", "-rl", str(ROOT), unpacked], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert (unpacked / "opt/spliff/pyvenv.cfg").read_text().endswith("--system-site-packages /opt/spliff\n")
    for command in ("spliffd", "spliffctl"):
        assert os.readlink(unpacked / "usr/bin" / command) == f"/opt/spliff/bin/{command}"
        assert (
            (unpacked / "opt/spliff/bin" / command).read_text().startswith("#!/opt/spliff/bin/python3 -I\n")
        )


def test_the_configuration_is_the_commented_defaults(package, unpacked, tmp_path):
    text = (unpacked / "etc/spliff/spliffd.toml").read_text()
    assert parse(text, "as shipped") == Config()
    keys = [line for line in text.splitlines() if line.startswith("#") and not line.startswith("# ")]
    uncommented = "\n".join(line.lstrip("#") if line in keys else line for line in text.splitlines())
    assert parse(uncommented, "uncommented") == Config()
    assert set(tomllib.loads(uncommented)) == set(Config.__struct_fields__)
    run("dpkg-deb", "-e", package, tmp_path)
    assert (tmp_path / "conffiles").read_text() == "/etc/spliff/spliffd.toml\n"


def test_the_client_runs_from_the_unpacked_tree(unpacked):
    site = unpacked / "opt/spliff/lib/python3.11/site-packages"
    out = run(
        "/usr/bin/python3",
        "-B",
        unpacked / "opt/spliff/bin/spliffctl",
        "--version",
        cwd="/",
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
    )
    assert __version__ in out


def test_completions(unpacked):
    completion = unpacked / "usr/share/bash-completion/completions/spliffctl"
    run("bash", "-n", completion)
    assert "spliffctl" in completion.read_text()


def test_installation_makes_the_user_and_enables_the_service(installed):
    assert installed.run("id -un spliff; id -gn spliff").split() == ["spliff", "spliff"]
    assert installed.run("getent passwd spliff").strip().endswith(":/nonexistent:/usr/sbin/nologin")
    assert installed.run("stat -c '%U:%G %a' /var/lib/spliff").strip() == "root:root 750"
    assert (
        installed.run("readlink /etc/systemd/system/multi-user.target.wants/spliffd.service").strip()
        == "/lib/systemd/system/spliffd.service"
    )


def test_both_commands_run_where_they_are_installed(installed):
    assert __version__ in installed.run("cd /; spliffctl --version")
    assert __version__ in installed.run("cd /; spliffd --version")
    assert "Usage: spliffctl top" in installed.run("cd /; spliffctl top --help")
    assert installed.run("/opt/spliff/bin/python3 -Ic 'import spliffctl.top.app'") == ""


def test_the_installed_daemon_finds_bcc_and_its_sources(installed):
    python = "/opt/spliff/bin/python3 -I -c"
    out = installed.run(
        f"""{python} 'import bcc, msgspec; print(bcc.BPF.__name__, bcc.__file__, msgspec.__file__)'"""
    )
    assert out.split() == [
        "BPF",
        "/usr/lib/python3/dist-packages/bcc/__init__.py",
        "/opt/spliff/lib/python3.11/site-packages/msgspec/__init__.py",
    ]
    out = installed.run(
        f"""{python} 'from spliffd.kernel.compile import source_folder; print(source_folder())'"""
    )
    assert out.strip() == "/opt/spliff/lib/python3.11/site-packages/spliffd/bpf"


def test_code_in_the_current_folder_does_not_get_into_the_daemon(installed):
    plant = "mkdir -p /tmp/trap; cd /tmp/trap; for name in click grpc msgspec; do echo 'print(\"trapped\")' >$name.py; done;"
    out = installed.run(plant + "export PYTHONPATH=/tmp/trap; spliffctl --version; spliffd --version")
    assert "trapped" in installed.run(plant + "/opt/spliff/bin/python3 -c 'import click, grpc, msgspec'")
    assert "trapped" not in out


def test_running_writes_nothing_into_opt(installed):
    before = installed.run("find /opt/spliff | sort")
    installed.run("spliffctl --help; spliffd --version")
    assert installed.run("find /opt/spliff | sort") == before


def test_the_unit_is_correct_where_it_is_installed(installed):
    out = installed.run("systemd-analyze verify --man=no /lib/systemd/system/spliffd.service 2>&1")
    assert out == ""


def test_the_unit_is_hardened():
    out = run("systemd-analyze", "security", "--offline=true", "--threshold=40", UNIT)
    assert "Overall exposure level for spliffd.service: " in out


def test_reinstallation_keeps_the_administrators_choices(package, tmp_path):
    with machine(tmp_path, package) as inside:
        inside.run("dpkg -i /spliff.deb")
        inside.run("sed -i 's/^#debug = false/debug = true/' /etc/spliff/spliffd.toml")
        inside.run("systemctl disable spliffd.service")
        inside.run("dpkg -i /spliff.deb")
        assert "\ndebug = true\n" in inside.run("cat /etc/spliff/spliffd.toml")
        inside.run("test ! -e /etc/systemd/system/multi-user.target.wants/spliffd.service")


def test_remove_keeps_settings_and_state_and_purge_leaves_nothing(package, tmp_path):
    with machine(tmp_path, package) as inside:
        inside.run(
            "dpkg -i /spliff.deb; touch /var/lib/spliff/history; mkdir -p /run/spliff; touch /run/spliff/x.sock"
        )
        inside.run("dpkg -r spliff")
        inside.run("test ! -e /opt/spliff; test ! -e /usr/bin/spliffd; test ! -e /run/spliff")
        inside.run("test -e /etc/spliff/spliffd.toml; test -e /var/lib/spliff/history; getent passwd spliff")
        inside.run("dpkg -P spliff")
        assert inside.changed("spliff") == ["/spliff.deb"]
        inside.run("getent passwd spliff", code=2)
        inside.run("getent group spliff", code=2)
        inside.run("dpkg-query -W spliff", code=1)


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_plain_sh(script):
    shell = shutil.which("dash") or "sh"
    run(shell, "-n", ROOT / "packaging/deb" / script)
