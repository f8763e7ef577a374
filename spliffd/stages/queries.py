"""Answers what only the supervisor knows: GetInfo, and the lists, and SetDebug.

Takes the api's Query (a serialised request), returns an Answer (a serialised response); writes to the
journal who asked for secrets. Requests come
from clients by way of the api, which has checked who may ask; a request that cannot be read is an error
in the answer, never an exception.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import time
from collections.abc import Callable

import msgspec
from google.protobuf.message import DecodeError

from spliffd import __version__, audit, ipc
from spliffd.attribution.processes import Processes
from spliffd.config import Config, Scope
from spliffd.journal import logger, set_debug
from spliffd.kernel.flows import read_flows
from spliffd.pb import spliff_pb2
from spliffd.stages import flow_list, process_list
from spliffd.stages.capture import Kernel
from spliffd.stages.children import Child
from spliffd.stages.interfaces import Entry, Interfaces
from spliffd.stages.ledger import Ledger
from spliffd.stages.libraries import Libraries, Probed
from spliffd.stages.owned import Owned

log = logger("access")


_AUDITED = {
    "reveal": ("secrets are revealed to a watcher", "a watcher asked for secrets and was refused"),
    "debug": ("the debug log is switched", "somebody asked to switch the debug log and was refused"),
}


class Queries:
    """The supervisor's side of the RPCs that it answers."""

    def __init__(
        self,
        config: Config,
        kernel: Kernel,
        libraries: Libraries,
        interfaces: Interfaces,
        ledger: Ledger,
        processes: Processes,
        mask: Callable[[str], str],
        children: Callable[[], list[Child]],
        health: Callable[[], str],
    ) -> None:
        self._config = config
        self._kernel = kernel
        self._found = libraries
        self._hooked = interfaces
        self._ledger = ledger
        self._known = processes
        self._owned = Owned(processes)
        self._mask = mask
        self._children = children
        self._health = health
        self._debug = config.debug
        self.epoch = time.time_ns()

    def answer(self, query: ipc.Query) -> ipc.Answer:
        """Answers one query."""
        answers: dict[str, Callable[[bytes], bytes]] = {
            "Audit": self._audit,
            "GetInfo": self._info,
            "ListFlows": lambda payload: self._flows(payload, query.owner),
            "ListInterfaces": self._interfaces,
            "ListLibraries": self._libraries,
            "ListProcesses": lambda payload: self._processes(payload, query.owner),
            "SetDebug": self._set_debug,
        }
        find = answers.get(query.name)
        if find is None:
            return ipc.Answer(query.number, b"", f"the supervisor does not know {query.name}")
        try:
            return ipc.Answer(query.number, find(query.payload))
        except (DecodeError, msgspec.DecodeError, KeyError) as error:
            return ipc.Answer(query.number, b"", f"{query.name}: unreadable request: {error}")
        except OSError as error:
            return ipc.Answer(query.number, b"", f"the kernel refuses: {error.strerror}; see spliffd doctor")

    def _info(self, _payload: bytes) -> bytes:
        features = [
            spliff_pb2.Feature(name=feature.name, state=feature.state, detail=feature.detail)
            for feature in (*self._kernel.features, self._hooked.feature())
        ]
        return spliff_pb2.GetInfoResponse(
            version=__version__,
            kernel=os.uname().release,
            hostname=socket.gethostname(),
            start_time_ns=self.epoch,
            scope=scope_lines(self._config.scope),
            features=features,
            health=self._health(),
            processes={"supervisor": os.getpid()} | {child.name: child.pid for child in self._children()},
            epoch=self.epoch,
        ).SerializeToString()

    def _flows(self, payload: bytes, owner: int) -> bytes:
        wanted = frozenset(spliff_pb2.ListFlowsRequest.FromString(payload).pids)
        with contextlib.suppress(OSError):  # a kernel that cannot say who accepted what
            self._kernel.enter_owners()
        flows = read_flows(self._kernel.maps.fd["flows"])
        if owner >= 0:
            flows = self._owned.flows(owner, flows)
        return flow_list.response(
            flows,
            self._hooked.names.message().names,
            lambda _cookie, flow: flow.tgid,
            wanted,
            time.time_ns() - time.monotonic_ns(),
            self._mask,
        )

    def _libraries(self, _payload: bytes) -> bytes:
        files = self._found.files.values()
        return spliff_pb2.ListLibrariesResponse(
            libraries=[library(probed) for probed in files]
        ).SerializeToString()

    def _processes(self, payload: bytes, owner: int) -> bytes:
        wanted = frozenset(spliff_pb2.ListProcessesRequest.FromString(payload).pids)
        if owner >= 0 and wanted:
            wanted = self._owned.pids(owner, wanted)
            if not wanted:
                return b""
        with contextlib.suppress(OSError):  # who accepted what is not known, then
            self._kernel.enter_owners()
        entries = self._ledger.entries(wanted)
        if owner >= 0:
            entries = self._owned.entries(owner, entries)
        return process_list.response(
            entries,
            lambda pid, start_ns: self._known.facts(pid, start_ns)[0],
            self._mask,
        )

    def _interfaces(self, _payload: bytes) -> bytes:
        return spliff_pb2.ListInterfacesResponse(
            interfaces=[
                interface(entry, *self._hooked.seen(index)) for index, entry in self._hooked.table.items()
            ]
        ).SerializeToString()

    def _audit(self, payload: bytes) -> bytes:
        asked = audit.decode(payload)
        who: dict[str, object] = {"certificate": asked.name}
        if asked.uid >= 0:
            user = ""
            with contextlib.suppress(KeyError):
                user = pwd.getpwuid(asked.uid).pw_name
            who = {"uid": asked.uid, "user": user, "pid": asked.pid}
        granted, refused = _AUDITED[asked.what]
        told = log.warning if asked.granted else log.info
        told(
            granted if asked.granted else refused,
            **who,
            **({"to": asked.filter} if asked.what == "debug" else {"filter": asked.filter or "everything"}),
            **({} if asked.granted else {"reason": asked.reason}),
        )
        return b""

    def _set_debug(self, payload: bytes) -> bytes:
        wanted = spliff_pb2.SetDebugRequest.FromString(payload).enabled
        was, self._debug = self._debug, wanted
        set_debug(wanted)
        for child in self._children():
            child.send(ipc.Debug(wanted))
        return spliff_pb2.SetDebugResponse(was_enabled=was).SerializeToString()


def library(probed: Probed) -> spliff_pb2.Library:
    """One line of `spliffctl libraries`."""
    inspection = probed.inspection
    state: str = inspection.state
    if state == "attach":
        state = "attached" if probed.attached else "refused"
    return spliff_pb2.Library(
        path=probed.path,
        library=inspection.library,
        state=state,
        reason=probed.error or inspection.reason,
        sites=[
            spliff_pb2.Site(
                symbol=site.symbol, offset=site.offset, placement=site.placement, proof=site.proof
            )
            for site in inspection.sites
        ],
        build_id=inspection.build_id,
        device=f"{os.major(probed.device)}:{os.minor(probed.device)}",
        inode=probed.inode,
    )


def interface(entry: Entry, packets: int, size: int) -> spliff_pb2.Interface:
    """One line of `spliffctl interfaces`."""
    hook, device = entry.hook, entry.device
    return spliff_pb2.Interface(
        name=device.name,
        index=device.ifindex,
        hook=hook.kind if hook else "NONE",
        mode=hook.mode if hook else "",
        reason=entry.error or (hook.reason if hook else entry.plan.reason),
        packets=packets,
        bytes=size,
    )


def scope_lines(scope: Scope) -> list[str]:
    """The scope in words, one line a condition."""
    lines = []
    for name, values in (
        ("cgroup", scope.cgroups),
        ("user", scope.users),
        ("path", scope.paths),
        ("not cgroup", scope.exclude_cgroups),
        ("not user", scope.exclude_users),
        ("not path", scope.exclude_paths),
    ):
        lines += [f"{name} {value}" for value in values]
    return lines or ["whole host"]
