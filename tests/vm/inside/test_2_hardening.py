"""The unit's limits, proved by attempts.

Two proofs that belong together. The real processes: what the kernel says of their user, capabilities, seccomp
filters and mount table. The attempts: a process of our own under the same settings of the unit (systemd applies
every line of it but the command), which gives up root by the function that worker and api call; that it is in the
same position as the real ones is itself compared.
"""

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.vm.inside.guest import PYTHON, figure, pid_of, run, sh, show, wait_for

UNIT_FILE = Path("/lib/systemd/system/spliffd.service")
ATTEMPT_UNIT = Path("/run/systemd/system/attempt.service")
OUTPUT = Path("/var/lib/attempt.out")
END = "-- end --"
OF_ITS_LIFE = r"(Type|NotifyAccess|Exec\w+|KillMode|Watchdog\w+|Restart\w*|Timeout\w+|OOMPolicy)="
"""Settings of the daemon's life, not of what it may do."""

DROP = """
import pwd
from spliffd import privileges
account = pwd.getpwnam("spliff")
"""
ROLES = {
    "root": "",
    "worker": DROP
    + "from spliffd import seccomp\nprivileges.drop(account.pw_uid, account.pw_gid)\nseccomp.worker()\n",
    "api": DROP
    + "from spliffd import seccomp\nprivileges.drop(account.pw_uid, account.pw_gid)\nseccomp.api()\n",
}
ATTEMPT = """
import ctypes, json, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def outcome(attempt):
    try:
        eval(attempt)
    except OSError as error:
        return error.errno
    return 0
ROLE
print(open("/proc/thread-self/status").read())
print(json.dumps([outcome(attempt) for attempt in ATTEMPTS]))
print("-- end --")
"""

BPF, PTRACE, MOUNT, UNSHARE, SETNS, PERF, INIT_MODULE = 321, 101, 165, 272, 308, 298, 175
# ENOENT: a folder or device that is not there for the service.
REFUSED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EAFNOSUPPORT, errno.ENOENT)
HOME = "open('/home/alice/secret').read()"
LOAD = f"call({BPF}, 0, b'\\x02\\0\\0\\0' + b'\\x04\\0\\0\\0' + b'\\x04\\0\\0\\0' + b'\\x01\\0\\0\\0' + bytes(104), 120)"
"""BPF_MAP_CREATE of an array: what every load of a program begins with."""

ATTEMPTS = [
    # role, what it is, attempt
    ("worker", "another user's home", HOME),
    ("worker", "a world-readable home by /root", "os.listdir('/root')"),
    ("worker", "the configuration's folder for writing", "open('/etc/spliff/x', 'w')"),
    ("worker", "writing into its own /run/spliff", "open('/run/spliff/x', 'w')"),
    ("worker", "a TCP socket", "socket.socket(socket.AF_INET, socket.SOCK_STREAM)"),
    ("worker", "a UDP socket", "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"),
    ("worker", "a Unix socket", "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)"),
    ("worker", "an eBPF map", LOAD),
    ("worker", "another program", "os.execv('/bin/true', ['true'])"),
    ("worker", "a process", "os.fork()"),
    ("worker", "tracing pid 1", f"call({PTRACE}, 16, 1, 0, 0)"),
    ("api", "an eBPF map", LOAD),
    ("api", "another user's home", HOME),
    ("api", "another program", "os.execv('/bin/true', ['true'])"),
    ("api", "a connection to the network", "socket.create_connection(('127.0.0.1', 9))"),
    ("api", "a raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW)"),
    ("api", "a perf event", f"call({PERF}, bytes(128), 0, -1, -1, 0)"),
    ("root", "another user's home", HOME),
    ("root", "a file outside", "open('/srv/x', 'w')"),
    ("root", "a file in /run", "open('/run/x', 'w')"),
    ("root", "its own configuration", "open('/etc/spliff/x', 'w')"),
    ("root", "a file in /usr", "open('/usr/bin/x', 'w')"),
    ("root", "a kernel setting", "open('/proc/sys/kernel/panic', 'w')"),
    ("root", "a cgroup", "os.mkdir('/sys/fs/cgroup/x')"),
    ("root", "a disk", "os.open('/dev/vda', os.O_RDONLY)"),
    ("root", "a device node", "os.mknod('/tmp/x', 0o20600, os.makedev(1, 1))"),
    ("root", "a mount", f"call({MOUNT}, b'none', b'/mnt', b'tmpfs', 0, 0)"),
    ("root", "a user namespace", f"call({UNSHARE}, 0x10000000)"),
    ("root", "a network namespace", f"call({UNSHARE}, 0x40000000)"),
    ("root", "pid 1's mount namespace", f"call({SETNS}, os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)"),
    ("root", "a kernel module", f"call({INIT_MODULE}, b'', 0, b'')"),
    ("root", "a packet socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    ("root", "writable code", "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)"),
    ("root", "tracing pid 1", f"call({PTRACE}, 16, 1, 0, 0)"),
]


@pytest.fixture(scope="module", autouse=True)
def secrets():
    sh(
        "useradd --create-home alice; echo secret > /home/alice/secret;"
        "chmod 755 /home/alice; chmod 644 /home/alice/secret"
    )


@pytest.fixture(scope="module")
def attempts() -> dict[str, tuple[dict[str, str], dict[str, int]]]:
    """All attempts of each role, in a service that has every line of the real one's unit but those of its life.

    By role the process's status, and by attempt its errno (0: it succeeded).
    """
    wanted = {role: [(what, attempt) for one, what, attempt in ATTEMPTS if one == role] for role in ROLES}
    for role, tried in wanted.items():
        text = ATTEMPT.replace("ROLE", ROLES[role])
        place(role).write_text(text.replace("ATTEMPTS", repr([attempt for _, attempt in tried])))
    kept = [line for line in UNIT_FILE.read_text().splitlines() if not re.match(OF_ITS_LIFE, line)]
    more = [
        "Type=oneshot",  # which may have several commands, one after the other
        *(f"ExecStart={PYTHON} -I {place(role)}" for role in ROLES),
        f"StandardOutput=append:{OUTPUT}",
        "RuntimeDirectoryPreserve=yes",  # it is the running daemon's
    ]
    text = "\n".join(kept)
    ATTEMPT_UNIT.write_text(text.replace("[Service]\n", "[Service]\n" + "\n".join(more) + "\n"))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "attempt.service")
    found = {}
    for role, told in zip(ROLES, OUTPUT.read_text().split(END)[:-1], strict=True):
        results = json.loads(told.strip().splitlines()[-1])
        found[role] = (
            status(told),
            dict(zip((what for what, _ in wanted[role]), results, strict=True)),
        )
    return found


def place(role: str) -> Path:
    """Of the program that makes a role's attempts."""
    return Path(f"/var/lib/attempt-{role}.py")


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


CAPABILITIES = {
    "chown": 0, "dac_read_search": 2, "kill": 5, "setgid": 6, "setuid": 7, "net_admin": 12, "sys_ptrace": 19,
    "sys_admin": 21, "sys_nice": 23, "perfmon": 38, "bpf": 39,
}  # fmt: skip
"""The supervisor's, by their numbers in linux/capability.h; the unit says why each."""
POSITION = ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")


def said(part: str, found: dict[str, str]) -> None:
    figure(
        part,
        f"uid {found['Uid'].split()[1]}, CapEff {int(found['CapEff'], 16):#x}, NoNewPrivs, seccomp with "
        f"{found['Seccomp_filters']} filters",
    )


def check_unprivileged(found: dict[str, str]) -> None:
    """Nothing of root: no id, no group, no capability, no way back, and system calls given up."""
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert set(found["Uid"].split() + found["Gid"].split()) == {run("id", "-u", "spliff").strip()}
    assert found.get("Groups", "").strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, found


def test_the_supervisor_has_what_the_unit_gives():
    found = status(Path(f"/proc/{pid_of('supervisor')}/status").read_text())
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert set(found["Uid"].split() + found["Gid"].split()) == {"0"}
    assert {number for number in range(64) if int(found["CapBnd"], 16) >> number & 1} == set(
        CAPABILITIES.values()
    )
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"]
    said("supervisor", found)


@pytest.mark.parametrize("part", ["worker", "api"])
def test_what_parses_and_what_listens_has_nothing(part):
    found = status(Path(f"/proc/{pid_of(part)}/status").read_text())
    check_unprivileged(found)
    said(part, found)


def test_what_reads_the_files_of_strangers_has_nothing():
    """The inspector starts when a library that nobody has seen appears, and stays for 20 s."""
    filters = int(status(Path(f"/proc/{pid_of('supervisor')}/status").read_text())["Seccomp_filters"])
    sh(
        "mkdir /tmp/own; cp /usr/lib/*/libssl.so.3 /usr/lib/*/libcrypto.so.3 /tmp/own; echo >> /tmp/own/libssl.so.3"
    )
    program = [PYTHON, "-I", "-c", "import ssl, time; time.sleep(600)"]
    found: dict[str, str] = {}

    def there() -> bool:
        pid = pid_of("inspector")
        try:
            found.update(status(Path(f"/proc/{pid}/status").read_text()) if pid else {})
        except OSError:
            return False
        return int(found.get("Seccomp_filters", 0)) > filters

    with subprocess.Popen(program, env={"LD_LIBRARY_PATH": "/tmp/own"}) as stranger:
        try:
            wait_for(there, 120, "an inspector that has given up system calls")
        finally:
            stranger.kill()
    check_unprivileged(found)
    said("inspector", found)


@pytest.mark.parametrize(("role", "part"), [("root", "supervisor"), ("worker", "worker"), ("api", "api")])
def test_what_attempts_is_where_the_real_ones_are(attempts, role, part):
    real = status(Path(f"/proc/{pid_of(part)}/status").read_text())
    ours = attempts[role][0]
    assert {name: ours[name] for name in POSITION} == {name: real[name] for name in POSITION}
    assert ours["Uid"] == real["Uid"]


def test_only_its_own_folders_are_writable():
    root = f"/proc/{pid_of('supervisor')}/root"
    rows = [line.split() for line in Path(f"/proc/{pid_of('supervisor')}/mountinfo").read_text().splitlines()]
    places = {row[4] for row in rows if not re.match(r"/(dev|proc)(/|$)", row[4])}
    writable = {path for path in places if os.access(root + path, os.W_OK)}
    figure("writable for the service", ", ".join(sorted(writable)))
    assert writable == {"/run/spliff", "/var/lib/spliff", "/var/cache/spliff", "/tmp", "/var/tmp"}


@pytest.mark.parametrize(
    ("role", "what"),
    [(role, what) for role, what, _ in ATTEMPTS],
    ids=[f"{role}: {what}" for role, what, _ in ATTEMPTS],
)
def test_refused(attempts, role, what):
    number = attempts[role][1][what]
    assert number, f"{role} may use {what}"
    assert number in REFUSED, os.strerror(number)


def test_the_same_attempts_succeed_outside():
    """What is refused is refused by the unit, not by the machine."""
    allowed = (HOME, "os.mkdir('/sys/fs/cgroup/x')", LOAD, "os.open('/dev/vda', os.O_RDONLY)",
               "socket.socket(socket.AF_INET, socket.SOCK_STREAM)", f"call({UNSHARE}, 0x40000000)")  # fmt: skip
    program = place("outside")
    program.write_text(ATTEMPT.replace("ROLE", "").replace("ATTEMPTS", repr(allowed)))
    told = run(PYTHON, "-I", program).split(END)[0].strip()
    os.rmdir("/sys/fs/cgroup/x")
    assert json.loads(told.splitlines()[-1]) == [0] * len(allowed)
    figure("refused inside", f"{len(ATTEMPTS)} of {len(ATTEMPTS)} attempts; outside they succeed")
    assert show("ActiveState") == "active"
