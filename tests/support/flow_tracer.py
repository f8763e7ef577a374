"""The programs that follow TCP connections, alone: scoped to a lab's cgroup, hooked where a test says.

``FlowTracer`` attaches sock_ops and the state tracepoint, seeds when asked, and hooks interfaces of namespaces
that the test has made. ``Peer`` is one end of a connection: a process of the lab that does as it is told and
says what the kernel says of its socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Self

from spliffd.kernel import bpf, flows, links, netlinks, rtnetlink, runs
from spliffd.kernel import compile as compiler
from spliffd.kernel.loader import Programs
from spliffd.kernel.maps import FLOW_KEY, Maps
from tests.support.lab import PYTHON, Lab, refuse_unscoped
from tests.support.net import Namespace, inside
from tests.support.programs import programs

PROGRAM = r"""
import json, socket, sys
role, host, port, mine = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
number = lambda sock, option: int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, option, 8), "little")
def say(**what): print(json.dumps(what), flush=True)
if role == "server":
    listener = socket.create_server((host, port), family=family, reuse_port=True,
        dualstack_ipv6=family == socket.AF_INET6 and host == "::")
    say(port=listener.getsockname()[1])
    sock = listener.accept()[0]
else:
    sock = socket.socket(family)
    if mine:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", mine))
    try:
        sock.connect((host, port))
    except OSError as error:
        say(error=str(error), cookie=number(sock, 57))
        sys.exit()
say(cookie=number(sock, 57), netns=number(sock, 71), local=sock.getsockname()[:2], remote=sock.getpeername()[:2])
for line in sys.stdin:
    word, _, count = line.strip().partition(" ")
    if word == "send": sock.sendall(b"x" * int(count))
    elif word == "receive":
        left = int(count)
        while left: left -= len(sock.recv(left))
    elif word == "close": sock.close()
    say(done=word)
"""


class Peer:
    """One end. A server's ``port`` is known at once, its connection after ``joined``."""

    def __init__(
        self,
        lab: Lab,
        namespace: Namespace,
        role: str,
        host: str,
        port: int = 0,
        *,
        mine: int = 0,
        cgroup: Path | None = None,
        user: str = "",
    ) -> None:
        command = [PYTHON, "-c", PROGRAM, role, host, str(port), str(mine)]
        if user:
            command = ["setpriv", f"--reuid={user}", "--clear-groups", *command]
        self.process = lab.start(
            *namespace.enter(*command), cgroup=cgroup, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.port = self._hear()["port"] if role == "server" else port
        self.cookie = self.netns = 0
        if role == "client":
            self.joined()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _hear(self) -> dict:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def joined(self) -> Self:
        """The connection is there: what the kernel says of it."""
        self.facts = self._hear()
        self.cookie, self.netns = self.facts["cookie"], self.facts.get("netns", 0)
        return self

    def does(self, what: str) -> Self:
        """``send N``, ``receive N`` or ``close``; returns when it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        assert self._hear() == {"done": what.partition(" ")[0]}
        return self


def connected(lab: Lab, namespace: Namespace, host: str, listen: str = "", **options) -> tuple[Peer, Peer]:
    """Client and server, both in one namespace."""
    server = Peer(lab, namespace, "server", listen or host, **options)
    client = Peer(lab, namespace, "client", host, server.port, **options)
    return client, server.joined()


class FlowTracer:
    """Use as a context manager; leaving detaches."""

    def __init__(
        self,
        lab: Lab,
        namespace: Namespace,
        *,
        sock_ops: bool = True,
        typed: bool = True,
        excluded: tuple[Path, ...] = (),
        uids: tuple[int, ...] = (),
    ) -> None:
        refuse_unscoped(lab)
        compiled = programs()
        if not typed:
            compiled = compiler.Compiled(compiled.code, compiled.offsets, {}, compiled.iterators)
        with inside(namespace):
            self.maps = Maps(1, 1 << 12)
        self.programs = Programs(compiled, self.maps)
        with contextlib.ExitStack() as stack:
            cgroup = os.open(lab.cgroup, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, cgroup)
            self.maps.set_scope(0, cgroup)
            for slot, path in enumerate(excluded):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, fd)
                self.maps.set_scope(16 + slot, fd)
            for uid in uids:
                self.maps.set_uid(uid, excluded=False)
            self.maps.open_by_state = not sock_ops
            self.maps.set_settings(
                enabled=True, cgroups=1, excluded_cgroups=len(excluded), uids=len(uids), excluded_uids=0
            )
            self._attached = [links.attach_states(self.programs)[0]]
            if sock_ops:
                self._attached.append(links.attach_sock_ops(self.programs, [cgroup]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for attached in self._attached:
            attached.close()
        self.programs.close()
        self.maps.close()

    def seed(self) -> None:
        """Enters the connections that are older."""
        assert not self.programs.seeding
        runs.iterate(self.programs.fd["seed_sockets"])

    def hook(self, namespace: Namespace, *interfaces: str) -> None:
        """TC at both hooks of Ethernet interfaces: TCX links, or the filters that go with the namespace."""
        received, sent = self.programs.fd["tc_ingress_l2"], self.programs.fd["tc_egress_l2"]
        for interface in interfaces:
            index = namespace.index(interface)
            with inside(namespace):
                if netlinks.has_tcx(received):
                    for program, egress in ((received, False), (sent, True)):
                        link = netlinks.tcx_link(program, index, egress=egress)
                        self._attached.append(links.Attached([link]))
                else:
                    requests = rtnetlink.Requests()
                    netlinks.Clsact(requests, "test").attach(index, received, sent)
                    requests.close()

    def flow(self, peer: Peer) -> flows.Flow | None:
        """The flow of a peer's socket."""
        return flows.look_up(self.maps.fd["flows"], peer.cookie)

    def flows(self) -> dict[int, flows.Flow]:
        """All of them by cookie."""
        return dict(flows.read_flows(self.maps.fd["flows"]))

    def cookies(self) -> int:
        """Entries that lead from tuples to cookies: two for a connection's end."""
        return bpf.map_count(self.maps.fd["cookies"], FLOW_KEY)

    def counted(self, *names: str) -> list[int]:
        """Counters of the kernel."""
        return [self.maps.counters.get(name) for name in names]
