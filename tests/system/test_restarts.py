"""Children that are killed come back, capture goes on, and whoever watches is told."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

import grpc
import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx


class Visitor:
    """One curl after another; ``paths`` is what was asked for, in order."""

    def __init__(self, lab: Lab, server: Nginx) -> None:
        self._lab, self._server = lab, server
        self.paths: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.ask(f"/hello?load={len(self.paths)}")

    def ask(self, path: str) -> None:
        assert self._lab.run("curl", "-sk", self._server.url(path)).returncode == 0
        self.paths.append(path)

    def more(self, count: int = 5) -> None:
        """Until so many more were answered."""
        target = len(self.paths) + count
        wait_for(lambda: len(self.paths) >= target, 30, f"{count} more requests")


def both_ends(exchanges: list[spliff_pb2.Exchange]) -> Counter[str]:
    return Counter(e.request.path for e in exchanges)


def replaced(daemon: Daemon, name: str, old: int, seconds: float = 30.0) -> float:
    """Seconds until another process has the name and works."""
    began = time.monotonic()

    def new() -> bool:
        try:
            return daemon.pids().get(name, 0) not in (0, old)
        except grpc.RpcError:
            return False

    wait_for(new, seconds, f"another {name}")
    return time.monotonic() - began


def test_a_killed_worker_comes_back_and_the_ring_kept_what_came_meanwhile(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    with Visitor(lab, server) as visitor:
        visitor.more()
        old = daemon.pids()["worker 0"]
        before = len(visitor.paths)
        os.kill(old, signal.SIGKILL)
        took = replaced(daemon, "worker 0", old)
        while_down = len(visitor.paths) - before
        visitor.more()
    last = "/hello?last"
    visitor.ask(last)
    wait_for(lambda: both_ends(watch.exchanges)[last] == 2, 30, "the last exchange at both ends")
    watch.settle(0.5)

    seen = both_ends(watch.exchanges)
    assert set(seen.values()) <= {1, 2}, "an exchange came twice"
    # What the dead worker had taken and not handed on is gone: at most what was under way.
    gaps = [path for path in visitor.paths if seen[path] < 2]
    assert len(gaps) <= 3, gaps
    assert all(path in visitor.paths[max(0, before - 2) : before + 3] for path in gaps), gaps
    assert [(loss.stage, loss.reason) for loss in watch.losses] == [("worker", "restart")]
    stats = daemon.stats()
    assert stats["spliff_worker_restarts_total"] == 1
    assert stats['spliff_lost_total{stage="worker",reason="restart"}'] == 1
    print(f"worker back after {took:.2f} s, {while_down} requests meanwhile, {len(gaps)} not seen whole")


def test_a_worker_that_is_down_for_long_loses_nothing_that_the_ring_holds(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    watch = daemon.watch()
    for deaths in range(4):  # the fourth restart in a row waits for five seconds
        old = daemon.pids()["worker 0"]
        os.kill(old, signal.SIGKILL)
        if deaths < 3:
            replaced(daemon, "worker 0", old)
    wait_for(lambda: daemon.pids()["worker 0"] == 0, 30, "the worker is down")
    paths = [f"/hello?down={n}" for n in range(7)]
    down = []
    for path in paths:
        assert lab.run("curl", "-sk", server.url(path)).returncode == 0
        down.append(daemon.pids()["worker 0"] == 0)
    assert all(down[:3]), "the worker came back too early for this test"
    wait_for(lambda: all(both_ends(watch.exchanges)[path] == 2 for path in paths), 30, "all from the ring")

    for exchange in watch.exchanges:
        assert exchange.completeness.state == "complete"
        # Who it was is told although the process ended before the worker came back.
        assert exchange.process.exe, exchange.process.comm
    assert daemon.stats()["spliff_worker_restarts_total"] == 4
    print(f"{sum(down)} of {len(down)} requests while the worker was down, all seen")


def test_a_killed_api_comes_back_and_its_watchers_are_told(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    errors: list[grpc.RpcError] = []
    call = daemon.stub().Watch(spliff_pb2.WatchRequest())
    next(call)  # Started
    reader = threading.Thread(target=lambda: drain(call, errors), daemon=True)
    reader.start()
    epoch = daemon.stub().GetInfo(spliff_pb2.GetInfoRequest()).epoch
    client = daemon.client("watch", "--for", "60s")
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 2, 30, "both watchers")
    with Visitor(lab, server) as visitor:
        visitor.more()
        old = daemon.pids()["api"]
        os.kill(old, signal.SIGKILL)
        took = replaced(daemon, "api", old)
        reader.join(30)
        visitor.more()
        watch = daemon.watch()
        visitor.more()
    visitor.ask("/hello?after")
    wait_for(lambda: both_ends(watch.exchanges)["/hello?after"] == 2, 30, "the last exchange at both ends")
    watch.settle(0.5)

    assert [error.code() for error in errors] == [grpc.StatusCode.UNAVAILABLE]
    assert client.wait(30) == 69
    assert client.stderr is not None
    reason = client.stderr.read().decode()
    assert re.search(r"spliffd stopped or was restarted.*run the command again", reason), reason
    assert daemon.stub().GetInfo(spliff_pb2.GetInfoRequest()).epoch > epoch
    stats = daemon.stats()
    assert stats["spliff_api_restarts_total"] == 1
    assert stats["spliff_worker_restarts_total"] == 0
    # Counters outlive the api: every request was counted, at both ends, watched or not.
    assert sum(v for k, v in stats.items() if k.startswith("spliff_exchanges_total")) == 2 * len(
        visitor.paths
    )
    assert stats["spliff_subscribers"] == 1
    print(f"api back after {took:.2f} s; stream ended with {errors[0].code().name}: {errors[0].details()}")


def drain(call, errors: list[grpc.RpcError]) -> None:
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        errors.append(error)


def test_both_killed_at_once(lab: Lab, daemon: Daemon):
    server = Nginx(lab)
    daemon.wait_attached()
    for _ in range(2):
        pids = daemon.pids()
        for name in ("worker 0", "api"):
            os.kill(pids[name], signal.SIGKILL)
        replaced(daemon, "api", pids["api"])
        replaced(daemon, "worker 0", pids["worker 0"])
    watch = daemon.watch()
    assert lab.run("curl", "-sk", server.url("/hello?both")).returncode == 0
    wait_for(lambda: both_ends(watch.exchanges)["/hello?both"] == 2, 30, "an exchange at both ends")
    assert watch.losses == []


# ---- what children are ------------------------------------------------------------------------


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def descendants(pid: int) -> dict[int, str]:
    """Living children of a process, by pid, with their command lines."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= {int(child): line, **descendants(int(child))}
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile: whoever reads one file for the inspector comes and goes
    return found


def assert_unprivileged(pid: int) -> None:
    import pwd

    account = pwd.getpwnam("spliff")
    for task in Path(f"/proc/{pid}/task").iterdir():  # all of these belong to a thread
        facts = status(int(task.name))
        assert facts["Uid"].split() == [str(account.pw_uid)] * 4
        assert facts["Gid"].split() == [str(account.pw_gid)] * 4
        assert facts["Groups"].split() == []
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[kind], 16) == 0, f"{kind} of {facts['Name']}"
        assert facts["NoNewPrivs"] == "1", facts["Name"]
    assert "0" in re.findall(r"Max core file size +(\d+)", Path(f"/proc/{pid}/limits").read_text())


KINDS = (
    (r"anon_inode:\[eventpoll\]|anon_inode:\[eventfd\]|pipe:\[\d+\]", "event loop"),
    (r"anon_inode:bpf-map", "map"),
    (r"/memfd:spliff-counters.*", "counters"),
    (r"socket:\[\d+\]", "socket"),
    (r"/dev/null", "null"),
)


def descriptors(pid: int) -> Counter[str]:
    """The kinds of file descriptors above 2; whatever is not known here shows as itself."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if int(fd.name) <= 2:
            continue
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue  # closed meanwhile
        kind = next((name for pattern, name in KINDS if re.fullmatch(pattern, target)), target)
        if kind == "map":
            info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
            kind = "map of type " + re.findall(r"map_type:\t(\d+)", info)[0]
        found[kind] += 1
    return found


RINGBUF, ARRAY, LRU_HASH = "map of type 27", "map of type 2", "map of type 9"


def test_children_have_no_privileges_and_only_the_descriptors_they_need(lab: Lab):
    Nginx(lab)
    daemon = Daemon(lab)
    pids = daemon.pids()
    # The inspector reads each file in a child of its own, which comes and goes.
    inspector = [
        pid
        for pid, line in descendants(daemon.process.pid).items()
        if "inspector" in line and int(status(pid)["PPid"]) == daemon.process.pid
    ]
    assert len(inspector) == 1
    for pid in (pids["worker 0"], pids["api"], *inspector):
        assert_unprivileged(pid)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    found = {name: descriptors(pids[pid]) for name, pid in (("worker", "worker 0"), ("api", "api"))}
    print({name: dict(kinds) for name, kinds in found.items()})

    worker = found["worker"]
    assert worker.pop(RINGBUF) == 1 + 2  # its ring, and the copies that Python's mmap keeps of it
    assert worker.pop(LRU_HASH) == 4  # connections, speakers, flows and hellos, for looking only
    for fd in Path(f"/proc/{pids['worker 0']}/fdinfo").iterdir():
        info = fd.read_text()
        if "map_type:\t9\n" in info:
            assert int(re.findall(r"flags:\t(\d+)", info)[0], 8) & os.O_ACCMODE == os.O_RDONLY
    assert worker.keys() <= {ARRAY, "counters", "socket", "event loop"}
    assert worker["socket"] == 2  # the supervisor and the api
    api = found["api"]
    assert api.keys() <= {"counters", "socket", "event loop"}, "the api holds no map: it can only read"
    # While it reads a file it holds that too; between two files there is nothing but its socket.
    wait_for(lambda: descriptors(inspector[0]) == {"socket": 1}, 30, "an inspector without work")
    daemon.stop()


def test_the_compiler_has_no_privileges(lab: Lab):
    # Programs are kept from start to start: type information that differs, by some bytes behind its end, is new.
    btf = lab.folder / "vmlinux"
    btf.write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes() + os.urandom(8))
    daemon = Daemon(lab, wait=False, env={"SPLIFF_BTF": str(btf)})
    checked = 0
    deadline = time.monotonic() + 60
    while " ready" not in daemon.text() and time.monotonic() < deadline:
        for pid, line in descendants(daemon.process.pid).items() if daemon.process.poll() is None else ():
            try:
                parent = int(status(pid)["PPid"])
                if "spliffd.kernel.compile" in line and parent != daemon.process.pid:
                    uid = status(pid)["Uid"].split()[0]
                    if uid != "0":  # it is root for the moment in which it forks
                        assert_unprivileged_compiler(pid)
                        checked += 1
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # it has just ended
        time.sleep(0.005)
    assert checked > 3
    daemon.stop()


def assert_unprivileged_compiler(pid: int) -> None:
    facts = status(pid)
    assert "0" not in facts["Uid"].split()
    assert "0" not in facts["Gid"].split()
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    if facts["NoNewPrivs"] != "1":  # the very next thing it does
        wait_for(lambda: status(pid)["NoNewPrivs"] == "1", 30, "no new privileges")


@pytest.mark.parametrize("name", ["worker 0", "api"])
def test_a_child_may_not_be_traced_by_its_own_user(lab: Lab, daemon: Daemon, name: str):
    pid = daemon.pids()[name]
    # What belongs to root in /proc is what a process that is not dumpable keeps from its own user.
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0
