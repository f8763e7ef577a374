"""Networks for tests: namespaces of their own, joined by veth pairs, bridges and tunnels.

Takes a short name, gives a ``Network`` whose namespaces are called ``splNAME-N``; leaving it ends what was
started in them and deletes them, and with them every interface. Nothing is ever made or changed in the host's
own namespace. Processes enter by ``nsenter --net`` alone, so that /sys, cgroup v2 and tracefs stay in sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

PREFIX = "spl"
SO_NETNS_COOKIE = 71

_made = 0
_entering = threading.Lock()


def run(*command: str | Path, text: str | None = None) -> str:
    """Runs a command to its end; what it said is in the error when it fails."""
    done = subprocess.run(
        [str(word) for word in command], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """This thread is in the namespace: sockets made here belong to it. Needs Linux's setns(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with _entering, open("/proc/thread-self/ns/net", "rb") as home, namespace.path.open("rb") as there:
        if libc.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(home.fileno(), 0)


class Namespace:
    """One network namespace, with ``lo`` up."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.path = Path("/run/netns") / name
        # Tests send within microseconds of an address's birth; nobody else is on these networks.
        self.sysctl("net.ipv6.conf.all.accept_dad", "0")
        self.sysctl("net.ipv6.conf.default.accept_dad", "0")
        self.ip("link set lo up")

    def enter(self, *command: str | Path) -> list[str]:
        """``command`` as a command that runs in here."""
        return ["nsenter", f"--net={self.path}", *map(str, command)]

    def ip(self, *lines: str) -> str:
        """Runs ``ip`` once for all ``lines``."""
        return run("ip", "-n", self.name, "-batch", "-", text="\n".join(lines) + "\n")

    def tc(self, line: str) -> str:
        """Runs ``tc LINE``."""
        return run("tc", "-n", self.name, *line.split())

    def sysctl(self, key: str, value: str) -> None:
        """Sets a setting of this namespace; below /proc/sys/net each process sees its own."""
        path = f"/proc/sys/{key.replace('.', '/')}"
        run(*self.enter("sh", "-c", f'echo "$1" > {path}', "sh", value))

    def index(self, interface: str) -> int:
        """Index of an interface."""
        return int(run("ip", "-n", self.name, "-o", "link", "show", interface).split(":")[0])

    def counters(self, interface: str) -> tuple[int, int]:
        """Packets that an interface has sent and received, by its own count."""
        (found,) = json.loads(run("ip", "-n", self.name, "-j", "-s", "link", "show", interface))
        return found["stats64"]["tx"]["packets"], found["stats64"]["rx"]["packets"]

    def cookie(self) -> int:
        """SO_NETNS_COOKIE of its sockets."""
        with inside(self), socket.socket() as probe:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


class Network:
    """Use as a context manager: everything made through it is gone afterwards."""

    def __init__(self, name: str) -> None:
        global _made
        if os.geteuid() != 0:
            raise RuntimeError("network tests need root: sudo make test")
        _made += 1
        self._name = f"{PREFIX}{name}{os.getpid() % 10000}x{_made}"
        self.namespaces: list[Namespace] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self) -> Namespace:
        """A new namespace."""
        made = Namespace(f"{self._name}-{len(self.namespaces)}")
        self.namespaces.append(made)
        return made

    def pair(
        self,
        one: Namespace,
        other: Namespace,
        addresses: Sequence[tuple[str, str]] = (
            ("10.91.0.1/24", "10.91.0.2/24"),
            ("fd91::1/64", "fd91::2/64"),
        ),
        names: tuple[str, str] = ("eth0", "eth0"),
        mtu: int = 1500,
    ) -> None:
        """Joins two namespaces by a veth pair; ``addresses`` of both ends."""
        run(
            "ip", "-n", one.name, "link", "add", names[0], "mtu", str(mtu), "type", "veth",
            "peer", "name", names[1], "mtu", str(mtu), "netns", other.name,
        )  # fmt: skip
        for namespace, name, end in ((one, names[0], 0), (other, names[1], 1)):
            namespace.ip(
                *(f"addr add {address[end]} dev {name}{nodad(address[end])}" for address in addresses),
                f"link set {name} up",
            )

    def bridge(
        self, namespace: Namespace, *ports: str, name: str = "br0", addresses: Sequence[str] = ()
    ) -> None:
        """A bridge over ``ports``, whose addresses it takes the place of."""
        namespace.ip(
            f"link add {name} type bridge forward_delay 0",
            *(f"addr flush dev {port}" for port in ports),
            *(f"link set {port} master {name}" for port in ports),
            *(f"addr add {address} dev {name}{nodad(address)}" for address in addresses),
            f"link set {name} up",
        )

    def vxlan(self, one: Namespace, other: Namespace, name: str = "vxlan0") -> None:
        """A VXLAN (RFC 7348) over the pair's addresses: Ethernet in UDP, by the kernel."""
        for namespace, mine, theirs in ((one, 1, 2), (other, 2, 1)):
            namespace.ip(
                f"link add {name} type vxlan id 91 dstport 4789 local 10.91.0.{mine} remote 10.91.0.{theirs}",
                f"addr add 10.93.0.{mine}/24 dev {name}",
                f"addr add fd93::{mine}/64 dev {name} nodad",
                f"link set {name} up",
            )

    def close(self) -> None:
        """Ends what serves the networks and deletes the namespaces; interfaces go with them."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for namespace in self.namespaces:
            # A process that lingers in it keeps the namespace alive without its name: a test looks for that.
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "del", namespace.name)


def nodad(address: str) -> str:
    """What keeps `ip addr add` from leaving an IPv6 address unusable for a second."""
    return " nodad" if ":" in address else ""
