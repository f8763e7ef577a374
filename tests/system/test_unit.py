"""spliffd.service's restrictions, imitated by packaging/systemd/sandbox.py, around what the daemon does.

Attached is only to a cgroup of this test's own; uprobes go to a copy of a library that nobody has loaded.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.interface_monitor import PASS_XDP
from tests.support.net import Network

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ROOT / "packaging/systemd/sandbox.py"

PREPARE = """
import os, pwd, sys
from spliffd.kernel import bpf, links
from spliffd.kernel.compile import compile_programs
from spliffd.kernel.loader import Programs
from spliffd.kernel.maps import Maps
account = pwd.getpwnam("spliff")
"""


def sandboxed(*command):
    return subprocess.run(
        [SANDBOX, *command], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )


def python(code, *arguments):
    done = sandboxed(sys.executable, "-c", PREPARE + code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def cgroup():
    """A cgroup v2 of our own, below wherever this host has it."""
    from spliffd.doctor import cgroup2_mount

    top = cgroup2_mount(Path("/proc/self/mountinfo").read_text())
    assert top, "no cgroup v2 on this host"
    path = Path(top) / f"spliff-test-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def library():
    """A private copy of libssl; not below /tmp, which the unit's PrivateTmp= hides."""
    folder = ROOT / f"build/test-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    source = next(Path("/usr/lib").glob("*/libssl.so.3"))
    yield str(shutil.copy(source, folder))
    shutil.rmtree(folder)


def test_the_imitation_restricts():
    status = sandboxed("cat", "/proc/self/status").stdout
    # Bits of capability(7): BPF, PERFMON, SYS_NICE, SYS_ADMIN, SYS_PTRACE, NET_ADMIN, SETUID, SETGID, KILL,
    # DAC_READ_SEARCH, CHOWN.
    wanted = sum(1 << bit for bit in (39, 38, 23, 21, 19, 12, 7, 6, 5, 2, 0))
    assert f"CapEff:\t{wanted:016x}\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("open('/etc/x', 'w')", errno.EROFS),
        ("os.mkdir('/sys/fs/cgroup/x')", errno.EROFS),
        ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", errno.EPERM),
        ("mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", errno.EPERM),
        ("call(165, b'none', b'/mnt', b'tmpfs', 0, 0)", errno.EPERM),
        ("call(101, 16, 1, 0, 0)", errno.EPERM),
    ],
    ids=["write", "cgroup", "packet socket", "write and execute", "mount", "ptrace"],
)
def test_what_the_daemon_does_not_need_is_refused(attempt, error):
    code = f"""
import ctypes, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
try:
    {attempt}
except OSError as error:
    print(error.errno)
"""
    done = sandboxed(sys.executable, "-c", code)
    assert done.stdout.strip() == str(error), done.stderr


def test_the_doctor_finds_nothing_missing():
    done = sandboxed(sys.executable, "-c", "from spliffd import doctor; raise SystemExit(doctor.main())")
    assert done.returncode == 0, done.stdout


def test_programs_are_compiled_loaded_and_attached(cgroup, library):
    out = python(
        """
from spliffd.stages.placements import probe_of
from spliffd.targets.inspector import inspect_fd
with open(sys.argv[2], "rb") as file:
    probes = [probe_of(site) for site in inspect_fd(file.fileno(), True).sites]
maps = Maps(1, 1 << 20)
programs = Programs(compile_programs(account.pw_uid, account.pw_gid), maps)
group = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
maps.set_scope(0, group)
print("sock_ops", len(links.attach_sock_ops(programs, [group]).fds))
print("uprobe", len(links.attach_library(programs, sys.argv[2], "openssl", probes).fds) > 0)
programs.load_perf_flavour()
print("perf uprobe", len(links.attach_library(programs, sys.argv[2], "openssl", probes).fds) > 0)
""",
        str(cgroup),
        library,
    )
    assert out.splitlines() == ["sock_ops 1", "uprobe True", "perf uprobe True"]


def test_a_child_is_demoted_hurried_and_stopped():
    out = python("""
import signal, time
pid = os.fork()
if pid == 0:
    os.setgroups([]); os.setgid(account.pw_gid); os.setuid(account.pw_uid)
    time.sleep(60)
while os.stat(f"/proc/{pid}").st_uid != account.pw_uid:
    time.sleep(0.01)
os.setpriority(os.PRIO_PROCESS, pid, -5)
os.kill(pid, signal.SIGTERM)
print(os.waitpid(pid, 0)[1])
os.makedirs("/run/spliff", exist_ok=True)
open("/run/spliff/test.socket", "w").close()
os.chown("/run/spliff/test.socket", 0, account.pw_gid)
os.unlink("/run/spliff/test.socket")
""")
    assert out.strip() == str(int(signal.SIGTERM))


def test_a_process_of_another_user_is_seen_through_proc():
    with subprocess.Popen(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"]
    ) as other:
        try:
            while os.stat(f"/proc/{other.pid}").st_uid != 65534 or "sleep" not in os.readlink(
                f"/proc/{other.pid}/exe"
            ):
                pass
            out = python(
                """
proc = f"/proc/{sys.argv[1]}"
print(os.readlink(proc + "/exe"), "libc" in open(proc + "/maps").read(), os.path.exists(proc + "/root/usr/bin"))
""",
                str(other.pid),
            )
            assert out.split() == ["/usr/bin/sleep", "True", "True"]
        finally:
            other.kill()


def test_interfaces_are_hooked_in_the_sandbox():
    with Network("unit") as network:
        namespace = network.namespace()
        namespace.ip("link add v0 type veth peer name v1")
        code = """
from spliffd.config import Interfaces
from spliffd.interfaces import devices, hooks, policy
from spliffd.kernel import netlinks
program, xdp = netlinks.tcx_placeholder(), bpf.prog_load(bpf.PROG_XDP, bytes.fromhex(sys.argv[1]), "pass")
names = {f"{hook}_l2": program for hook in ("tc_ingress", "tc_egress", "xdp_egress")} | {"xdp_l2": xdp}
attacher = hooks.Hooks(names)
print("swept", attacher.sweep())
for device in map(devices.read, attacher.links(devices.DUMP)):
    for mode in ("tc", "clsact", "xdp"):
        hook = attacher.attach(device.ifindex, policy.plan(device, Interfaces(mode=mode)))
        print(device.name, hook.kind, hook.mode, attacher.is_attached(hook))
        attacher.detach(hook)
"""
        done = subprocess.run(
            namespace.enter(SANDBOX, sys.executable, "-c", PREPARE + code, PASS_XDP.hex()),
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
        )  # fmt: skip
    assert done.stdout.splitlines() == [
        "swept 0",
        *("lo TC tcx True", "lo TC clsact True", "lo TC tcx True"),
        *("v1 TC tcx True", "v1 TC clsact True", "v1 XDP native True"),
        *("v0 TC tcx True", "v0 TC clsact True", "v0 XDP native True"),
    ], done.stderr


def test_history_is_kept_below_the_state_directory_without_privileges():
    folder = Path(f"/var/lib/spliff/test-{uuid.uuid4().hex[:8]}")
    code = """
from spliffd import counters, privileges, seccomp
from spliffd.api.archive import DiskArchive
from spliffd.api.history import Record
from spliffd.config import History
folder = sys.argv[1]
region = counters.Area.create().api
os.mkdir(folder, 0o700)
os.chown(folder, account.pw_uid, account.pw_gid)
privileges.drop(account.pw_uid, account.pw_gid)
seccomp.api()
disk = DiskArchive(History(path=f"{folder}/history.db"), region)
assert disk.open() == 1
disk.offer([Record(1, 1, 1, 0, 5, 1, False, b"message", b"", b"", b"")])
disk.close()
again = DiskArchive(History(path=f"{folder}/history.db"), region)
print(again.open(), region.get("history_dropped"), oct(os.stat(f"{folder}/history.db").st_mode & 0o777))
again.close()
"""
    try:
        assert python(code, str(folder)).split()[:2] == ["2", "0"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    unit = (ROOT / "packaging/systemd/spliffd.service").read_text()
    assert (
        "StateDirectoryMode=0711" in unit
    )  # user spliff passes through to its own folder, and sees no other
