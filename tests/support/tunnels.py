"""Tunnels between the namespaces of a ``Network``, each end a process that owns a tun interface.

``WireGuard`` is wireguard-go. ``gre`` and ``ipip`` put whole IP packets behind a real outer IP header
(protocols 47 and 4, RFC 2784 and RFC 2003) by a program of a page, because not every kernel has their
modules: what the wire carries, and that the interface has no link layer, is as with the kernel's own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.support.lab import wait_for
from tests.support.net import Namespace, Network, nodad, run

WIREGUARD_SOCKETS = Path("/var/run/wireguard")

# tun device <-> raw IP socket of one protocol. TUNSETIFF with IFF_TUN | IFF_NO_PI.
ENCAPSULATE = r"""
import fcntl, os, select, socket, struct, sys
name, protocol, local, remote, header = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], bytes.fromhex(sys.argv[5])
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
raw.bind((local, 0))
raw.connect((remote, 0))
print("up", flush=True)
poll = select.poll()
poll.register(tun, select.POLLIN)
poll.register(raw, select.POLLIN)
while True:
    for fd, _ in poll.poll():
        if fd == tun:
            packet = os.read(tun, 65535)
            try:
                raw.send(header + packet)
            except OSError:
                pass  # as on any wire: TCP sends it again
        else:
            try:
                outer = raw.recv(65535)
            except OSError:
                continue  # the other end is not there yet
            inner = outer[(outer[0] & 15) * 4 + len(header):]
            try:
                os.write(tun, inner)
            except OSError:
                pass  # the interface is down
"""

ENCAPSULATIONS = {"ipip": (4, ""), "gre": (47, "00000800")}
"""Protocol number and the header between outer and inner IP (GRE: no flags, protocol type IPv4)."""


def encapsulation(network: Network, one: Namespace, other: Namespace, kind: str) -> None:
    """Interfaces ``ipip0`` or ``gre0`` with 10.94.0.1 and .2, over the pair's 10.91.0.1 and .2."""
    protocol, header = ENCAPSULATIONS[kind]
    name = f"{kind}0"
    for namespace, mine, theirs in ((one, 1, 2), (other, 2, 1)):
        process = subprocess.Popen(
            namespace.enter(
                sys.executable, "-c", ENCAPSULATE, name, str(protocol),
                f"10.91.0.{mine}", f"10.91.0.{theirs}", header,
            ),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        network.processes.append(process)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"up\n", f"{kind} did not come up"
        namespace.ip(f"addr add 10.94.0.{mine}/24 dev {name}", f"link set {name} mtu 1400 up")


def wireguard(network: Network, one: Namespace, other: Namespace) -> tuple[WireGuard, WireGuard]:
    """A tunnel between two namespaces that reach each other on 10.91.0.1 and .2; inside 10.92.0.1 and .2."""
    ends = (WireGuard(network, one, 1), WireGuard(network, other, 2))
    for mine, theirs in (ends, ends[::-1]):
        mine.start()
        mine.meet(theirs)
    return ends


class WireGuard:
    """One end of a tunnel: wireguard-go in the foreground, over a tun interface."""

    name = "wg0"
    port = 51820

    def __init__(self, network: Network, namespace: Namespace, number: int) -> None:
        self._network = network
        self.namespace = namespace
        self.endpoint = f"10.91.0.{number}:{self.port}"
        self.addresses = (f"10.92.0.{number}/24", f"fd92::{number}/64")
        self._private = run("wg", "genkey").strip()
        self._peer: WireGuard | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def public(self) -> str:
        """The public key of this end."""
        return run("wg", "pubkey", text=self._private).strip()

    def start(self) -> None:
        """Makes the interface, with its key and addresses, and brings it up."""
        # Every end is called wg0 and names its control socket so: each gets a folder of its own to see.
        shell = (
            f"mkdir -p {WIREGUARD_SOCKETS} && mount -t tmpfs none {WIREGUARD_SOCKETS}"
            ' && exec wireguard-go -f "$1"'
        )
        self.process = subprocess.Popen(
            self.namespace.enter("unshare", "--mount", "sh", "-c", shell, "sh", self.name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "WG_PROCESS_FOREGROUND": "1"},
        )
        self._network.processes.append(self.process)
        wait_for(self._listens, 30, f"wireguard-go {self.name}")
        self._wg(
            "set", self.name, "listen-port", str(self.port), "private-key", "/dev/stdin", text=self._private
        )
        self.namespace.ip(
            *(f"addr add {address} dev {self.name}{nodad(address)}" for address in self.addresses),
            f"link set {self.name} mtu 1420 up",
        )

    def _listens(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self._wg("show", self.name)
            return True
        return False

    def _wg(self, *arguments: str, text: str | None = None) -> str:
        assert self.process is not None
        return run("nsenter", f"--target={self.process.pid}", "--mount", "--net", "wg", *arguments, text=text)

    def meet(self, peer: WireGuard) -> None:
        """Tells this end the other's key and endpoint."""
        self._peer = peer
        self._wg(
            "set", self.name, "peer", peer.public, "endpoint", peer.endpoint, "allowed-ips", "10.92.0.0/24,fd92::/64"
        )  # fmt: skip

    def rekey(self) -> None:
        """A new private key at this end; the other is told the public one."""
        assert self._peer is not None
        old = self.public
        self._private = run("wg", "genkey").strip()
        self._wg("set", self.name, "private-key", "/dev/stdin", text=self._private)
        self._peer._wg("set", self._peer.name, "peer", old, "remove")
        self._peer.meet(self)

    def restart(self) -> None:
        """The process ends and comes back: the interface vanishes, and a new one gets its name."""
        self.stop()
        self.start()
        assert self._peer is not None
        self.meet(self._peer)

    def stop(self) -> None:
        """Ends the process; its interface goes with it."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        wait_for(lambda: not self._exists(), 30, f"{self.name} gone")

    def _exists(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self.namespace.index(self.name)
            return True
        return False
