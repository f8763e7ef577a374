"""The interface monitor alone, in a network namespace of the test's, with programs that let everything pass.

Run as ``python -m tests.support.interface_monitor`` inside the namespace (``Monitor`` does that): takes one JSON
line per question on standard input, answers with one on standard output. So what is tested is what the
supervisor runs, without compiling or probing anything.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any, Self

from tests.support.lab import REPOSITORY, wait_for
from tests.support.net import Namespace

PASS_TC = bytes.fromhex("b4000000ffffffff9500000000000000")
"""mov32 r0, -1 (TCX_NEXT, TC_ACT_UNSPEC); exit"""
PASS_XDP = bytes.fromhex("b4000000020000009500000000000000")
"""mov32 r0, 2 (XDP_PASS); exit"""
NAMES = [f"{hook}_l{layer}" for hook in ("xdp", "tc_ingress", "tc_egress", "xdp_egress") for layer in (2, 3)]


def qdiscs(ns: Namespace) -> list[str]:
    """Interfaces that have a clsact qdisc."""
    return [one["dev"] for one in json.loads(ns.tc("-j qdisc show")) if one["kind"] == "clsact"]


def filters(ns: Namespace, name: str, side: str = "ingress") -> list[str]:
    """Names of the bpf filters on one side of an interface."""
    listed = json.loads(ns.tc(f"-j filter show dev {name} {side}"))
    return [one["options"]["bpf_name"] for one in listed if "bpf_name" in one.get("options", {})]


class Monitor:
    """The monitor in ``namespace``, configured by ``settings``; leaving it kills the monitor unless ``stop`` came first."""

    def __init__(self, namespace: Namespace, **settings: Any) -> None:
        self.namespace = namespace
        self.process = subprocess.Popen(
            namespace.enter(sys.executable, "-m", "tests.support.interface_monitor", json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )
        try:
            self.ask("ready")
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.process.stdin.closed:
            self.kill()

    def ask(self, what: str, argument: Any = None) -> Any:
        """One question, one answer."""
        print(json.dumps([what, argument]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"the monitor ended: {self.process.stderr.read()}"
        return json.loads(line)

    def table(self) -> dict[str, dict[str, Any]]:
        """Interfaces by name: index, hook, mode, reason, layer, error, fds of links."""
        return self.ask("table")

    def counters(self) -> dict[str, int]:
        """Its counters."""
        return self.ask("counters")

    def told(self) -> dict[str, str]:
        """Names by index, as last told to the workers."""
        return self.ask("told")

    def wait_hooked(self, *names: str, hook: str = "TC", seconds: float = 5.0) -> None:
        """Until all of these are hooked."""
        wait_for(
            lambda: all(self.table().get(name, {}).get("hook") == hook for name in names),
            seconds,
            f"{hook} on {names}: {self.table()}",
        )

    def stop(self) -> str:
        """Ends it as the supervisor does; returns what it logged."""
        self.process.stdin.close()
        code = self.process.wait(60)
        log = self.process.stderr.read()
        self._close()
        assert code == 0, log
        return log

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self._close()

    def _close(self) -> None:
        self.process.stdout.close()
        self.process.stderr.close()


async def _serve(settings: dict[str, Any]) -> None:
    from spliffd import config, ipc
    from spliffd.counters import Area
    from spliffd.kernel import bpf
    from spliffd.kernel.maps import INTERFACE_COUNT, INTERFACES
    from spliffd.stages.interfaces import BUFFER_BYTES, Interfaces

    programs = {}
    for name in NAMES:
        xdp = name.startswith("xdp_l")
        kind, code = (bpf.PROG_XDP, PASS_XDP) if xdp else (bpf.PROG_SCHED_CLS, PASS_TC)
        programs[name] = bpf.prog_load(kind, code, name)
    buffer = settings.pop("buffer_bytes", BUFFER_BYTES)
    area = Area.create()
    told: list[ipc.Interfaces] = []
    counts = bpf.map_create(
        bpf.MAP_PERCPU_HASH, 4, INTERFACE_COUNT, INTERFACES, bpf.F_NO_PREALLOC, "interfaces"
    )
    stage = Interfaces(config.Interfaces(**settings), programs, counts, area.supervisor, told.append, buffer)
    await stage.start()
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def beat() -> None:
        """How late the event loop is at worst: what else the supervisor does would wait so long."""
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    beating: asyncio.Task[None] | None = None
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while line := await questions.readline():
        what, argument = json.loads(line)
        answer: Any = None
        if what == "table":
            answer = {
                entry.device.name: {
                    "index": index,
                    "hook": entry.hook.kind if entry.hook else "NONE",
                    "mode": entry.hook.mode if entry.hook else "",
                    "reason": entry.hook.reason if entry.hook else entry.plan.reason,
                    "layer": entry.plan.layer,
                    "error": entry.error,
                    "links": entry.hook.links if entry.hook else [],
                }
                for index, entry in stage.table.items()
            }
        elif what == "counters":
            answer = {name: value for name, value in area.supervisor.values().items() if "interface" in name}
        elif what == "told":
            answer = {str(index): name for index, name in told[-1].names.items()} if told else {}
        elif what == "feature":
            answer = [stage.feature().state, stage.feature().detail]
        elif what == "reload":
            stage.reload(config.Interfaces(**argument))
        elif what == "beat":
            longest, answer = 0.0, longest
            beating = beating or loop.create_task(beat())
        print(json.dumps(answer), flush=True)
    if beating is not None:
        beating.cancel()
    await stage.close()


if __name__ == "__main__":
    from spliffd import journal

    journal.configure(debug=False)
    asyncio.run(_serve(json.loads(sys.argv[1])))
