"""Who: units, containers, executables, users and parents, of processes that live for some milliseconds.

Cgroups are called as systemd and container engines call them, below the lab's; every client is a fresh curl
in one of them, and every watcher must see its own and no other."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from spliffd.pb import spliff_pb2 as pb
from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab
from tests.support.servers import Nginx


def number(digit: str) -> str:
    """A container's id."""
    return (digit * 9 + "0123456789abcdef" * 4)[:64]


PODS = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8e19.slice"
GROUPS = {
    "service": ("system.slice/shop.service", "shop.service", ""),
    "template": ("system.slice/system-worker.slice/worker@7.service", "worker@7.service", ""),
    "session": ("user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
    "docker": (f"system.slice/docker-{number('1')}.scope", f"docker-{number('1')}.scope", number("1")),
    "cgroupfs": (f"docker/{number('2')}", "", number("2")),
    "containerd": (f"{PODS}/cri-containerd-{number('3')}.scope", f"cri-containerd-{number('3')}.scope", number("3")),
    "crio": (f"{PODS}/crio-{number('4')}.scope/container", f"crio-{number('4')}.scope", number("4")),
    "podman": (
        f"machine.slice/libpod-{number('5')}.scope/container", f"libpod-{number('5')}.scope", number("5")
    ),
}  # fmt: skip
"""Name, cgroup below the lab's, unit, container."""


def curl(lab: Lab, server: Nginx, name: str, *before: str, cgroup: Path | None = None) -> int:
    """A curl for ``/hello?NAME`` in a cgroup; its pid, or that of what it was started by."""
    process = lab.start(
        *before, "curl", "-sk", "-o", "/dev/null", server.url(f"/hello?{name}"), cgroup=cgroup
    )
    assert process.wait(60) == 0
    return process.pid


def seen(watch: Watch) -> set[str]:
    """The names that a watcher saw."""
    return {exchange.request.path.partition("?")[2] for exchange in watch.exchanges}


def test_units_and_containers(lab: Lab, daemon: Daemon, server: Nginx):
    everything = daemon.watch(filter=pb.Filter(comms=["curl"]))
    watches = {
        "unit": daemon.watch(filter=pb.Filter(units=["shop.service"])),
        "units": daemon.watch(filter=pb.Filter(units=["worker@*", "session-?.scope"])),
        "scopes": daemon.watch(filter=pb.Filter(units=["docker-*.scope"])),
        **{
            name: daemon.watch(filter=pb.Filter(containers=[container[:12]]))
            for name, (_, _, container) in GROUPS.items()
            if container
        },
        "three": daemon.watch(filter=pb.Filter(containers=[number(n)[:6] for n in "345"])),
    }
    for name, (folder, _, _) in GROUPS.items():
        cgroup = lab.cgroup / folder
        cgroup.mkdir(parents=True)
        curl(lab, server, name, cgroup=cgroup)
    everything.wait_for(len(GROUPS))
    everything.settle(0.5)

    for exchange in everything.exchanges:
        folder, unit, container = GROUPS[exchange.request.path.partition("?")[2]]
        process = exchange.process
        assert process.cgroup == f"/{lab.cgroup.name}/{folder}"
        assert (process.unit, process.container_id) == (unit, container)
    assert seen(everything) == set(GROUPS)
    wanted = {
        "unit": {"service"}, "units": {"template", "session"}, "scopes": {"docker"},
        "three": {"containerd", "crio", "podman"},
    }  # fmt: skip
    for name, watch in watches.items():
        watch.settle(0)  # each has a stream of its own
        assert seen(watch) == wanted.get(name, {name}), name


def test_executables_users_and_parents(lab: Lab, daemon: Daemon, server: Nginx):
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # Three shells deep, and only the curl at the end ever speaks TLS.
    deep = ("sh", "-c", 'sh -c \'sh -c "\\"\\$@\\"; true" sh "$@"; true\' sh "$@"; true', "sh")
    shell = lab.start("sh", "-c", 'read word; "$@"; true', "sh", *deep, "curl", "-sk", "-o", "/dev/null",
                      server.url("/hello?below"), stdin=-1)  # fmt: skip
    watches = {
        "exe": daemon.watch(filter=pb.Filter(exes=["/usr/bin/curl"])),
        "user": daemon.watch(filter=pb.Filter(users=["nobody"])),
        "uid": daemon.watch(filter=pb.Filter(users=["65534"], comms=["curl"])),
        "parent": daemon.watch(filter=pb.Filter(ppids=[shell.pid])),
        "me": daemon.watch(filter=pb.Filter(ppids=[os.getpid()], comms=["curl"])),
    }
    curl(lab, server, "root")
    curl(lab, server, "nobody", *nobody)
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.close()
    assert shell.wait(60) == 0
    watches["exe"].wait_for(3)
    watches["me"].wait_for(3)
    watches["exe"].settle(0.5)

    wanted = {
        "exe": {"root", "nobody", "below"},
        "user": {"nobody"},
        "uid": {"nobody"},
        "parent": {"below"},
        "me": {"root", "nobody", "below"},
    }
    for name, watch in watches.items():
        watch.settle(0)
        assert seen(watch) == wanted[name], name


def test_a_process_that_is_gone_when_the_supervisor_has_time(lab: Lab, daemon: Daemon, server: Nginx):
    """Its exec is told by the kernel, and the question waits: the answer is whole all the same."""
    watch = daemon.watch(filter=pb.Filter(comms=["curl"]))
    curl(lab, server, "before")  # the library has its probes
    watch.wait_for(1)
    supervisor = daemon.process.pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        pid = curl(lab, server, "gone")
        time.sleep(0.8)  # so long it may take beside others that want the processors
    finally:
        os.kill(supervisor, signal.SIGCONT)
    watch.wait_for(2)
    watch.stop()

    (gone,) = (exchange for exchange in watch.exchanges if exchange.process.pid == pid)
    assert gone.process.exe.endswith("/curl")
    assert "/hello?gone" in gone.process.cmdline
